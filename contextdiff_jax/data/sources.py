"""The source that a config's `data` section names."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from contextdiff_jax import keys
from contextdiff_jax.data import coco, imagenet
from contextdiff_jax.data.augment import Augmentation
from contextdiff_jax.data.base import Description, ImageSource
from contextdiff_jax.data.cifar10 import Cifar10Source
from contextdiff_jax.data.coco import CocoSource
from contextdiff_jax.data.digits import DigitsSource
from contextdiff_jax.data.fashion import FashionSource
from contextdiff_jax.data.folder import ImageFolderSource, TooFewImages, classes_of
from contextdiff_jax.data.imagenet import ImagenetSource
from contextdiff_jax.data.one_clip import ClipSource, clip_of
from contextdiff_jax.data.openmoji import OpenMojiSource
from contextdiff_jax.data.openmoji import describe as describe_scenes
from contextdiff_jax.data.settings import classes_are_read
from contextdiff_jax.data.vocabulary import says_left_and_right
from contextdiff_jax.errors import UserError

SOURCES = {
    "openmoji": OpenMojiSource,
    "folder": ImageFolderSource,
    "digits": DigitsSource,
    "cifar10": Cifar10Source,
    "fashion": FashionSource,
    imagenet.NAME: ImagenetSource,
    "coco": CocoSource,
    "clip": ClipSource,
}
_NOT_TO_FLIP = {
    "digits": "a mirrored digit is none",
    "clip": "the clip itself is to be learnt",
}
_NOT_TO_CROP = {"digits": "8 x 8 pixels are the whole digit", "clip": "use data.crop, which is the same for all frames"}


def source(cfg_data: Any, split: str) -> ImageSource:
    """The random-access source that a config's `data` section describes.

    Raises:
        UserError: unknown source, preset or split, bad image size, unreadable files.
    """
    name, path, size = _known(cfg_data.source), cfg_data.path, cfg_data.image_size
    augmentation(cfg_data)
    match name:
        case "openmoji":
            return OpenMojiSource(cfg_data.preset, split, size, cfg_data.seed)
        case "folder":
            classes = dict(labels=cfg_data.labels, class_names=cfg_data.class_names, words=cfg_data.class_words)
            return ImageFolderSource(path, split, size, max_bad_fraction=cfg_data.max_bad_fraction, **classes)
        case "coco":
            known = dict(class_names=cfg_data.class_names)
            return CocoSource(path, split, size, max_bad_fraction=cfg_data.max_bad_fraction, **known)
        case imagenet.NAME:
            return ImagenetSource(split, size, describe(cfg_data).class_names)
        case "clip":
            return ClipSource(clip_of(cfg_data), cfg_data.num_frames, cfg_data.overlap)
        case "digits":
            return DigitsSource(split, size)
    return SOURCES[name](path, split, size)


def augmentation(cfg_data: Any) -> Augmentation:
    """What training does to the records at random.

    Raises:
        UserError: something that the source's records do not bear.
    """
    name = _known(cfg_data.source)
    if cfg_data.horizontal_flip and name in _NOT_TO_FLIP:
        raise UserError(f"data.horizontal_flip: {name} is not to be flipped, {_NOT_TO_FLIP[name]}; set it to False")
    if cfg_data.horizontal_flip and name == "openmoji" and says_left_and_right(cfg_data.preset):
        why = f"openmoji's {cfg_data.preset!r} is not to be flipped, its captions say left and right"
        raise UserError(f"data.horizontal_flip: {why}; set it to False")
    if cfg_data.random_crop and name in _NOT_TO_CROP:
        raise UserError(f"data.random_crop: {name} is not to be cropped, {_NOT_TO_CROP[name]}; set it to 0")
    if not 0 <= cfg_data.random_crop <= 1:
        raise UserError(f"data.random_crop: {cfg_data.random_crop!r} is not a share; accepted: 0 (none) to 1")
    return Augmentation(cfg_data.random_crop, cfg_data.horizontal_flip, cfg_data.image_size)


def describe(cfg_data: Any) -> Description:
    """Channels, levels and classes of the images, without reading or downloading any; for the classes of a folder, of
    COCO or of ImageNet, names of subfolders, annotations or labels are read, unless the config knows them: whether
    they are still those, a folder's source says, and sampling does not ask.

    Raises:
        UserError: unknown source or preset, a folder without subfolders for classes, missing annotations.
    """
    match name := _known(cfg_data.source):
        case "openmoji":
            return describe_scenes(cfg_data.preset)
        case "folder":
            labels, words = cfg_data.labels, cfg_data.class_words
            known = tuple(cfg_data.class_names) if labels != "none" else ()
            return Description(class_names=known or tuple(classes_of(cfg_data.path, labels, words=words).values()))
        case imagenet.NAME:
            return imagenet.describe(cfg_data.class_names, cfg_data.class_words)
        case "coco":
            return coco.describe(tuple(cfg_data.class_names) or coco.object_names_of(cfg_data.path))
    return SOURCES[name].description


def held_out(cfg_data: Any) -> tuple[str, ImageSource]:
    """(split, source) for evaluation: test where there is one, else val; train where nothing can be held out, of a
    folder that is too small for that and of a clip."""
    if cfg_data.source == "clip":
        return "train", source(cfg_data, "train")
    if cfg_data.source not in ("folder", "coco", imagenet.NAME):
        return "test", source(cfg_data, "test")
    try:
        return "val", source(cfg_data, "val")
    except TooFewImages:
        return "train", source(cfg_data, "train")


def chosen(length: int, count: int, seed: int) -> list[int]:
    """`count` of `length` records, or all: one drawn from each of `count` equal parts, in order.

    So what is looked at is spread over the whole set, whose records may come class by class, and the same every time.
    """
    if count >= length:
        return list(range(length))
    edges = [i * length // count for i in range(count + 1)]
    draws = np.random.RandomState(seed).random_sample(count)
    return [low + int(u * (high - low)) for u, low, high in zip(draws, edges[:-1], edges[1:], strict=True)]


def settled(config: ConfigDict) -> ConfigDict:
    """A whole config that no longer depends on where one stands: its paths are whole, its classes are named.

    Raises:
        UserError: a folder's classes cannot be taken.
    """
    config = keys.whole_paths(config)
    if classes_are_read(config.data) and not config.data.class_names:
        config = config.copy_and_resolve_references()
        found = describe(config.data)
        config.data.class_names = found.class_names or found.object_names
    return config


def _known(name: str) -> str:
    if name not in SOURCES:
        raise UserError(f"data.source: {name!r} is unknown; accepted: {', '.join(SOURCES)}")
    return name
