"""CLIPScore (Hessel et al. 2021) and the cosine it is made of."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate.metrics.base import Features, Figure, Metric, Records, Rows, check, entries, indices, mean
from contextdiff_jax.evaluate.metrics.cmmd import unit

WEIGHT = 2.5
PREFIX = "A photo depicts "  # the paper's, before every caption
Embed = Callable[[Sequence[str]], np.ndarray]  # captions -> [B, D]
TooLong = Callable[[Sequence[str]], np.ndarray]  # captions -> whether each is cut, bool [B]


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
    """CLIPScore and raw cosine of a stream with captions; keeps two numbers per picture.

    Args:
        images: embeds pictures.
        texts: embeds captions.
        prefix: put before every caption; "" takes them as they are.
        too_long: tells which captions the tokenizer cuts; None where none is.
        seen: what `how` says besides of pictures and captions.
    """

    def __init__(
        self,
        images: Features,
        texts: Embed,
        *,
        prefix: str = PREFIX,
        too_long: TooLong | None = None,
        seen: Mapping[str, Any] | None = None,
    ):
        self.features, self.texts, self.kept = images, texts, Rows()
        self.prefix, self.too_long, self.seen = prefix, too_long, dict(seen or {})

    def update(self, images: np.ndarray, records: Records) -> None:
        """Takes in a batch; records have a "caption"."""
        places = indices(records, images)
        if missing := [int(p) for p, r in zip(places, records, strict=True) if not str(r.get("caption", "")).strip()]:
            raise UserError(f"picture {missing[0]} has no caption; CLIPScore needs one per picture")
        captions = [self.prefix + record["caption"] for record in records]
        values = cosines(self.features(images), self.texts(captions))
        cut = np.zeros(len(values)) if self.too_long is None else self.too_long(captions)
        self.kept.add(np.stack([values, cut], axis=1), places)

    def result(self) -> dict[str, float | int]:
        """{"clip_score", "clip_cosine", their "*_stderr", "n"}."""
        if not self.kept.n:
            raise UserError("CLIPScore of 0 pictures; give some")
        cosine = self.kept.values()[:, 0].astype(np.float64)
        figures = {"clip_score": mean(WEIGHT * np.maximum(cosine, 0.0)), "clip_cosine": mean(cosine)}
        return entries(figures) | {"n": self.kept.n}

    def how(self) -> dict[str, Any]:
        """Weight, prefix, and how many captions were too long for the tokenizer."""
        cut = int(self.kept.values()[:, 1].sum()) if self.kept.n else 0
        return {"weight": WEIGHT, "prefix": self.prefix, "captions_cut": cut} | self.seen
