"""Sums over the elements that count."""

import jax.numpy as jnp

from contextdiff_jax.types import Array


def expand(mask: Array | None, like: Array) -> Array:
    """The mask with the axes it lacks, broadcastable to `like`."""
    if mask is None:
        return jnp.ones((), bool)
    mask = jnp.asarray(mask, bool)
    return mask.reshape(mask.shape + (1,) * (jnp.ndim(like) - mask.ndim))


def masked(values: Array, mask: Array | None) -> Array:
    """0 in the place of what does not count, so that not even a NaN there matters."""
    return values if mask is None else jnp.where(expand(mask, values), values, 0.0)


def summed(values: Array) -> Array:
    """Sum over everything but the batch, [B]."""
    return jnp.sum(values, axis=tuple(range(1, values.ndim)))
