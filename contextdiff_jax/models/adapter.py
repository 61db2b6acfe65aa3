"""The relational adapter r_phi(x0, c, t) (paper, section 4.1): cross-attention between a sample and its condition."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from contextdiff_jax import trees
from contextdiff_jax.layers import Attention, zeros
from contextdiff_jax.models.blocks import TimeEmbedding, depth_to_space, sinusoidal_grid
from contextdiff_jax.models.video import TemporalAttention
from contextdiff_jax.process import scaled
from contextdiff_jax.process.scaled import Warp
from contextdiff_jax.process.schedule import Schedule
from contextdiff_jax.types import Array, Context, Params

ITERATIONS = 16  # of the power iteration for a kernel
_TINY = 1e-30


class AdapterBlock(nn.Module):
    """Cross-attention to the condition and an MLP, both modulated by time (adaptive layer norm).

    Attributes:
        num_heads: attention heads.
        dtype: type of the computation.
        self_attention: attend among the queries first, so that a patch's shift may depend on other patches. It starts
            as zero: an adapter without it is the start of one with it.
        num_frames: F of the clips that the batch is made of.
        frames_back: attend then, at each position, to this many frames of the clip, the last of them the frame itself;
            0 leaves that out. It starts as zero: an adapter trained on images is the start of one for clips.
    """

    num_heads: int
    dtype: jnp.dtype
    self_attention: bool = False
    num_frames: int = 1
    frames_back: int = 0

    @nn.compact
    def __call__(self, x: Array, emb: Array, text: Array, text_mask: Array) -> Array:
        """x [B, N, D], emb [B, E], text [B, L, F], text_mask bool [B, L] -> [B, N, D]."""
        dim = x.shape[-1]
        sublayers = 3 if self.self_attention else 2
        modulation = nn.Dense(2 * sublayers * dim, dtype=self.dtype, name="modulation")(nn.silu(emb))[:, None]
        scale_and_shift = jnp.split(modulation, 2 * sublayers, axis=-1)

        def normed(x: Array, i: int) -> Array:
            h = nn.LayerNorm(use_bias=False, use_scale=False, dtype=self.dtype, name=f"norm_{i}")(x)
            return h * (1 + scale_and_shift[2 * i - 2]) + scale_and_shift[2 * i - 1]

        if self.self_attention:
            x = x + Attention(self.num_heads, self.dtype, zeros, name="self")(normed(x, 3))
        if self.frames_back:
            ages = jnp.arange(self.num_frames)[:, None] - jnp.arange(self.num_frames)
            h = nn.LayerNorm(dtype=self.dtype, name="norm_temporal")(x)
            over_time = TemporalAttention(self.num_heads, self.dtype, self.num_frames, name="temporal")
            x = x + over_time(h, seen=(ages >= 0) & (ages < self.frames_back))
        x = x + Attention(self.num_heads, self.dtype, name="cross")(normed(x, 1), text, text_mask)
        h = nn.gelu(nn.Dense(4 * dim, dtype=self.dtype, name="mlp_in")(normed(x, 2)))
        return x + nn.Dense(dim, dtype=self.dtype, name="mlp_out")(h)


class Adapter(nn.Module):
    """r_phi(x0, c, t): queries from the image tokens laid on the sample's grid, keys and values from the condition.

    The output projection starts at zero, so training starts exactly at plain diffusion, and the output is bounded by
    `bound * tanh(. / bound)`: a free adapter can drive Eq. 6 down while the true bound gets worse.

    Over a condition of a single token (a class) the softmax is 1 whatever the query: attention then adds the same
    vector to every patch, and it is the MLP, on the sum, that relates x0 to c.

    `spectral_norm` caps the gain of every dense layer. That makes a steep r less likely but proves no Lipschitz
    constant: attention has none on unbounded inputs (Kim et al. 2021), layer norm's slope has no useful limit where its
    input hardly varies, and the norms' own scales are not capped.

    Attributes:
        depth: number of blocks (paper: 4).
        num_heads: attention heads (paper: 8).
        width: channels of the blocks.
        patch_size: side of the sample patch that one query answers for.
        bound: largest absolute value of r; 0 leaves it free.
        num_timesteps: T of the process.
        scale: largest distance of the forward scale from 1, below 1; 0 answers r alone.
        self_attention: whether the patches attend to one another as well.
        num_frames: F of the clips that a batch is made of, [B * F, ...], the frames of each one after another.
        frames_back: how many frames each one attends to, itself the last (paper: 3); 0 for images.
        spectral_norm: largest singular value that a kernel may have (see `cap_spectral_norms`); 0 leaves all free.
        dtype: type of the computation; the bound is applied in float32.
    """

    depth: int
    num_heads: int
    width: int
    patch_size: int
    bound: float
    num_timesteps: int
    scale: float = 0.0
    self_attention: bool = False
    num_frames: int = 1
    frames_back: int = 0
    spectral_norm: float = 0.0
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
            r [B, H, W, C], float32, |r| < bound; with a scale r and h, [B, H, W, 2 C], |h| < scale.
        """
        run = Adapter._run
        if self.spectral_norm > 0:
            cap = partial(cap_spectral_norms, cap=self.spectral_norm)
            run = nn.map_variables(run, "params", trans_in_fn=cap, init=self.is_initializing())
        return run(self, tokens, grid, t, context, sample_shape)

    def _run(
        self, tokens: Array, grid: tuple[int, int], t: Array, context: Context, sample_shape: Sequence[int]
    ) -> Array:
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
            over = (self.self_attention, self.num_frames, self.frames_back)
            block = AdapterBlock(self.num_heads, self.dtype, *over, name=f"block_{i}")
            x = block(x, emb, text, context.mask)
        x = nn.LayerNorm(dtype=self.dtype, name="out_norm")(x)
        out_dim = self.patch_size**2 * channels * (2 if self.scale else 1)
        r = nn.Dense(out_dim, dtype=jnp.float32, kernel_init=zeros, name="out")(x.astype(jnp.float32))
        r = depth_to_space(r.reshape(x.shape[0], rows, cols, out_dim), self.patch_size)
        return bounded(r, self.bound, self.scale)


def build(config: ConfigDict, dtype: jnp.dtype) -> Adapter:
    """The adapter of a whole config, computing in `dtype`."""
    return Adapter(
        depth=config.adapter.depth,
        num_heads=config.adapter.num_heads,
        width=config.adapter.width,
        patch_size=config.adapter.patch_size,
        bound=config.adapter.bound,
        scale=config.adapter.scale,
        spectral_norm=config.adapter.spectral_norm,
        self_attention=config.adapter.self_attention,
        num_frames=config.data.num_frames,
        frames_back=config.adapter.frames_back,
        num_timesteps=config.process.num_timesteps,
        dtype=dtype,
    )


def without_self_attention(shapes: Params) -> Params:
    """The shapes of an adapter's parameters as they are without self-attention, whose modulation is the last third."""

    def narrower(path: tuple, leaf: Any) -> Any:
        if path[-2].key != "modulation":
            return leaf
        return jax.ShapeDtypeStruct((*leaf.shape[:-1], leaf.shape[-1] * 2 // 3), leaf.dtype)

    kept = trees.select(shapes, lambda name: "/self/" not in name)
    return jax.tree_util.tree_map_with_path(narrower, kept)


def with_self_attention(params: Params) -> Params:
    """Parameters of an adapter without self-attention, on the host, for one with it, whose own layers they leave out:
    its modulation is zero, which leaves what it attends to plainly normed."""

    def wider(path: tuple, value: np.ndarray) -> np.ndarray:
        if path[-2].key != "modulation":
            return value
        return np.concatenate([value, np.zeros_like(value[..., : value.shape[-1] // 2])], axis=-1)

    return jax.tree_util.tree_map_with_path(wider, params)


def bounded(out: Array, bound: float, scale: float) -> Array:
    """r = bound tanh(. / bound), free at bound 0; with a scale the second half of the channels is h = scale tanh(.)."""
    if not scale:
        return bound * jnp.tanh(out / bound) if bound > 0 else out
    r, h = jnp.split(out, 2, axis=-1)
    return jnp.concatenate([bounded(r, bound, 0.0), scale * jnp.tanh(h)], axis=-1)


def cap_spectral_norms(variables: Params, cap: float) -> Params:
    """Divides every kernel whose largest singular value exceeds `cap` by as much as it exceeds it."""

    def limited(path: tuple, value: Array) -> Array:
        if path[-1].key != "kernel":
            return value
        return value / jnp.maximum(1.0, largest_singular_value(value) / cap)

    return jax.tree_util.tree_map_with_path(limited, variables)


def largest_singular_value(kernel: Array) -> Array:
    """|W|_2 of a kernel [M, N] by power iteration from a fixed start, so that there is no state to keep.

    The result is u^T W v with u and v held fixed, whose gradient in W is that of the singular value. It errs on the low
    side, by a few per cent for random matrices and hardly at all where one direction stands out.
    """

    def improve(_: int, v: Array) -> Array:
        v = kernel.T @ (kernel @ v)
        return v / jnp.maximum(jnp.linalg.norm(v), _TINY)

    start = jax.random.normal(jax.random.key(0), kernel.shape[1:], kernel.dtype)
    v = jax.lax.fori_loop(0, ITERATIONS, improve, start)
    Wv = kernel @ v
    u, v = jax.lax.stop_gradient((Wv / jnp.maximum(jnp.linalg.norm(Wv), _TINY), v))
    return u @ kernel @ v


@dataclass(frozen=True)
class Shift:
    """b(x0, t) = k_t r_phi(x0, c, t) for one batch of conditions, as the contextual chart takes it.

    Attributes:
        schedule: holds k_t.
        features: x0 [B, ...] -> image features; the expensive half, independent of t.
        relate: (features, t [B], shape of one x0) -> r [B, ...], where every example may have n rows of features and t
            in a row; of clips, n times the rows of all its frames.
        num_frames: F of the clips that a batch is made of: rows of one clip at one time stay together, because the
            adapter looks along them.
    """

    schedule: Schedule
    features: Callable[[Array], Array]
    relate: Callable[[Array, Array, tuple[int, ...]], Array]
    num_frames: int = 1

    def _scaled(self, features: Array, t: Array, shape: tuple[int, ...]) -> Array:
        r = self.relate(features, t, shape)
        return self.schedule.k[t].reshape(-1, *(1,) * (r.ndim - 1)) * r

    def __call__(self, x0: Array, t: Array) -> Array:
        """b_t, shaped like x0; t int32 [B] or scalar."""
        return self._scaled(self.features(x0), jnp.broadcast_to(t, x0.shape[:1]), x0.shape[1:])

    def pair(self, x0: Array, t: Array, s: Array) -> tuple[Array, Array]:
        """(b_t, b_s) from one encoding of x0, the two times as one batch."""
        return self._apart(self._scaled(*self._side_by_side(self.features(x0), t, s), x0.shape[1:]))

    def _side_by_side(self, features: Array, t: Array, s: Array) -> tuple[Array, Array]:
        """Features and times [2 B], an example's two rows together: a batch spread over devices stays where it is."""
        clips = lambda time: jnp.broadcast_to(time, features.shape[:1]).reshape(-1, self.num_frames)
        times = jnp.stack([clips(t), clips(s)], axis=1)
        rows = einops.repeat(features, "(c f) ... -> (c n f) ...", n=2, f=self.num_frames)
        return rows, times.reshape(-1)

    def _apart(self, both: Array) -> tuple[Array, Array]:
        """The two of every example, [2 B, ...] -> [B, ...] twice."""
        t, s = einops.rearrange(both, "(c n f) ... -> n (c f) ...", n=2, f=self.num_frames)
        return t, s


@dataclass(frozen=True)
class ScaledShift(Shift):
    """Shift and scale of the forward process (process/scaled.py), from an adapter that answers both.

    The scale is s_t = 1 + 4 k_t h with |h| < 1 from the adapter, as many channels again as r: 1 at t = 0, near 1 at T
    only where alpha_bar_T is near 0, and never 0, since 4 k_t <= 1. `relate` gives r and h side by side, [B, ..., 2 C].
    """

    def _warp(self, features: Array, t: Array, shape: tuple[int, ...]) -> Warp:
        r, h = jnp.split(self.relate(features, t, shape), 2, axis=-1)
        k_t = self.schedule.k[t].reshape(-1, *(1,) * (r.ndim - 1))
        return Warp(k_t * r, 1.0 + 4.0 * k_t * h)

    def _scaled(self, features: Array, t: Array, shape: tuple[int, ...]) -> Array:
        return self._warp(features, t, shape).shift

    def warp(self, x0: Array, t: Array) -> Warp:
        """Shift and scale at t, shaped like x0."""
        return self._warp(self.features(x0), jnp.broadcast_to(t, x0.shape[:1]), x0.shape[1:])

    def warps(self, x0: Array, t: Array, s: Array) -> tuple[Warp, Warp]:
        """Those at t and at s, from one encoding of x0."""
        both = self._warp(*self._side_by_side(self.features(x0), t, s), x0.shape[1:])
        return tuple(Warp(*parts) for parts in zip(*map(self._apart, both), strict=True))

    def straight(self, x: Array, x0_hat: Array, t: Array) -> Array:
        """y_t of x_t, for `Chart.predict`."""
        return scaled.straight(self.schedule, x, x0_hat, self.warp(x0_hat, t), t)

    def bent(self, y: Array, x0_hat: Array, s: Array) -> Array:
        """x_s of y_s, for `Chart.commit`."""
        return scaled.bent(self.schedule, y, x0_hat, self.warp(x0_hat, s), s)

    def carry(self, x: Array, x0_hat: Array, t: Array, s: Array, update: Callable[[Array], Array]) -> Array:
        """x at s from x at t through update(y_t) -> y_s, as `Chart.carry`."""
        return scaled.carried(self.schedule, x, x0_hat, *self.warps(x0_hat, t, s), t, s, update)
