"""What the config's section `data` accepts."""

from ml_collections import ConfigDict

from contextdiff_jax.errors import UserError
from contextdiff_jax.keys import Values

VALUES = Values(
    choices={
        "data.source": ("openmoji", "folder", "digits", "cifar10", "fashion", "imagenet2012", "coco", "clip"),
        "data.labels": ("none", "subfolders"),
    },
    positive="data.batch_size data.image_size",
    not_negative="data.seed",
    fractions="data.max_bad_fraction data.random_crop",
)


def check(config: ConfigDict) -> None:
    """A batch must divide into the parts that gradients are accumulated over; only clips have several frames, and only
    classes words.

    Raises:
        UserError: names the keys, their values and the remedy.
    """
    if "batch_size" in config.data and config.data.batch_size % config.optim.accum_steps:
        raise UserError(
            f"config.data.batch_size={config.data.batch_size} is not divisible by "
            f"config.optim.accum_steps={config.optim.accum_steps}; choose a multiple"
        )
    if "class_words" in config.data and config.data.class_words and not _has_codes(config.data):
        raise UserError(
            f"config.data.class_words={config.data.class_words!r} cannot act: it is for classes of folders or of "
            "imagenet2012; set config.data.labels='subfolders', or leave it empty"
        )
    if "num_frames" in config.data and config.data.source != "clip" and config.data.num_frames != 1:
        raise UserError(
            f"config.data.num_frames={config.data.num_frames}, but the records of config.data.source="
            f"{config.data.source!r} are single pictures; set it to 1"
        )


def _has_codes(section: ConfigDict) -> bool:
    return section.source == "imagenet2012" or (section.source == "folder" and section.labels != "none")
