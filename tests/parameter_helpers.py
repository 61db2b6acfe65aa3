"""Parameters that tests give to networks, made without compiling anything."""

from typing import Any

import jax
import numpy as np


def randomised(params: Any, scale: float, seed: int = 1) -> Any:
    """Normal numbers in place of arrays, or of their shapes: nothing is left at zero, so that every path of a network
    shows in its output."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda v: np.asarray(scale * rng.normal(size=v.shape), v.dtype), params)
