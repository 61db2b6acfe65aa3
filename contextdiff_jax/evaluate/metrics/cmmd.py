"""CMMD (Jayasumana et al. 2024): a Gaussian kernel's distance between CLIP embeddings."""

from typing import Any

import numpy as np

from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate.metrics.base import FeatureMetric, blocks, check_pair

SIGMA = 10.0  # of the kernel exp(-|x - y|^2 / (2 sigma^2))
SCALE = 1000.0


def cmmd(x: np.ndarray, y: np.ndarray) -> float:
    """1000 (mean k(x, x') + mean k(y, y') - 2 mean k(x, y)) over all pairs, each with itself too, as published.

    Args:
        x: embeddings [N, D], brought to unit length here.
        y: embeddings of the reference [M, D].

    Raises:
        UserError: no rows, widths that differ, NaN, an embedding of length zero.
    """
    x, y = check_pair(x, y)
    x, y = unit(x), unit(y, "features of the reference")
    return SCALE * (_mean_kernel(x, x) + _mean_kernel(y, y) - 2.0 * _mean_kernel(x, y))


def unit(features: np.ndarray, name: str = "features") -> np.ndarray:
    """[N, D] scaled to length 1.

    Raises:
        UserError: a row of zeros.
    """
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    if not lengths.all():
        raise UserError(
            f"{name} are zero in row {np.argmin(lengths)}; a direction needs a length: leave that picture out"
        )
    return features / lengths


def _mean_kernel(x: np.ndarray, y: np.ndarray) -> float:
    """Over all pairs of unit vectors, whose squared distance is 2 - 2 x.y."""
    total = sum(np.exp((x[rows] @ y.T - 1.0) / SIGMA**2).sum() for rows in blocks(len(x), len(y)))
    return total / (len(x) * len(y))


class Cmmd(FeatureMetric):
    """CMMD of a stream to the embeddings of a reference; keeps the embeddings."""

    def result(self) -> dict[str, float | int]:
        """{"cmmd", "n"}."""
        return {"cmmd": cmmd(self.kept.values(), self.reference), "n": self.kept.n}

    def how(self) -> dict[str, Any]:
        """Kernel and estimator."""
        kernel = {"kernel": "exp(-|x - y|^2 / (2 sigma^2)) of embeddings of length 1", "sigma": SIGMA, "scale": SCALE}
        return kernel | {"estimator": "V-statistic: all pairs, each picture with itself too"}
