"""Layers that the frozen encoders and the networks share."""

from collections.abc import Callable
from functools import partial, reduce

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from contextdiff_jax.attention import attention, edited_attention
from contextdiff_jax.types import Array

zeros = nn.initializers.zeros_init()
# For embeddings: tokens of unit size from the first step, as a text encoder's are; flax's own are 1 / sqrt(width)
unit_normal = nn.initializers.normal(1.0)


class GroupNorm(nn.Module):
    """Group normalisation; statistics in float32 and in two passes, as PyTorch has them.

    Each channel is reduced over the positions first and joined to its group after, which on a CPU makes two passes as
    fast as flax's one.

    Attributes:
        dtype: of the result.
        num_groups: number of groups; None makes groups of 16 channels.
        epsilon: added to the variance.
    """

    dtype: jnp.dtype
    num_groups: int | None = None
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, ..., C] -> the same shape."""
        channels = x.shape[-1]
        groups = self.num_groups or channels // 16
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", zeros, (channels,))

        def group_mean(v: Array) -> Array:
            mean = v.mean(tuple(range(1, x.ndim - 1))).reshape(-1, groups, channels // groups).mean(-1)
            return jnp.repeat(mean, channels // groups, axis=-1).reshape(-1, *(1,) * (x.ndim - 2), channels)

        x = jnp.asarray(x, jnp.float32)
        centred = x - group_mean(x)
        inverse = jax.lax.rsqrt(group_mean(centred**2) + self.epsilon)
        return (centred * (inverse * scale) + bias).astype(self.dtype)


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
    def __call__(
        self,
        x: Array,
        kv: Array | None = None,
        kv_mask: Array | None = None,
        *,
        mask: Array | None = None,
        edit: Callable[[Array], Array] | None = None,
    ) -> Array:
        """Attention.

        Args:
            x: where queries come from [B, Tq, D].
            kv: where keys and values come from [B, Tk, E].
            kv_mask: True where a key may be looked at, bool [B, Tk].
            mask: True where query i may look at key j, bool [Tq, Tk].
            edit: from the weights after the softmax, float32 [B, H, Tq, Tk], to those to use; they are then computed
                plainly, and one head at a time where they are large and its `heads_apart` allows that. None is the
                fastest kernel.

        Returns:
            [B, Tq, D].
        """
        dim = x.shape[-1]
        kv = x if kv is None else kv.astype(self.dtype)
        split = lambda h: einops.rearrange(h, "b t (h d) -> b t h d", h=self.num_heads)
        project = lambda h, name: split(nn.Dense(dim, use_bias=self.bias, dtype=self.dtype, name=name)(h))
        q, k, v = project(x, "query"), project(kv, "key"), project(kv, "value")
        masks = [] if mask is None else [mask[None, None]]
        masks += [] if kv_mask is None else [kv_mask[:, None, None, :]]
        mask = reduce(jnp.logical_and, masks) if masks else None
        h = attention(q, k, v, mask=mask) if edit is None else edited_attention(edit, q, k, v, mask)
        h = einops.rearrange(h, "b t h d -> b t (h d)")
        return nn.Dense(dim, dtype=self.dtype, kernel_init=self.out_init, name="out")(h)


class ResBlock(nn.Module):
    """Residual block: norm, SiLU and a 3x3 convolution, twice; the second convolution is zero-initialised.

    Attributes:
        channels: of the output.
        dropout: rate before the second convolution.
        dtype: type of the computation.
        num_groups, epsilon: of the group norms.
        film: the embedding scales and shifts after the second norm (ADM); otherwise it is added before it (Stable
            Diffusion).
        conv_skip: a skip that changes the width is a 1x1 convolution; otherwise a dense layer, which is the same but
            for the shape of its kernel.
        conv: makes the convolutions.
    """

    channels: int
    dropout: float
    dtype: jnp.dtype
    num_groups: int | None = None
    epsilon: float = 1e-5
    film: bool = True
    conv_skip: bool = False
    conv: Callable[..., nn.Module] = nn.Conv

    @nn.compact
    def __call__(self, x: Array, emb: Array | None = None, train: bool = False) -> Array:
        """x [B, H, W, C], emb [B, E] or None -> [B, H, W, channels]."""
        conv = lambda size, name, **how: self.conv(self.channels, (size, size), dtype=self.dtype, name=name, **how)
        project = lambda dim, name: nn.Dense(dim, dtype=self.dtype, name=name)(nn.silu(emb))[:, None, None, :]
        norm = lambda name: GroupNorm(self.dtype, self.num_groups, self.epsilon, name=name)
        h = conv(3, "conv_1")(nn.silu(norm("norm_1")(x)))
        if emb is not None and not self.film:
            h = h + project(self.channels, "shift")
        h = norm("norm_2")(h)
        if emb is not None and self.film:
            scale, shift = jnp.split(project(2 * self.channels, "film"), 2, axis=-1)
            h = h * (1 + scale) + shift
        h = nn.Dropout(self.dropout, deterministic=not train)(nn.silu(h))
        h = conv(3, "conv_2", kernel_init=zeros)(h)
        if x.shape[-1] != self.channels:
            skip = partial(nn.Conv, kernel_size=(1, 1)) if self.conv_skip else nn.Dense
            x = skip(self.channels, dtype=self.dtype, name="skip")(x)
        return x + h


def upsample(x: Array) -> Array:
    """Every position twice along both sides: [B, H, W, C] -> [B, 2 H, 2 W, C]."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
