"""Eqs. 4 and 5: the bound and its terms."""

from collections.abc import Callable
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp

from contextdiff_jax.losses.decoder import log_density, log_mass
from contextdiff_jax.losses.masks import masked, summed
from contextdiff_jax.losses.variance import Variance, decoder_variance, kl_of_variances, reverse_variance
from contextdiff_jax.process import chart, forward, scaled
from contextdiff_jax.process.chart import Denoiser, Shift
from contextdiff_jax.process.schedule import Schedule, gather, index
from contextdiff_jax.types import Array

# Up to so many times of an example are written out: a CPU runs the gradient of a loop's convolutions ten times slower
_UNROLLED = 8


@flax.struct.dataclass
class Nelbo:
    """The negative evidence lower bound, Eq. 4, in nats per example [B]."""

    prior: Array
    reconstruction: Array
    diffusion: Array

    @property
    def total(self) -> Array:
        """Sum of the three terms, [B]."""
        return self.prior + self.reconstruction + self.diffusion


def posterior(
    s: Schedule,
    x0: Array,
    x0_hat: Array,
    t: Array,
    b_t: Array,
    b_prev: Array,
    b_t_hat: Array,
    b_prev_hat: Array,
    *,
    mask: Array | None = None,
    variance: Variance = "posterior",
) -> Array:
    """Eq. 5: KL(q(x_{t-1} | x_t, x0, c) || p_theta(x_{t-1} | x_t, c)) in nats, summed over elements.

    At t = 1 it is the quadratic part of the decoder's negative log-likelihood, whose variance is beta_1.

    Args:
        s: schedule.
        x0: data [B, ...].
        x0_hat: its estimate from x_t.
        t: integer [B] or scalar, 1..T.
        b_t: shift at t of x0.
        b_prev: shift at t-1 of x0.
        b_t_hat: shift at t of x0_hat.
        b_prev_hat: shift at t-1 of x0_hat.
        mask: True where an element counts.
        variance: of p_theta, see `reverse_variance`.

    Returns:
        [B].
    """
    A_t, B_t, _ = forward.posterior_coefficients(s, t, x0)
    # Eq. 7 minus Eq. 3 (the signs of Eqs. 24 and 25 as printed are wrong)
    mismatch = A_t * (x0_hat - x0) - B_t * (b_t_hat - b_t) + (b_prev_hat - b_prev)
    # KL(N(0, var_t) || N(mismatch, v)) = mismatch^2 / (2 v) + 1/2 (var_t / v - 1 - log(var_t / v))
    kl = forward.ratio(masked(mismatch, mask) ** 2, 2.0 * reverse_variance(s, t, x0, variance))
    if not (isinstance(variance, str) and variance == "posterior"):
        kl = kl + masked(jnp.broadcast_to(kl_of_variances(s, t, x0, variance), kl.shape), mask)
    return summed(kl)


def nelbo(
    s: Schedule,
    x0: Array,
    f: Denoiser,
    b: Shift | None,
    t: Array,
    key: Array,
    *,
    bins: int | None = 256,
    mask: Array | None = None,
    variance: Variance = "posterior",
) -> Nelbo:
    """Eq. 4 with its sum over t = 2..T estimated from one t per example, or from several.

    Args:
        s: schedule.
        x0: data [B, ...] in [-1, 1].
        f: (x_t, t) -> x0_hat.
        b: (x0, t) -> b_t, or None for plain diffusion.
        t: integer [B] or scalar, drawn uniformly from 1..T; the diffusion term is T times the KL at t, and 0
            at t = 1, whose place the reconstruction term takes. Or [B, n], drawn from 2..T: the diffusion term is
            then T - 1 times the mean of n KLs, and with n = T - 1 different times (see `times`) all of the sum.
        key: for the noise of x_t and x_1.
        bins: levels of discrete data; None for continuous data.
        mask: True where an element counts.
        variance: of p_theta, see `reverse_variance`.

    Returns:
        Three terms in nats per example.
    """
    x0, t = jnp.asarray(x0), index(s, t, lowest=2 if jnp.ndim(t) == 2 else 1)
    key_t, key_1 = jax.random.split(key)
    kl_at = partial(diffusion_term, s, x0, f, b, mask=mask, variance=variance)
    if jnp.ndim(t) == 2:
        diffusion = _over_times(s, x0, kl_at, t, key_t)
    else:
        t = jnp.broadcast_to(t, x0.shape[:1])
        diffusion = s.num_timesteps * jnp.where(t > 1, kl_at(t, key_t), 0.0)
    return Nelbo(
        prior=prior_term(s, x0, b, mask=mask),
        reconstruction=reconstruction_term(s, x0, f, b, key_1, bins=bins, mask=mask, variance=variance),
        diffusion=diffusion,
    )


def _over_times(s: Schedule, x0: Array, kl_at: Callable[[Array, Array], Array], t: Array, key: Array) -> Array:
    """(T - 1) / n times the sum of n KLs per example, [B]; t is [B, n] in 2..T."""
    count = jnp.shape(t)[1]
    if count == 0:  # T = 1: nothing but the reconstruction
        return jnp.zeros(x0.shape[:1], jnp.result_type(x0, s.alpha_bar))
    each, keys = jnp.swapaxes(jnp.asarray(t), 0, 1), jax.random.split(key, count)
    if count <= _UNROLLED:
        kls = jnp.stack([kl_at(each[i], keys[i]) for i in range(count)])
    else:
        _, kls = jax.lax.scan(lambda _, inputs: (None, kl_at(*inputs)), None, (each, keys))
    return (s.num_timesteps - 1) / count * kls.sum(axis=0)


def times(key: Array, T: int, num_t: int, size: int) -> Array:
    """Times for [B, n] of `nelbo`: int32 [size, min(num_t, T - 1)], all of 2..T where num_t reaches T - 1.

    Otherwise each is uniform on 2..T, one in each of num_t equal parts and evenly spread over the examples.
    """
    if num_t >= T - 1:
        return jnp.broadcast_to(jnp.arange(2, T + 1, dtype=jnp.int32), (size, T - 1))
    return low_discrepancy(key, T, num_t, size).T


def low_discrepancy(key: Array, T: int, num_t: int, num_images: int) -> Array:
    """Times in 2..T, int32 [num_t, num_images], each uniform: a row per stratum, images spread in it."""
    u = (jax.random.uniform(key) + jnp.arange(num_images) / num_images) % 1.0
    fraction = (jnp.arange(num_t)[:, None] + u) / num_t
    return jnp.minimum(2 + jnp.floor(fraction * (T - 1)), T).astype(jnp.int32)


def prior_term(s: Schedule, x0: Array, b: Shift | None, *, mask: Array | None = None) -> Array:
    """KL(q(x_T | x0, c) || N(0, I)) in nats [B]: through b_T it depends on the adapter."""
    T = jnp.full(x0.shape[:1], s.num_timesteps, jnp.int32)
    warp = chart.warp(b, x0, T)
    q = scaled.marginal(s, x0, warp, T)
    # 1/2 (mean^2 + var - 1 - log var) without its cancellation,  var = (1 - ab_T) scale^2
    ab_T = gather(s.alpha_bar, T, x0)
    twice = q.mean**2 - ab_T - jnp.log1p(-ab_T)
    if chart.has_scale(b):
        twice = twice + (1.0 - ab_T) * (warp.scale - 1.0) * (warp.scale + 1.0) - 2.0 * jnp.log(warp.scale)
    return summed(masked(0.5 * twice, mask))


def diffusion_term(
    s: Schedule,
    x0: Array,
    f: Denoiser,
    b: Shift | None,
    t: Array,
    key: Array,
    *,
    mask: Array | None = None,
    variance: Variance = "posterior",
) -> Array:
    """KL(q(x_{t-1} | x_t, x0, c) || p_theta(x_{t-1} | x_t, c)) in nats [B] at one x_t drawn from Eq. 1."""
    prev = jnp.maximum(t - 1, 0)
    if chart.has_scale(b):
        return _scaled_term(s, x0, f, b, t, key, mask=mask, variance=variance)
    b_t, b_prev = chart.pair(b, x0, t, prev)
    xt = forward.marginal(s, x0, b_t, t).sample(key)
    x0_hat, b_t_hat, b_prev_hat = chart.estimate(f, b, xt, t, prev)
    return posterior(s, x0, x0_hat, t, b_t, b_prev, b_t_hat, b_prev_hat, mask=mask, variance=variance)


def _scaled_term(
    s: Schedule, x0: Array, f: Denoiser, b: Shift, t: Array, key: Array, *, mask: Array | None, variance: Variance
) -> Array:
    """`diffusion_term` of a process with a forward scale; p_theta's variance is stretched by s_{t-1}(x0_hat)^2."""
    prev = jnp.maximum(t - 1, 0)
    now, before = b.warps(x0, t, prev)
    xt = scaled.marginal(s, x0, now, t).sample(key)
    x0_hat = f(xt, t)
    now_hat, before_hat = b.warps(x0_hat, t, prev)
    mismatch = scaled.mismatch(s, xt, x0, x0_hat, (now, before), (now_hat, before_hat), t)
    # The variance is v_t s_{t-1}(x0_hat)^2
    log_scale = 2.0 * (jnp.log(before.scale) - jnp.log(before_hat.scale))
    quadratic = forward.ratio((mismatch / before_hat.scale) ** 2, 2.0 * reverse_variance(s, t, x0, variance))
    return summed(masked(quadratic + kl_of_variances(s, t, x0, variance, log_scale), mask))


def reconstruction_term(
    s: Schedule,
    x0: Array,
    f: Denoiser,
    b: Shift | None,
    key: Array,
    *,
    bins: int | None = 256,
    mask: Array | None = None,
    variance: Variance = "posterior",
) -> Array:
    """-log p_theta(x0 | x1, c) in nats [B] at one x_1; the decoder is N(x0_hat, beta_1 I) (Ho et al. 2020), or has a
    table's variance.

    Eq. 7 at t = 1 has the mean x0_hat, without a shift, since A_1 = 1, B_1 = 0 and b_0 = 0; a scale is 1 at t = 0.
    """
    one = jnp.ones(x0.shape[:1], jnp.int32)
    x0_hat = f(chart.marginal(b, s, x0, one).sample(key), one)
    sigma = jnp.sqrt(decoder_variance(s, variance))
    log_prob = log_density if bins is None else partial(log_mass, bins=bins)
    return -summed(masked(log_prob(x0, x0_hat, sigma), mask))
