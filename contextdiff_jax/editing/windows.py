"""Clips longer than what the network takes at once: overlapping windows that agree where they overlap.

There is one latent of every frame, and at every step each window predicts its frames from them; where windows overlap
their predictions are averaged. So there is no seam, and memory is that of one window.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.data.one_clip import window_starts
from contextdiff_jax.types import Array


def over_windows(call: Callable[[Any], Any], length: int, window: int, overlap: int) -> Callable[[Any], Any]:
    """`call` from a window's frames to values of each, made into one from the clip's frames to theirs.

    Args:
        call: a tree of arrays [window, ...] -> a tree of arrays [window, ...].
        length: frames of the clip.
        window: frames of a window.
        overlap: of neighbouring windows, at least.
    """
    first = window_starts(length, window, overlap)
    if len(first) == 1:
        return call
    rows = first[:, None] + np.arange(window)  # [W, window]
    counts = np.bincount(rows.ravel(), minlength=length)

    def average(values: Array) -> Array:
        total = jnp.zeros((length, *values.shape[2:]), values.dtype).at[rows].add(values)
        return total / counts.reshape(-1, *(1,) * (values.ndim - 2)).astype(values.dtype)

    def whole(frames: Any) -> Any:
        parts = jax.lax.map(lambda part: call(jax.tree.map(lambda v: v[part], frames)), jnp.asarray(rows))
        return jax.tree.map(average, parts)

    return whole
