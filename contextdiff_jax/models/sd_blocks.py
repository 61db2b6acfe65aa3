"""Blocks of Stable Diffusion's U-Net, faithful to diffusers; the names lead to those of its checkpoints."""

import flax.linen as nn
import jax.numpy as jnp

from contextdiff_jax.layers import Attention, GroupNorm, ResBlock, upsample, zeros
from contextdiff_jax.models.blocks import sinusoidal_embedding
from contextdiff_jax.models.sd_config import UNetConfig
from contextdiff_jax.types import Array


class TimeEmbedding(nn.Module):
    """MLP over the sinusoidal code of t, from the first level's width to four times that."""

    config: UNetConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, t: Array) -> Array:
        """t int or float [B] -> [B, E]."""
        config, width = self.config, self.config.block_out_channels[0]
        code = sinusoidal_embedding(t, width, freq_shift=config.freq_shift, sin_first=not config.flip_sin_to_cos)
        dense = lambda name: nn.Dense(4 * width, dtype=self.dtype, name=name)
        return dense("linear_2")(nn.silu(dense("linear_1")(code.astype(self.dtype))))


class FeedForward(nn.Module):
    """Gated MLP: one half of a projection times the GELU of the other."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, T, D] -> [B, T, D]."""
        width = x.shape[-1]
        h, gate = jnp.split(nn.Dense(8 * width, dtype=self.dtype, name="net_0_proj")(x), 2, axis=-1)
        return nn.Dense(width, dtype=self.dtype, name="net_2")(h * nn.gelu(gate, approximate=False))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the text and an MLP, each after a layer norm."""

    num_heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, tokens: Array, mask: Array | None) -> Array:
        """x [B, T, D], tokens [B, L, F], mask bool [B, L] or None -> [B, T, D]."""
        norm = lambda i: nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, use_fast_variance=False, name=f"norm{i}")
        attend = lambda i: Attention(self.num_heads, self.dtype, name=f"attn{i}")
        x = x + attend(1)(norm(1)(x))
        x = x + attend(2)(norm(2)(x), tokens, mask)
        return x + FeedForward(self.dtype, name="ff")(norm(3)(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the positions of a feature map, between two projections; starts as identity."""

    config: UNetConfig
    num_heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, tokens: Array, mask: Array | None) -> Array:
        """x [B, H, W, C], tokens [B, L, F], mask bool [B, L] or None -> [B, H, W, C]."""
        width = x.shape[-1]

        def project(h: Array, name: str, **how) -> Array:
            # The same mathematics twice: checkpoints differ in the shape of the kernel.
            if self.config.use_linear_projection:
                return nn.Dense(width, dtype=self.dtype, name=name, **how)(h)
            return nn.Conv(width, (1, 1), dtype=self.dtype, name=name, **how)(h)

        h = GroupNorm(self.dtype, self.config.norm_num_groups, 1e-6, name="norm")(x)
        h = project(h, "proj_in").reshape(x.shape[0], -1, width)
        for i in range(self.config.transformer_layers_per_block):
            h = TransformerBlock(self.num_heads, self.dtype, name=f"transformer_blocks_{i}")(h, tokens, mask)
        return x + project(h.reshape(x.shape), "proj_out", kernel_init=zeros)


class Stage(nn.Module):
    """Residual blocks of one level, each followed by a transformer where the level attends to the text.

    Attributes:
        config: sizes.
        channels: of the output.
        num_heads: of the transformers; 0 for a level that has none.
        num_layers: residual blocks.
        resample: what follows, "down", "up" or "" for nothing.
        dtype: type of the computation.
        remat: recompute the blocks in the backward pass to save memory.
    """

    config: UNetConfig
    channels: int
    num_heads: int
    num_layers: int
    resample: str
    dtype: jnp.dtype
    remat: bool

    @nn.compact
    def __call__(
        self, h: Array, emb: Array, tokens: Array, mask: Array | None, skips: tuple[Array, ...] = ()
    ) -> tuple[Array, ...]:
        """Feature map [B, H, W, C] and, on the way up, one skip per layer -> the feature map after each step."""
        outputs = []
        for i in range(self.num_layers):
            h = jnp.concatenate([h, skips[i]], axis=-1) if skips else h
            h = res_block(self.config, self.channels, self.dtype, self.remat, f"resnets_{i}")(h, emb)
            if self.num_heads:
                attend = transformer(self.config, self.num_heads, self.dtype, self.remat, f"attentions_{i}")
                h = attend(h, tokens, mask)
            outputs.append(h)
        conv = lambda name, **how: nn.Conv(self.channels, (3, 3), dtype=self.dtype, name=name, **how)
        if self.resample == "down":
            outputs.append(conv("downsamplers_0_conv", strides=(2, 2), padding=1)(h))
        elif self.resample == "up":
            outputs.append(conv("upsamplers_0_conv")(upsample(h)))
        return tuple(outputs)


class MidStage(nn.Module):
    """Residual block, transformer, residual block."""

    config: UNetConfig
    dtype: jnp.dtype
    remat: bool

    @nn.compact
    def __call__(self, h: Array, emb: Array, tokens: Array, mask: Array | None) -> Array:
        """[B, H, W, C] -> the same shape."""
        width, how = h.shape[-1], (self.dtype, self.remat)
        h = res_block(self.config, width, *how, "resnets_0")(h, emb)
        h = transformer(self.config, self.config.heads(-1), *how, "attentions_0")(h, tokens, mask)
        return res_block(self.config, width, *how, "resnets_1")(h, emb)


def res_block(config: UNetConfig, channels: int, dtype: jnp.dtype, remat: bool, name: str) -> ResBlock:
    """A residual block to which the embedding is added."""
    make = nn.remat(ResBlock) if remat else ResBlock
    return make(channels, 0.0, dtype, config.norm_num_groups, config.norm_eps, film=False, conv_skip=True, name=name)


def transformer(config: UNetConfig, num_heads: int, dtype: jnp.dtype, remat: bool, name: str) -> SpatialTransformer:
    """A transformer over the positions."""
    make = nn.remat(SpatialTransformer) if remat else SpatialTransformer
    return make(config, num_heads, dtype, name=name)
