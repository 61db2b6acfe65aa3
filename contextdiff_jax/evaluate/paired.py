"""Differences between runs on the same questions, prompt by prompt and noise by noise, with their errors."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtr

from contextdiff_jax.errors import UserError

ROUNDING = 1e-12  # of a difference: what float64 leaves of equal ones


class Difference(NamedTuple):
    """A mean difference over pairs.

    Attributes:
        mean: of b - a.
        stderr: standard error over pairs; NaN for one.
        n: pairs.
    """

    mean: float
    stderr: float
    n: int


def paired(a: np.ndarray, b: np.ndarray) -> Difference:
    """The mean of b - a over pairs.

    What both sides share (hard prompts, lucky noise) cancels, so that the error is smaller than that of two
    independent means wherever the two sides agree.

    Args:
        a, b: values [N] of the same things; pairs with NaN do not count.

    Raises:
        UserError: not as many of one as of the other, or no pair.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise UserError(f"{a.shape} values against {b.shape}; a paired difference needs as many of both")
    d = (b - a)[~np.isnan(b - a)]
    if not len(d):
        raise UserError("a paired difference of 0 pairs; give some")
    error = float(d.std(ddof=1) / np.sqrt(len(d))) if len(d) > 1 else float("nan")
    return Difference(float(d.mean()), error, len(d))


def p_value(d: Difference) -> float:
    """Two-sided p-value of no difference, by Student's t of the pairs; NaN for one pair.

    Where all pairs differ by the same but for rounding, t has no spread to go by, and the signs decide: 2^(1 - n).
    """
    if d.n < 2:
        return float("nan")
    if d.stderr <= ROUNDING * abs(d.mean):
        return 2.0 ** (1 - d.n) if d.mean else 1.0
    return float(2 * stdtr(d.n - 1, -abs(d.mean) / d.stderr))


def holm(p_values: Mapping[Any, float]) -> dict[Any, float]:
    """Holm's adjusted p-values: the i-th smallest times the number that are left, never falling."""
    adjusted, largest = {}, 0.0
    for i, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, p * (len(p_values) - i)))
        adjusted[name] = largest
    return adjusted
