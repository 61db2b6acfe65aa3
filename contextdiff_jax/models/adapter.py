"""The relational adapter r_phi(x0, c, t) (paper, section 4.1): cross-attention between a sample and its condition."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from contextdiff_jax.layers import Attention, zeros
from contextdiff_jax.models.blocks import TimeEmbedding, depth_to_space, sinusoidal_grid
from contextdiff_jax.process.schedule import Schedule
from contextdiff_jax.types import Array, Context


class AdapterBlock(nn.Module):
    """Cross-attention to the text and an MLP, both modulated by time (adaptive layer norm)."""

    num_heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, emb: Array, text: Array, text_mask: Array) -> Array:
        """x [B, N, D], emb [B, E], text [B, L, F], text_mask bool [B, L] -> [B, N, D]."""
        dim = x.shape[-1]
        modulation = nn.Dense(4 * dim, dtype=self.dtype, name="modulation")(nn.silu(emb))[:, None]
        scale_1, shift_1, scale_2, shift_2 = jnp.split(modulation, 4, axis=-1)
        norm = lambda name: nn.LayerNorm(use_bias=False, use_scale=False, dtype=self.dtype, name=name)
        h = norm("norm_1")(x) * (1 + scale_1) + shift_1
        x = x + Attention(self.num_heads, self.dtype, name="cross")(h, text, text_mask)
        h = norm("norm_2")(x) * (1 + scale_2) + shift_2
        h = nn.gelu(nn.Dense(4 * dim, dtype=self.dtype, name="mlp_in")(h))
        return x + nn.Dense(dim, dtype=self.dtype, name="mlp_out")(h)


class Adapter(nn.Module):
    """r_phi(x0, c, t): queries from the image tokens laid on the sample's grid, keys and values from the text.

    The output projection starts at zero, so training starts exactly at plain diffusion, and the output is bounded by
    `bound * tanh(. / bound)`: a free adapter can drive Eq. 6 down while the true bound gets worse.

    Attributes:
        depth: number of blocks (paper: 4).
        num_heads: attention heads (paper: 8).
        width: channels of the blocks.
        patch_size: side of the sample patch that one query answers for.
        bound: largest absolute value of r; 0 leaves it free.
        num_timesteps: T of the process.
        dtype: type of the computation; the bound is applied in float32.
    """

    depth: int
    num_heads: int
    width: int
    patch_size: int
    bound: float
    num_timesteps: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Array, grid: tuple[int, int], t: Array, context: Context, sample_shape: Sequence[int]
    ) -> Array:
        """The shift direction r.

        Args:
            tokens: image features of x0, [B, h*w, D].
            grid: (h, w) of these tokens.
            t: timestep int32 [B].
            context: encoded condition.
            sample_shape: (H, W, C) of x0.

        Returns:
            r [B, H, W, C], float32, |r| < bound.
        """
        height, width, channels = sample_shape
        rows, cols = height // self.patch_size, width // self.patch_size
        x = tokens.reshape(tokens.shape[0], *grid, -1)
        if (rows, cols) != tuple(grid):
            x = jax.image.resize(x, (x.shape[0], rows, cols, x.shape[-1]), "bilinear")
        x = nn.Dense(self.width, dtype=self.dtype, name="tokens")(x.reshape(x.shape[0], rows * cols, -1))
        x = x + sinusoidal_grid(rows, cols, self.width).astype(self.dtype)
        emb = TimeEmbedding(self.width, self.num_timesteps, self.dtype, name="time")(t)
        text = nn.LayerNorm(dtype=self.dtype, name="text_norm")(context.tokens)
        for i in range(self.depth):
            x = AdapterBlock(self.num_heads, self.dtype, name=f"block_{i}")(x, emb, text, context.mask)
        x = nn.LayerNorm(dtype=self.dtype, name="out_norm")(x)
        out_dim = self.patch_size**2 * channels
        r = nn.Dense(out_dim, dtype=jnp.float32, kernel_init=zeros, name="out")(x.astype(jnp.float32))
        r = depth_to_space(r.reshape(x.shape[0], rows, cols, out_dim), self.patch_size)
        return self.bound * jnp.tanh(r / self.bound) if self.bound > 0 else r


@dataclass(frozen=True)
class Shift:
    """b(x0, t) = k_t r_phi(x0, c, t) for one batch of conditions, as the contextual chart takes it.

    Attributes:
        schedule: holds k_t.
        features: x0 [B, ...] -> image features; the expensive half, independent of t.
        relate: (features, t [B]) -> r [B, ...], where features and t may be stacked n-fold along the batch.
    """

    schedule: Schedule
    features: Callable[[Array], Array]
    relate: Callable[[Array, Array], Array]

    def _scaled(self, features: Array, t: Array) -> Array:
        r = self.relate(features, t)
        return self.schedule.k[t].reshape(-1, *(1,) * (r.ndim - 1)) * r

    def __call__(self, x0: Array, t: Array) -> Array:
        """b_t, shaped like x0; t int32 [B] or scalar."""
        return self._scaled(self.features(x0), jnp.broadcast_to(t, x0.shape[:1]))

    def pair(self, x0: Array, t: Array, s: Array) -> tuple[Array, Array]:
        """(b_t, b_s) from one encoding of x0, the two times as one batch."""
        batch = x0.shape[:1]
        features = self.features(x0)
        times = jnp.concatenate([jnp.broadcast_to(t, batch), jnp.broadcast_to(s, batch)])
        return tuple(jnp.split(self._scaled(jnp.concatenate([features, features]), times), 2))
