"""Captioned and labelled images: where they come from, and the batches made of them."""

from contextdiff_jax.data.base import Description, ImageSource
from contextdiff_jax.data.cifar10 import Cifar10Source
from contextdiff_jax.data.digits import DigitsSource
from contextdiff_jax.data.folder import ImageFolderSource
from contextdiff_jax.data.openmoji import OpenMojiSource
from contextdiff_jax.data.pipeline import build, in_threads
from contextdiff_jax.data.settings import classes_are_read
from contextdiff_jax.data.sources import chosen, describe, held_out, settled, source
from contextdiff_jax.data.vocabulary import OF_THE_DEMO, Vocabulary, captions, vocabulary

__all__ = [
    "OF_THE_DEMO",
    "Cifar10Source",
    "Description",
    "DigitsSource",
    "ImageFolderSource",
    "ImageSource",
    "OpenMojiSource",
    "Vocabulary",
    "build",
    "captions",
    "chosen",
    "classes_are_read",
    "describe",
    "held_out",
    "in_threads",
    "settled",
    "source",
    "vocabulary",
]
