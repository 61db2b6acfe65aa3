"""The likelihood network of Kingma et al. 2021 (Variational Diffusion Models, appendix B), at full resolution."""

from collections.abc import Sequence

import einops
import flax.linen as nn
import jax.numpy as jnp

from contextdiff_jax.layers import ResBlock
from contextdiff_jax.models.blocks import SpatialAttention, beside_spatial, embed_condition, output
from contextdiff_jax.types import Array, Context


def fourier_features(z: Array, bands: Sequence[int]) -> Array:
    """sin(2^n pi z) and cos(2^n pi z) for n in bands, [B, H, W, C] -> [B, H, W, 2 * len(bands) * C], float32.

    Levels lie 2 / (levels - 1) apart, half a period of the band 2^n = (levels - 1) / 2: fine details that decide the
    last bits become large differences. For 8-bit data n = 6, 7 (the paper's), for the digits' 17 levels n = 2, 3.
    """
    angles = jnp.pi * z.astype(jnp.float32)[..., None] * 2.0 ** jnp.asarray(bands, jnp.float32)
    waves = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return einops.rearrange(waves, "b h w c n wave -> b h w (wave n c)")


class VDMUNet(nn.Module):
    """Residual blocks of equal width without any down-sampling, a way in and a way out joined by skips.

    On the way in `num_blocks` blocks, in the middle a block, self-attention and a block, on the way out
    `num_blocks + 1` blocks, each on its input and the matching output of the way in. Time and the pooled condition act
    by FiLM in every block, the condition's tokens by cross-attention in the middle. The output starts at exactly zero.

    Attributes:
        channels: width of all blocks (paper: 128), a multiple of 16.
        num_blocks: depth of each way (paper: 32).
        head_dim: channels per attention head (paper: one head, so `channels`).
        fourier_bands: n of the Fourier features of x_t that are appended to it; () for none.
        cross_attention: whether the middle attends to the condition's tokens.
        num_timesteps: T of the process, so that the time code covers the same range for any T.
        dropout: rate inside the residual blocks.
        heads: outputs, side by side along the channels, each as many as x_t has.
        remat: recompute the blocks in the backward pass to save memory.
        dtype: type of the computation; parameters are float32.
    """

    channels: int
    num_blocks: int
    head_dim: int
    fourier_bands: Sequence[int]
    num_timesteps: int
    cross_attention: bool = True
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
        emb, text = embed_condition(t, context, 4 * self.channels, self.num_timesteps, self.dtype)

        def block(h: Array, name: str) -> Array:
            res_block = nn.remat(ResBlock, static_argnums=(3,)) if self.remat else ResBlock
            return res_block(self.channels, self.dropout, self.dtype, name=name)(h, emb, train)

        h = jnp.concatenate([xt, fourier_features(xt, self.fourier_bands)], axis=-1) if self.fourier_bands else xt
        h = beside_spatial(h, context).astype(self.dtype)
        h = nn.Conv(self.channels, (3, 3), dtype=self.dtype, name="stem")(h)
        skips = [h]
        for i in range(self.num_blocks):
            h = block(h, f"in_{i}")
            skips.append(h)
        h = block(h, "middle_1")
        attend = nn.remat(SpatialAttention) if self.remat else SpatialAttention
        heads = self.channels // self.head_dim
        h = attend(heads, True, self.cross_attention, self.dtype, name="attn")(h, text, context.mask)
        h = block(h, "middle_2")
        for i in range(self.num_blocks + 1):
            h = block(jnp.concatenate([h, skips.pop()], axis=-1), f"out_{i}")
        return output(h, self.heads * xt.shape[-1])
