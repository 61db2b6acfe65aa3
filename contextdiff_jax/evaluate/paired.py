"""Differences between runs on the same questions, prompt by prompt and noise by noise, with their errors."""

from typing import NamedTuple

import numpy as np

from contextdiff_jax.errors import UserError


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
