"""Layers that the frozen encoders and the networks share."""

from collections.abc import Callable

import einops
import flax.linen as nn
import jax.numpy as jnp

from contextdiff_jax.attention import attention
from contextdiff_jax.types import Array

zeros = nn.initializers.zeros_init()
MakeNorm = Callable[[jnp.dtype, str], nn.Module]


def group_norm(dtype: jnp.dtype, name: str) -> nn.GroupNorm:
    """Group normalisation with groups of 16 channels; statistics in float32."""
    return nn.GroupNorm(num_groups=None, group_size=16, epsilon=1e-5, dtype=dtype, name=name)


class Attention(nn.Module):
    """Multi-head attention of `x` over `kv`; self-attention when `kv` is None.

    Attributes:
        num_heads: attention heads.
        dtype: type of the computation.
        out_init: of the output kernel.
        bias: whether queries, keys and values have a bias; the output always has.
    """

    num_heads: int
    dtype: jnp.dtype
    out_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    bias: bool = False

    @nn.compact
    def __call__(self, x: Array, kv: Array | None = None, kv_mask: Array | None = None) -> Array:
        """x [B, Tq, D], kv [B, Tk, E], kv_mask bool [B, Tk] -> [B, Tq, D]."""
        dim = x.shape[-1]
        kv = x if kv is None else kv.astype(self.dtype)
        split = lambda h: einops.rearrange(h, "b t (h d) -> b t h d", h=self.num_heads)
        project = lambda h, name: split(nn.Dense(dim, use_bias=self.bias, dtype=self.dtype, name=name)(h))
        q, k, v = project(x, "query"), project(kv, "key"), project(kv, "value")
        mask = None if kv_mask is None else kv_mask[:, None, None, :]
        h = einops.rearrange(attention(q, k, v, mask=mask), "b t h d -> b t (h d)")
        return nn.Dense(dim, dtype=self.dtype, kernel_init=self.out_init, name="out")(h)


class ResBlock(nn.Module):
    """Residual block: norm, SiLU and a 3x3 convolution, twice; the second convolution is zero-initialised.

    Attributes:
        channels: of the output.
        dropout: rate before the second convolution.
        dtype: type of the computation.
        norm: makes a normalisation from its dtype and name.
        film: the embedding scales and shifts after the second norm (ADM); otherwise it is added before it (Stable
            Diffusion).
        conv_skip: a skip that changes the width is a 1x1 convolution; otherwise a dense layer, which is the same but
            for the shape of its kernel.
    """

    channels: int
    dropout: float
    dtype: jnp.dtype
    norm: MakeNorm = group_norm
    film: bool = True
    conv_skip: bool = False

    @nn.compact
    def __call__(self, x: Array, emb: Array | None = None, train: bool = False) -> Array:
        """x [B, H, W, C], emb [B, E] or None -> [B, H, W, channels]."""
        conv = lambda size, name, **how: nn.Conv(self.channels, (size, size), dtype=self.dtype, name=name, **how)
        project = lambda dim, name: nn.Dense(dim, dtype=self.dtype, name=name)(nn.silu(emb))[:, None, None, :]
        h = conv(3, "conv_1")(nn.silu(self.norm(self.dtype, "norm_1")(x)))
        if emb is not None and not self.film:
            h = h + project(self.channels, "shift")
        h = self.norm(self.dtype, "norm_2")(h)
        if emb is not None and self.film:
            scale, shift = jnp.split(project(2 * self.channels, "film"), 2, axis=-1)
            h = h * (1 + scale) + shift
        h = nn.Dropout(self.dropout, deterministic=not train)(nn.silu(h))
        h = conv(3, "conv_2", kernel_init=zeros)(h)
        if x.shape[-1] != self.channels:
            x = (conv(1, "skip") if self.conv_skip else nn.Dense(self.channels, dtype=self.dtype, name="skip"))(x)
        return x + h
