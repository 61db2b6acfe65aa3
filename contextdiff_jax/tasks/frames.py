"""Clips in a batch: an array of frames is [B, F, ...] in the data and [B * F, ...] in the networks."""

import einops
import jax.numpy as jnp

from contextdiff_jax.types import Array, Batch

OF_FRAMES = ("image", "latent", "edges", "eps", "z_eps")  # of each frame; all else belongs to the clip


def fold(batch: Batch, num_frames: int) -> Batch:
    """Every frame as an example of its own; what belongs to the clip is repeated. Pictures stay as they are."""
    if num_frames == 1:
        return batch
    join = lambda v: einops.rearrange(v, "b f ... -> (b f) ...")
    return {k: join(v) if k in OF_FRAMES else jnp.repeat(v, num_frames, axis=0) for k, v in batch.items()}


def unfold(values: Array, num_frames: int) -> Array:
    """[B * F, ...] -> [B, F, ...]; pictures stay as they are."""
    return values if num_frames == 1 else einops.rearrange(values, "(b f) ... -> b f ...", f=num_frames)


def per_clip(values: Array, num_frames: int) -> Array:
    """The mean over each clip's frames, [B * F] -> [B]."""
    return values if num_frames == 1 else unfold(values, num_frames).mean(axis=1)
