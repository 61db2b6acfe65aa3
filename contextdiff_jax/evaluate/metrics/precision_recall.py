"""Improved precision and recall (Kynkaanniemi et al. 2019): quality and coverage apart."""

from typing import Any, NamedTuple

import numpy as np

from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate.metrics.base import (
    FeatureMetric,
    Features,
    Figure,
    Rows,
    blocks,
    check_pair,
    entries,
    share,
)

NEIGHBOURS = 3


class PrecisionRecall(NamedTuple):
    """Shares in 0..1 with binomial standard errors."""

    precision: Figure
    recall: Figure


def precision_recall(x: np.ndarray, y: np.ndarray, k: int = NEIGHBOURS) -> PrecisionRecall:
    """How many pictures lie on the reference's manifold, and how much of the reference on the pictures'.

    A set's manifold is the union of balls around its points, each reaching to the k-th nearest other one.

    Args:
        x: features [N, D].
        y: features of the reference [M, D].
        k: neighbours.

    Raises:
        UserError: not more than k rows, widths that differ, NaN.
    """
    if k < 1:
        raise UserError(f"k={k} neighbours; give 1 or more (the paper's figure is 3)")
    x, y = check_pair(x, y, least=k + 1)
    # Distances do not change, and the rounding of |a|^2 - 2 a.b + |b|^2 is least around the origin.
    centre = y.mean(axis=0)
    x, y = x - centre, y - centre
    return _compare(x, y, _radii(x, k), _radii(y, k))


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[N, D], [M, D] -> [N, M]; what is rounding of zero is zero."""
    squares_a, squares_b = np.sum(a * a, axis=1)[:, None], np.sum(b * b, axis=1)[None, :]
    size = squares_a + squares_b
    d = size - 2.0 * (a @ b.T)
    d[d < 1e-13 * size] = 0.0
    return d


def _radii(x: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of each point to its k-th nearest other one, [N]."""
    radii = np.empty(len(x))
    for rows in blocks(len(x), len(x)):
        block = _squared_distances(x[rows], x)
        radii[rows] = np.partition(block, k, axis=1)[:, k]  # the nearest is the point itself
    return radii


def _compare(x: np.ndarray, y: np.ndarray, radii_x: np.ndarray, radii_y: np.ndarray) -> PrecisionRecall:
    """Both shares from one pass over the distances between the sets."""
    in_y, in_x = np.empty(len(x), bool), np.zeros(len(y), bool)
    for rows in blocks(len(x), len(y)):
        block = _squared_distances(x[rows], y)
        in_y[rows] = (block <= radii_y).any(axis=1)
        in_x |= (block <= radii_x[rows, None]).any(axis=0)
    return PrecisionRecall(share(in_y), share(in_x))


class PrecisionAndRecall(FeatureMetric):
    """Precision and recall of a stream against the features of a reference; keeps the features.

    Args:
        features, reference, kept: as `FeatureMetric` takes them.
        k: neighbours.
    """

    def __init__(self, features: Features, reference: np.ndarray, kept: Rows | None = None, *, k: int = NEIGHBOURS):
        super().__init__(features, reference, kept)
        self.k = k

    def result(self) -> dict[str, float | int]:
        """{"precision", "recall", their "*_stderr", "n"}."""
        return entries(precision_recall(self.kept.values(), self.reference, self.k)._asdict()) | {"n": self.kept.n}

    def how(self) -> dict[str, Any]:
        """Neighbours and the error."""
        return {"k": self.k, "manifold": "balls to the k-th nearest other point", "error": "binomial"}
