"""What the config's section `data` accepts."""

from ml_collections import ConfigDict

from contextdiff_jax.errors import UserError
from contextdiff_jax.keys import Values, leaves, require, unread

VALUES = Values(
    choices={
        "data.source": ("openmoji", "folder", "digits", "cifar10", "fashion", "imagenet2012", "coco", "clip"),
        "data.labels": ("none", "subfolders"),
    },
    positive="data.batch_size data.image_size",
    not_negative="data.seed",
    fractions="data.max_bad_fraction data.random_crop",
    whole="data.batch_size data.image_size data.seed data.num_threads data.prefetch data.num_frames",
    listed="data.class_names",
    needed="data.source data.path data.image_size data.seed data.horizontal_flip",
    trained="data.batch_size data.num_threads data.prefetch",
)


def check(config: ConfigDict) -> None:
    """A batch must divide into the parts that gradients are accumulated over; only clips have several frames, and only
    classes words; and no source is given what it does not read.

    Raises:
        UserError: names the keys, their values and the remedy.
    """
    if "optim" in config and "batch_size" in config.data and config.data.batch_size % config.optim.accum_steps:
        raise UserError(
            f"config.data.batch_size={config.data.batch_size} is not divisible by "
            f"config.optim.accum_steps={config.optim.accum_steps}; choose a multiple"
        )
    for sources, keys in _OF_SOURCES.items():
        if config.data.source in sources and "optim" in config:  # models from elsewhere read no data here
            require(leaves(config), keys)
    _check_read(config.data)
    if "class_words" in config.data and config.data.class_words and not _has_codes(config.data):
        raise UserError(
            f"config.data.class_words={config.data.class_words!r} cannot act: it is for classes of folders or of "
            "imagenet2012; set config.data.labels='subfolders', or leave it empty"
        )
    if config.data.source == "clip" and (missing := [key for key in _OF_CLIPS.split() if key not in config.data]):
        raise UserError(
            f"config.data.source='clip' needs {', '.join(f'config.data.{key}' for key in missing)}, which this config "
            "has not; for clips take configs/video_edit.py"
        )
    if "num_frames" in config.data and config.data.source != "clip" and config.data.num_frames != 1:
        raise UserError(
            f"config.data.num_frames={config.data.num_frames}, but the records of config.data.source="
            f"{config.data.source!r} are single pictures; set it to 1"
        )


# Beside what all sources read
_OF_CLIPS = "preset index caption length overlap start sampling_rate crop mask_path flow_path"
_OF_SOURCES = {("openmoji",): "data.preset", ("folder", "coco"): "data.max_bad_fraction"}
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
