"""Captioned images: the embedded OpenMoji scenes, folders of the user's own, and the batches made of them."""

from contextdiff_jax.data.folder import ImageFolderSource
from contextdiff_jax.data.openmoji import OpenMojiSource
from contextdiff_jax.data.pipeline import build, held_out, source
from contextdiff_jax.data.vocabulary import Vocabulary, captions, vocabulary

__all__ = ["ImageFolderSource", "OpenMojiSource", "Vocabulary", "build", "captions", "held_out", "source", "vocabulary"]
