"""Accuracy by a judge: the share of pictures on which a classifier finds what was asked for."""

from collections.abc import Mapping

import numpy as np

from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate.alignment import MEASURES, Judge, hits, summarise
from contextdiff_jax.evaluate.metrics.base import Figure, Metric, Records, indices, share


def accuracy(found: np.ndarray, asked: np.ndarray) -> Figure:
    """Share of equal entries in 0..1 with its binomial standard error.

    Args:
        found: what the judge says, [N].
        asked: what was asked for, [N].

    Raises:
        UserError: no entries, or not as many of one as of the other.
    """
    found, asked = np.asarray(found), np.asarray(asked)
    if found.shape != asked.shape or found.ndim != 1 or not len(found):
        raise UserError(f"judged {found.shape} against asked {asked.shape}; give one verdict and one label per picture")
    return share(found == asked)


class Counts:
    """Hits of each measure and pictures: memory flat in N."""

    def __init__(self) -> None:
        self.n, self.hits = 0, np.zeros(len(MEASURES), np.int64)

    def merge(self, other: "Counts") -> None:
        """Adds what another has seen."""
        self.n, self.hits = self.n + other.n, self.hits + other.hits

    def state(self) -> dict[str, np.ndarray]:
        """Arrays that `load` takes."""
        return {"n": np.array(self.n), "hits": self.hits}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes the place of what was seen so far."""
        self.n, self.hits = int(state["n"]), state["hits"]


class Accuracy(Metric):
    """Accuracy of a stream by a judge of object and background; records have both as ids.

    Args:
        judge: names object and background of pictures.
    """

    def __init__(self, judge: Judge):
        self.judge, self.kept = judge, Counts()

    def update(self, images: np.ndarray, records: Records) -> None:
        """Takes in a batch."""
        places = indices(records, images)
        for key in ("object", "background"):
            if missing := [int(p) for p, r in zip(places, records, strict=True) if key not in r]:
                raise UserError(f"picture {missing[0]} has no '{key}'; accuracy needs what was asked for")
        found = hits(images, [r["object"] for r in records], [r["background"] for r in records], self.judge)
        self.kept.n += len(images)
        self.kept.hits += np.array([found[measure].sum() for measure in MEASURES])

    def result(self) -> dict[str, float | int]:
        """As `alignment` gives it: {"object", "background", "both", their "*_stderr", "n"}."""
        n = self.kept.n
        return summarise({m: np.arange(n) < count for m, count in zip(MEASURES, self.kept.hits, strict=True)})
