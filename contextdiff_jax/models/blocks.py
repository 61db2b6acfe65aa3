"""Building blocks of the pixel networks."""

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from contextdiff_jax import runtime
from contextdiff_jax.layers import Attention, GroupNorm, zeros
from contextdiff_jax.types import Array, Context

MAX_PERIOD = 10_000.0  # of the code of t


def sinusoidal_embedding(t: Array, dim: int, freq_shift: float = 0.0, sin_first: bool = False) -> Array:
    """Cosines and sines of `t` (float or int [B]) at `dim // 2` frequencies that fall from 1: [B, dim].

    The frequency after the last would be 1 / MAX_PERIOD; with `freq_shift` 1 the last one is.
    """
    half = dim // 2
    freqs = jnp.exp(-jnp.log(MAX_PERIOD) * jnp.arange(half, dtype=jnp.float32) / (half - freq_shift))
    angles = t.astype(jnp.float32)[:, None] * freqs
    parts = [jnp.cos(angles), jnp.sin(angles)]
    return jnp.concatenate(parts[::-1] if sin_first else parts, axis=-1)


def sinusoidal_grid(height: int, width: int, dim: int) -> Array:
    """Fixed two-dimensional position code, half of `dim` for the row and half for the column: [height*width, dim]."""
    rows = sinusoidal_embedding(jnp.arange(height), dim // 2)
    cols = sinusoidal_embedding(jnp.arange(width), dim - dim // 2)
    grid = jnp.concatenate([jnp.repeat(rows, width, axis=0), jnp.tile(cols, (height, 1))], axis=-1)
    return grid


class TimeEmbedding(nn.Module):
    """MLP over the sinusoidal code of t, with T mapped onto the usual 0..1000."""

    dim: int
    num_timesteps: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, t: Array) -> Array:
        """t int [B] in 0..T -> [B, dim]."""
        h = sinusoidal_embedding(t * (1000.0 / self.num_timesteps), self.dim).astype(self.dtype)
        h = nn.silu(nn.Dense(self.dim, dtype=self.dtype, name="in")(h))
        return nn.Dense(self.dim, dtype=self.dtype, name="out")(h)


class SpatialAttention(nn.Module):
    """Self-attention over the positions of a feature map, then cross-attention to the text; both start as identity."""

    num_heads: int
    self_attention: bool
    cross_attention: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, text: Array, text_mask: Array) -> Array:
        """x [B, H, W, C], text [B, L, D], text_mask bool [B, L] -> [B, H, W, C]."""
        h = einops.rearrange(_kept_apart(x), "b h w c -> b (h w) c")
        if self.self_attention:
            normed = nn.LayerNorm(dtype=self.dtype, name="norm_self")(h)
            h = h + Attention(self.num_heads, self.dtype, zeros, name="self")(normed)
        if self.cross_attention:
            normed = nn.LayerNorm(dtype=self.dtype, name="norm_cross")(h)
            h = h + Attention(self.num_heads, self.dtype, zeros, name="cross")(normed, text, text_mask)
        return _kept_apart(h.reshape(x.shape))


def _kept_apart(x: Array) -> Array:
    """The identity, which keeps a TPU's compiler from fusing the change between rows and positions into a convolution:
    on small maps it merges rows inside the padded window, and then aborts the process (libtpu 0.0.52)."""
    return jax.lax.optimization_barrier(x) if runtime.current().platform == "tpu" else x


def embed_condition(
    t: Array, context: Context, dim: int, num_timesteps: int, dtype: jnp.dtype
) -> tuple[Array, Array]:
    """What the library's own U-Nets know of time and condition; its parameters belong to the calling module.

    Returns:
        One embedding of t and the pooled condition [B, dim], and the condition's tokens, normed [B, L, D].
    """
    emb = TimeEmbedding(dim, num_timesteps, dtype, name="time")(t)
    pooled = nn.LayerNorm(dtype=dtype, name="pooled_norm")(context.pooled)
    emb = emb + nn.Dense(dim, dtype=dtype, name="pooled")(pooled)
    if context.level is not None:
        code = sinusoidal_embedding(1000.0 * context.level, dim).astype(dtype)
        emb = emb + nn.Dense(dim, dtype=dtype, name="level")(code)
    return emb, nn.LayerNorm(dtype=dtype, name="text_norm")(context.tokens)


def beside_spatial(xt: Array, context: Context) -> Array:
    """x_t with the condition's maps as more channels: [B, H, W, C] and [B, H, W, D] -> [B, H, W, C + D]."""
    return xt if context.spatial is None else jnp.concatenate([xt, context.spatial.astype(xt.dtype)], axis=-1)


def output(h: Array, channels: int) -> Array:
    """What a network answers, [B, H, W, channels]; called inside it, zero at its start. In float32 whatever the type:
    bfloat16 would round an x0 near 1 by up to 0.002."""
    h = nn.silu(GroupNorm(jnp.float32, name="out_norm")(h))
    return nn.Conv(channels, (3, 3), dtype=jnp.float32, kernel_init=zeros, name="out")(h)


def space_to_depth(x: Array, p: int) -> Array:
    """[B, H, W, C] -> [B, H/p, W/p, p*p*C]."""
    return einops.rearrange(x, "b (h p) (w q) c -> b h w (p q c)", p=p, q=p)


def depth_to_space(x: Array, p: int) -> Array:
    """[B, H, W, p*p*C] -> [B, H*p, W*p, C], the inverse of `space_to_depth`."""
    return einops.rearrange(x, "b h w (p q c) -> b (h p) (w q) c", p=p, q=p)
