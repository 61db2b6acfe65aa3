"""The pixel U-Net of the ADM / Imagen family."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from contextdiff_jax.layers import ResBlock, upsample
from contextdiff_jax.models.blocks import (
    SpatialAttention,
    beside_spatial,
    depth_to_space,
    embed_condition,
    output,
    space_to_depth,
)
from contextdiff_jax.types import Array, Context


class UNet(nn.Module):
    """U-Net with time and pooled-text FiLM, self-attention and text cross-attention at chosen levels.

    Levels are counted from 0 at the working resolution (image / patch_size); each next level halves it. The output
    starts at exactly zero.

    Attributes:
        channels: width of level 0.
        multipliers: width of each level as a multiple of `channels`.
        num_blocks: residual blocks per level on the way down (one more on the way up).
        self_attention_levels, cross_attention_levels: levels that attend to themselves and to the text.
        head_dim: channels per attention head.
        patch_size: side of the pixel blocks folded into channels before level 0 (space to depth).
        num_timesteps: T of the process, so that the time code covers the same range for any T.
        dropout: rate inside the residual blocks.
        heads: outputs, side by side along the channels, each as many as x_t has.
        remat: recompute the blocks in the backward pass to save memory.
        dtype: type of the computation; parameters are float32.
    """

    channels: int
    multipliers: Sequence[int]
    num_blocks: int
    self_attention_levels: Sequence[int]
    cross_attention_levels: Sequence[int]
    head_dim: int
    patch_size: int
    num_timesteps: int
    dropout: float = 0.0
    heads: int = 1
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, xt: Array, t: Array, context: Context, train: bool = False) -> Array:
        """Network output (x0, eps or v, see models/precond.py).

        Args:
            xt: noisy sample [B, H, W, C].
            t: timestep int32 [B] in 0..T.
            context: encoded condition.
            train: whether dropout is active (needs the "dropout" random stream).

        Returns:
            [B, H, W, C] float32.
        """
        out_channels = self.heads * self.patch_size**2 * xt.shape[-1]
        emb, text = embed_condition(t, context, 4 * self.channels, self.num_timesteps, self.dtype)

        def stage(h: Array, level: int, name: str) -> Array:
            """One residual block and the attention that its level asks for."""
            width = self.channels * self.multipliers[level]
            res_block = nn.remat(ResBlock, static_argnums=(3,)) if self.remat else ResBlock
            h = res_block(width, self.dropout, self.dtype, name=f"{name}_res")(h, emb, train)
            attends = level in self.self_attention_levels, level in self.cross_attention_levels
            if any(attends):
                attend = nn.remat(SpatialAttention) if self.remat else SpatialAttention
                heads = width // self.head_dim
                h = attend(heads, *attends, self.dtype, name=f"{name}_attn")(h, text, context.mask)
            return h

        h = space_to_depth(beside_spatial(xt, context), self.patch_size).astype(self.dtype)
        h = nn.Conv(self.channels, (3, 3), dtype=self.dtype, name="stem")(h)
        skips = [h]
        last = len(self.multipliers) - 1
        for level in range(last + 1):
            for i in range(self.num_blocks):
                h = stage(h, level, f"down_{level}_{i}")
                skips.append(h)
            if level < last:
                h = nn.Conv(h.shape[-1], (3, 3), strides=(2, 2), dtype=self.dtype, name=f"down_{level}")(h)
                skips.append(h)
        h = stage(h, last, "middle")
        for level in range(last, -1, -1):
            for i in range(self.num_blocks + 1):
                h = stage(jnp.concatenate([h, skips.pop()], axis=-1), level, f"up_{level}_{i}")
            if level > 0:
                h = nn.Conv(h.shape[-1], (3, 3), dtype=self.dtype, name=f"up_{level}")(upsample(h))
        return depth_to_space(output(h, out_channels), self.patch_size)
