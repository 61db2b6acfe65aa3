"""The kernel distance (Binkowski et al. 2018): KID in the features of FID's own network. Unbiased at any N."""

from typing import Any

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
)


def kid(x: np.ndarray, y: np.ndarray, *, subsets: int | None = None, subset_size: int = 1000, seed: int = 0) -> Figure:
    """The squared maximum mean discrepancy under the kernel (x.y / D + 1)^3, unbiased (a U-statistic).

    Args:
        x: features [N, D].
        y: features of the reference [M, D].
        subsets: None takes all of both sets; a number draws so many pairs of subsets and averages, as most papers do.
        subset_size: pictures in each of them.
        seed: of the subsets.

    Returns:
        The estimate, which may be a little below zero, and its standard error: of all pictures by the jackknife over
        both sets (NaN below three rows); of subsets the spread of their mean.

    Raises:
        UserError: fewer than two rows, widths that differ, NaN, or subsets larger than the sets.
    """
    x, y = check_pair(x, y, least=2)
    if subsets is None:
        return _mmd2(x, y)
    if subsets < 2 or not 3 <= subset_size <= min(len(x), len(y)):
        raise UserError(
            f"subsets={subsets} of subset_size={subset_size} out of {len(x)} and {len(y)} pictures; "
            "give two or more subsets of 3 pictures or more, no larger than either set"
        )
    rng = np.random.default_rng(seed)
    draw = lambda z: z[rng.choice(len(z), subset_size, replace=False)]
    values = np.array([_mmd2(draw(x), draw(y)) for _ in range(subsets)])
    return Figure(values.mean(), values.std(ddof=1) / subsets**0.5)


def _kernel_sums(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the kernel over rows and columns, [N] and [M], a block of rows at a time."""
    rows, columns = np.empty(len(x)), np.zeros(len(y))
    for part in blocks(len(x), len(y)):
        block = x[part] @ y.T
        block /= x.shape[1]
        block += 1.0
        block *= block * block
        rows[part] = block.sum(axis=1)
        columns += block.sum(axis=0)
    return rows, columns


def _mmd2(x: np.ndarray, y: np.ndarray) -> Figure:
    """The U-statistic with its jackknife error: leaving out picture i takes its row out of every sum."""
    n, m = len(x), len(y)
    own = lambda z: _kernel_sums(z, z)[0] - (np.sum(z * z, axis=1) / z.shape[1] + 1.0) ** 3
    within_x, within_y = own(x), own(y)
    cross_x, cross_y = _kernel_sums(x, y)
    total_x, total_y, total = within_x.sum(), within_y.sum(), cross_x.sum()

    def estimate(sum_x, sum_y, cross, n, m):
        return sum_x / (n * (n - 1)) + sum_y / (m * (m - 1)) - 2.0 * cross / (n * m)

    value = estimate(total_x, total_y, total, n, m)
    if min(n, m) < 3:
        return Figure(value)
    without_x = estimate(total_x - 2.0 * within_x, total_y, total - cross_x, n - 1, m)
    without_y = estimate(total_x, total_y - 2.0 * within_y, total - cross_y, n, m - 1)
    variance = (n - 1) * without_x.var() + (m - 1) * without_y.var()
    return Figure(value, variance**0.5)


class Kid(FeatureMetric):
    """The kernel distance of a stream to the features of a reference; keeps the features.

    Args:
        features, reference, kept: as `FeatureMetric` takes them.
        subsets, subset_size, seed: as `kid` takes them.
        name: of the figure; "kid" in the features of FID's own network.
    """

    def __init__(
        self,
        features: Features,
        reference: np.ndarray,
        kept: Rows | None = None,
        *,
        subsets: int | None = None,
        subset_size: int = 1000,
        seed: int = 0,
        name: str = "kernel_distance",
    ):
        super().__init__(features, reference, kept)
        self.name, self._drawn = name, dict(subsets=subsets, subset_size=subset_size, seed=seed)

    def result(self) -> dict[str, float | int]:
        """{name, its "*_stderr", "n"}."""
        return entries({self.name: kid(self.kept.values(), self.reference, **self._drawn)}) | {"n": self.kept.n}

    def how(self) -> dict[str, Any]:
        """Kernel and estimator."""
        whole = {"estimator": "unbiased U-statistic over all pairs of both sets", "error": "jackknife over both sets"}
        parts = {"estimator": "mean over random subsets", "error": "spread of that mean"} | self._drawn
        return {"kernel": "(x.y / D + 1)^3"} | (whole if self._drawn["subsets"] is None else parts)
