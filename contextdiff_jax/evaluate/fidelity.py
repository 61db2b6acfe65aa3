"""Do the pictures look like renders? Distances in the judge's features, where recognition is too kind: it names blobs.

These are the judge's figures and no other's: a Frechet distance is FID only in the features of FID's own network.
"""

import warnings
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from contextdiff_jax.data.base import ImageSource
from contextdiff_jax.evaluate.metrics import frechet, precision_recall
from contextdiff_jax.evaluate.metrics.base import Metric, Records, Rows, entries, indices
from contextdiff_jax.evaluate.metrics.frechet import too_few
from contextdiff_jax.evaluate.metrics.precision_recall import NEIGHBOURS
from contextdiff_jax.progress import Progress

REFERENCE = 1000  # renders, of all sets together
LEAST = NEIGHBOURS + 1  # renders of the floor, of all sets together


class Judge(Protocol):
    """What fidelity needs of a recogniser."""

    def features(self, images: np.ndarray) -> np.ndarray: ...


def describe(judge: Judge) -> dict[str, Any]:
    """What tells the judge from others, and how wide its features are."""
    return judge.about() | {"width": int(judge.config.net().channels[0] // 2)}


def fidelity(images: np.ndarray, reference: np.ndarray, judge: Judge) -> dict[str, Any]:
    """How near pictures come to a reference.

    Args:
        images: [N, H, W, 3], float in [-1, 1] or uint8.
        reference: the judge's features of renders [M, D].
        judge: the recogniser.

    Returns:
        {"frechet"}, and {"precision", "recall"} in 0..1 with their "*_stderr", and "n"; "too_few" where the Frechet
        distance rests on no more pictures than features.
    """
    return _figures(judge.features(images), reference)


def _figures(features: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    few = too_few(reference.shape[1], len(features), len(reference), instead="")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few pictures: the row itself says so
        distance = frechet(features, reference)
    figures = {"frechet": distance} | entries(precision_recall(features, reference)._asdict()) | {"n": len(features)}
    return figures | ({"too_few": few} if few else {})


class Fidelity(Metric):
    """`fidelity` of a stream; the judge's features are kept, 32 numbers a picture.

    Args:
        judge: the recogniser.
        reference: its features of renders [M, D].
    """

    def __init__(self, judge: Judge, reference: np.ndarray):
        self.judge, self.reference, self.kept = judge, reference, Rows()

    def update(self, images: np.ndarray, records: Records) -> None:
        """Takes in a batch."""
        self.kept.add(self.judge.features(images), indices(records, images))

    def result(self) -> dict[str, Any]:
        """As `fidelity`."""
        return _figures(self.kept.values(), self.reference)


def renders(sources: Sequence[ImageSource], count: int, first: int = 0) -> np.ndarray:
    """`count` renders, as many of each source, from its record `first` on, uint8 [count, H, W, 3]."""
    each, images = count // len(sources), []
    with Progress("renders to compare with", each * len(sources), "img") as progress:
        for source in sources:
            for i in range(each):
                images.append(source[first + i]["image"])
                progress.update()
    return np.stack(images)
