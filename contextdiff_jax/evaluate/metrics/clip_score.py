"""CLIPScore (Hessel et al. 2021) and the cosine it is made of."""

from collections.abc import Callable, Sequence

import numpy as np

from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate.metrics.base import Features, Figure, Metric, Records, Rows, check, entries, indices, mean
from contextdiff_jax.evaluate.metrics.cmmd import unit

WEIGHT = 2.5


def cosines(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """The cosine of each picture with its own caption, [N].

    Args:
        images: CLIP's embeddings of pictures [N, D].
        texts: CLIP's embeddings of their captions [N, D].

    Raises:
        UserError: not one caption per picture, widths that differ, NaN, an embedding of length zero.
    """
    images, texts = check(images, "embeddings of pictures"), check(texts, "embeddings of captions")
    if images.shape != texts.shape:
        raise UserError(
            f"embeddings of pictures have shape {images.shape} and those of captions {texts.shape}; "
            "give one caption per picture, from the same CLIP"
        )
    return np.sum(unit(images, "embeddings of pictures") * unit(texts, "embeddings of captions"), axis=1)


def clip_score(images: np.ndarray, texts: np.ndarray) -> Figure:
    """2.5 max(cosine, 0), averaged over pairs; arguments and errors are those of `cosines`."""
    return mean(WEIGHT * np.maximum(cosines(images, texts), 0.0))


def clip_cosine(images: np.ndarray, texts: np.ndarray) -> Figure:
    """The cosine itself, averaged over pairs; arguments and errors are those of `cosines`."""
    return mean(cosines(images, texts))


class ClipScore(Metric):
    """CLIPScore and raw cosine of a stream with captions; keeps one number per picture.

    Args:
        images: embeds pictures.
        texts: embeds captions, a list of texts -> [B, D].
    """

    def __init__(self, images: Features, texts: Callable[[Sequence[str]], np.ndarray]):
        self.features, self.texts, self.kept = images, texts, Rows()

    def update(self, images: np.ndarray, records: Records) -> None:
        """Takes in a batch; records have a "caption"."""
        places = indices(records, images)
        if missing := [int(p) for p, r in zip(places, records, strict=True) if not str(r.get("caption", "")).strip()]:
            raise UserError(f"picture {missing[0]} has no caption; CLIPScore needs one per picture")
        values = cosines(self.features(images), self.texts([record["caption"] for record in records]))
        self.kept.add(values[:, None], places)

    def result(self) -> dict[str, float | int]:
        """{"clip_score", "clip_cosine", their "*_stderr", "n"}."""
        if not self.kept.n:
            raise UserError("CLIPScore of 0 pictures; give some")
        cosine = self.kept.values()[:, 0].astype(np.float64)
        figures = {"clip_score": mean(WEIGHT * np.maximum(cosine, 0.0)), "clip_cosine": mean(cosine)}
        return entries(figures) | {"n": self.kept.n}
