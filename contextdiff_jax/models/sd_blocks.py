"""Blocks of Stable Diffusion's U-Net, faithful to diffusers; the names lead to those of its checkpoints."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from contextdiff_jax.layers import Attention, GroupNorm, ResBlock, upsample, zeros
from contextdiff_jax.models.blocks import sinusoidal_embedding
from contextdiff_jax.models.sd_config import UNetConfig
from contextdiff_jax.models.video import FrameConv, Frames, TemporalAttention
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
    """Self-attention, cross-attention to the text and an MLP, each after a layer norm; and what joins frames.

    Attributes:
        num_heads: attention heads.
        dtype: type of the computation.
        frames: how the batch is made of clips, and what edits the attention.
    """

    num_heads: int
    dtype: jnp.dtype
    frames: Frames

    @nn.compact
    def __call__(self, x: Array, tokens: Array, mask: Array | None, size: tuple[int, int]) -> Array:
        """x [B, T, D] of a map of `size`, tokens [B, L, F], mask bool [B, L] or None -> [B, T, D]."""
        norm = lambda i: nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, use_fast_variance=False, name=f"norm{i}")
        attend = lambda i: Attention(self.num_heads, self.dtype, name=f"attn{i}")
        edit = lambda name, kind: self.frames.edit_at((*self.path, name), kind, *size)
        over_time = self.frames.video.temporal_attention
        how = dict(num_heads=self.num_heads, dtype=self.dtype, num_frames=self.frames.num_frames, name="attn_temporal")
        edit_temporal = edit("attn_temporal", "temporal")
        h = norm(1)(x)
        x = x + attend(1)(h, self.frames.keys_of(h), edit=edit("attn1", "self"))
        if over_time == "parallel":
            # The branch begins as a copy of the self-attention; the projection behind it makes it start as zero.
            h = TemporalAttention(**how, out_init=nn.initializers.lecun_normal())(h, edit_temporal)
            x = x + nn.Dense(x.shape[-1], dtype=self.dtype, kernel_init=zeros, name="temporal_out")(h)
        x = x + attend(2)(norm(2)(x), tokens, mask, edit=edit("attn2", "cross"))
        x = x + FeedForward(self.dtype, name="ff")(norm(3)(x))
        if over_time == "after":
            x = x + TemporalAttention(**how)(norm("_temporal")(x), edit_temporal)
        return x


class SpatialTransformer(nn.Module):
    """Transformer blocks over the positions of a feature map, between two projections; starts as identity."""

    config: UNetConfig
    num_heads: int
    dtype: jnp.dtype
    frames: Frames

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
            block = TransformerBlock(self.num_heads, self.dtype, self.frames, name=f"transformer_blocks_{i}")
            h = block(h, tokens, mask, x.shape[1:3])
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
        frames: how the batch is made of clips, and what edits the attention.
    """

    config: UNetConfig
    channels: int
    num_heads: int
    num_layers: int
    resample: str
    dtype: jnp.dtype
    remat: bool
    frames: Frames = Frames()

    @nn.compact
    def __call__(
        self, h: Array, emb: Array, tokens: Array, mask: Array | None, skips: tuple[Array, ...] = ()
    ) -> tuple[Array, ...]:
        """Feature map [B, H, W, C] and, on the way up, one skip per layer -> the feature map after each step."""
        outputs = []
        for i in range(self.num_layers):
            h = jnp.concatenate([h, skips[i]], axis=-1) if skips else h
            h = res_block(self, self.channels, f"resnets_{i}")(h, emb)
            if self.num_heads:
                h = transformer(self, self.num_heads, f"attentions_{i}")(h, tokens, mask)
            outputs.append(h)
        conv = lambda name, **how: frame_conv(self.frames)(self.channels, (3, 3), dtype=self.dtype, name=name, **how)
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
    frames: Frames = Frames()

    @nn.compact
    def __call__(self, h: Array, emb: Array, tokens: Array, mask: Array | None) -> Array:
        """[B, H, W, C] -> the same shape."""
        width = h.shape[-1]
        h = res_block(self, width, "resnets_0")(h, emb)
        h = transformer(self, self.config.heads(-1), "attentions_0")(h, tokens, mask)
        return res_block(self, width, "resnets_1")(h, emb)


def frame_conv(frames: Frames) -> Callable[..., nn.Module]:
    """Makes the convolutions that are larger than one pixel."""
    rank = frames.video.temporal_conv_rank
    return partial(FrameConv, num_frames=frames.num_frames, rank=rank) if rank else nn.Conv


def res_block(stage: Stage | MidStage, channels: int, name: str) -> ResBlock:
    """A residual block to which the embedding is added."""
    make, config = nn.remat(ResBlock) if stage.remat else ResBlock, stage.config
    how = dict(film=False, conv_skip=True, conv=frame_conv(stage.frames))
    return make(channels, 0.0, stage.dtype, config.norm_num_groups, config.norm_eps, name=name, **how)


def transformer(stage: Stage | MidStage, num_heads: int, name: str) -> SpatialTransformer:
    """A transformer over the positions."""
    make = nn.remat(SpatialTransformer) if stage.remat else SpatialTransformer
    return make(stage.config, num_heads, stage.dtype, stage.frames, name=name)
