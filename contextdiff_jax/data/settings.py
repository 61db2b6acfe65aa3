"""What the config's section `data` accepts."""

from ml_collections import ConfigDict

from contextdiff_jax.errors import UserError
from contextdiff_jax.keys import Values, unread

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
    classes words; and no source is given what it does not read.

    Raises:
        UserError: names the keys, their values and the remedy.
    """
    if "batch_size" in config.data and config.data.batch_size % config.optim.accum_steps:
        raise UserError(
            f"config.data.batch_size={config.data.batch_size} is not divisible by "
            f"config.optim.accum_steps={config.optim.accum_steps}; choose a multiple"
        )
    _check_read(config.data)
    if "class_words" in config.data and config.data.class_words and not _has_codes(config.data):
        raise UserError(
            f"config.data.class_words={config.data.class_words!r} cannot act: it is for classes of folders or of "
            "imagenet2012; set config.data.labels='subfolders', or leave it empty"
        )
    if config.data.source == "clip" and "length" not in config.data:
        raise UserError(
            "config.data.source='clip' needs keys that this config's section data has not (length, caption, ...); for "
            "clips take configs/video_edit.py"
        )
    if "num_frames" in config.data and config.data.source != "clip" and config.data.num_frames != 1:
        raise UserError(
            f"config.data.num_frames={config.data.num_frames}, but the records of config.data.source="
            f"{config.data.source!r} are single pictures; set it to 1"
        )


_NOT_READ = {
    "path": "which has pictures of its own: set config.data.source='folder' for yours",
    "labels": "which has no subfolders: set config.data.source='folder'",
    "class_names": "whose classes have names: set config.data.source='folder' and config.data.labels='subfolders'",
}


def _check_read(section: ConfigDict) -> None:
    """Raises UserError for a key that the source does not read: what was meant by it would not be had."""
    for key, empty in unread(section).items():
        raise UserError(
            f"config.data.{key}={section[key]!r} cannot act with config.data.source={section.source!r}, "
            f"{_NOT_READ[key]}, or set it to {empty!r}"
        )


def classes_are_read(section: ConfigDict) -> bool:
    """Whether the names of the classes are read with the data: of a folder, of COCO or of ImageNet."""
    return section.source == "coco" or _has_codes(section)


def _has_codes(section: ConfigDict) -> bool:
    """Whether classes have codes for names, of a folder's subfolders or of ImageNet."""
    labels = "labels" in section and section.labels != "none"
    return section.source == "imagenet2012" or (section.source == "folder" and labels)
