"""Training objectives, one value per example: Eq. 6 (simple), Eq. 5 (posterior), Eq. 4 (nelbo).

A mask marks the elements that count. It may lack trailing axes (a video's frames: bool [B, F]); those are
filled in.
"""

from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr

from contextdiff_jax.errors import UserError
from contextdiff_jax.process import chart, forward
from contextdiff_jax.process.chart import Denoiser, Shift
from contextdiff_jax.process.schedule import Schedule, gather, index
from contextdiff_jax.types import Array

WEIGHTINGS = ("constant", "snr", "min_snr", "p2", "vlb", "lemma4")
VARIANCES = ("posterior", "beta")
Lipschitz = float | Array | tuple[Array, Array]


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


def simple(
    s: Schedule,
    x0: Array,
    x0_hat: Array,
    t: Array,
    *,
    weighting: str = "constant",
    gamma: float = 5.0,
    lipschitz: Lipschitz | None = None,
    mask: Array | None = None,
) -> Array:
    """Eq. 6: lambda_t times the mean squared error of x0_hat.

    Args:
        s: schedule.
        x0: data [B, ...].
        x0_hat: its estimate from x_t.
        t: integer [B] or scalar, 1..T.
        weighting: constant (1), snr (the eps-loss), min_snr (min(snr, gamma)), p2 (snr / (1 + snr)), vlb (the
            exact factor of the bound without a shift, per unit of squared error), lemma4 (the factor with which this
            is at least Eq. 5 over the number of elements, if `lipschitz` is what it says).
        gamma: ceiling of min_snr.
        lipschitz: C_t of r_phi(., c, t) for lemma4: a number, [T+1], or each example's own (C_t, C_{t-1}), [B] both.
        mask: True where an element counts.

    Returns:
        [B]; 0 for an example without any unmasked element.
    """
    lambda_t = weight(s, t, x0, weighting, gamma, lipschitz)
    counted = jnp.broadcast_to(_expand(mask, x0), jnp.shape(x0))
    total = _sum(lambda_t * _masked(x0_hat - x0, mask) ** 2)
    return total / jnp.maximum(_sum(counted), 1)


def weight(
    s: Schedule,
    t: Array,
    like: Array,
    weighting: str,
    gamma: float = 5.0,
    lipschitz: Lipschitz | None = None,
) -> Array:
    """lambda_t of Eq. 6, broadcastable to `like`; see `simple`."""
    if weighting not in WEIGHTINGS:
        raise UserError(f"weighting {weighting!r} is unknown; accepted: {', '.join(WEIGHTINGS)}")
    t = index(s, t, lowest=1)
    if weighting == "lemma4":
        return lipschitz_weight(s, t, like, *_lipschitz_pair(s, t, like, lipschitz))
    ab_t = gather(s.alpha_bar, t, like)
    snr_t = forward.ratio(ab_t, 1.0 - ab_t)
    if weighting == "vlb":
        # A_t^2 / (2 var_t) = (snr_{t-1} - snr_t) / 2
        A_t, _, _ = forward.posterior_coefficients(s, t, like)
        return 0.5 * forward.ratio(A_t**2, reverse_variance(s, t, like))
    return {
        "constant": jnp.ones_like(snr_t),
        "snr": snr_t,
        "min_snr": jnp.minimum(snr_t, gamma),
        "p2": ab_t,  # snr / (1 + snr)
    }[weighting]


def lipschitz_weight(s: Schedule, t: Array, like: Array, c_t: Array, c_prev: Array) -> Array:
    """lambda_t of Lemma 4, with which Eq. 6 (summed, not averaged, over elements) bounds Eq. 5 from above.

    Args:
        s: schedule.
        t: integer [B] or scalar, 1..T.
        like: array of the data's rank.
        c_t: Lipschitz constant of r_phi(., c, t), broadcastable to `like`.
        c_prev: that of r_phi(., c, t-1).
    """
    t = index(s, t, lowest=1)
    A_t, B_t, _ = forward.posterior_coefficients(s, t, like)
    k_t, k_prev = gather(s.k, t, like), gather(s.k, jnp.maximum(t - 1, 0), like)
    # Lemma 4:  |mismatch| <= (A_t + B_t k_t C_t + k_{t-1} C_{t-1}) |x0_hat - x0|
    return forward.ratio((A_t + B_t * k_t * c_t + k_prev * c_prev) ** 2, 2.0 * reverse_variance(s, t, like))


def _lipschitz_pair(s: Schedule, t: Array, like: Array, lipschitz: Lipschitz | None) -> tuple[Array, Array]:
    """(C_t, C_{t-1}), broadcastable to `like`."""
    if isinstance(lipschitz, tuple):
        return tuple(jnp.reshape(c, (-1, *(1,) * (jnp.ndim(like) - 1))) for c in lipschitz)
    size = s.num_timesteps + 1
    if lipschitz is None or jnp.shape(lipschitz) not in ((), (size,)):
        found = "None" if lipschitz is None else f"an array of shape {jnp.shape(lipschitz)}"
        raise UserError(f"weighting 'lemma4' with lipschitz={found}; pass a number or an array [{size}], or a pair")
    c = jnp.broadcast_to(jnp.asarray(lipschitz, s.alpha_bar.dtype), (size,))
    return gather(c, t, like), gather(c, jnp.maximum(t - 1, 0), like)


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
    variance: str = "posterior",
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
    kl = forward.ratio(_masked(mismatch, mask) ** 2, 2.0 * reverse_variance(s, t, x0, variance))
    if variance == "beta":
        t = index(s, t)
        ab_t, ab_prev = gather(s.alpha_bar, t, x0), gather(s.alpha_bar, jnp.maximum(t - 1, 0), x0)
        short = jnp.where(ab_prev < 1.0, forward.ratio(ab_prev - ab_t, 1.0 - ab_t), 0.0)  # 1 - var_t / beta_t
        kl = kl + _masked(jnp.broadcast_to(-0.5 * (short + jnp.log1p(-short)), kl.shape), mask)
    return _sum(kl)


def reverse_variance(s: Schedule, t: Array, like: Array, variance: str = "posterior") -> Array:
    """Variance of p_theta(x_{t-1} | x_t, c), broadcastable to `like`; t in 1..T.

    "posterior" is var_t of Eq. 3, right for data that x_t determines; "beta" is beta_t, right for data that
    x_t leaves uncertain. Both are the decoder's beta_1 at t = 1.
    """
    if variance not in VARIANCES:
        raise UserError(f"variance {variance!r} is unknown; accepted: {', '.join(VARIANCES)}")
    t = index(s, t, lowest=1)
    beta_t = gather(s.beta_t(jnp.arange(s.num_timesteps + 1)), t, like)
    if variance == "beta":
        return beta_t
    _, _, var_t = forward.posterior_coefficients(s, t, like)
    return jnp.where(gather(jnp.arange(s.num_timesteps + 1), t, like) == 1, beta_t, var_t)


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
    variance: str = "posterior",
) -> Nelbo:
    """Eq. 4 with its sum over t = 2..T estimated from one t per example.

    Args:
        s: schedule.
        x0: data [B, ...] in [-1, 1].
        f: (x_t, t) -> x0_hat.
        b: (x0, t) -> b_t, or None for plain diffusion.
        t: integer [B] or scalar, drawn uniformly from 1..T; the diffusion term is T times the KL at t, and 0
            at t = 1, whose place the reconstruction term takes.
        key: for the noise of x_t and x_1.
        bins: levels of discrete data; None for continuous data.
        mask: True where an element counts.
        variance: of p_theta, see `reverse_variance`.

    Returns:
        Three terms in nats per example.
    """
    x0, t = jnp.asarray(x0), index(s, t, lowest=1)
    t = jnp.broadcast_to(t, x0.shape[:1])
    key_t, key_1 = jax.random.split(key)
    kl = diffusion_term(s, x0, f, b, t, key_t, mask=mask, variance=variance)
    return Nelbo(
        prior=prior_term(s, x0, b, mask=mask),
        reconstruction=reconstruction_term(s, x0, f, b, key_1, bins=bins, mask=mask),
        diffusion=s.num_timesteps * jnp.where(t > 1, kl, 0.0),
    )


def prior_term(s: Schedule, x0: Array, b: Shift | None, *, mask: Array | None = None) -> Array:
    """KL(q(x_T | x0, c) || N(0, I)) in nats [B]: through b_T it depends on the adapter."""
    T = jnp.full(x0.shape[:1], s.num_timesteps, jnp.int32)
    q = forward.marginal(s, x0, jnp.zeros_like(x0) if b is None else b(x0, T), T)
    # 1/2 (mean^2 + var - 1 - log var),  var = 1 - ab_T
    ab_T = gather(s.alpha_bar, T, x0)
    return _sum(_masked(0.5 * (q.mean**2 - ab_T - jnp.log1p(-ab_T)), mask))


def diffusion_term(
    s: Schedule,
    x0: Array,
    f: Denoiser,
    b: Shift | None,
    t: Array,
    key: Array,
    *,
    mask: Array | None = None,
    variance: str = "posterior",
) -> Array:
    """KL(q(x_{t-1} | x_t, x0, c) || p_theta(x_{t-1} | x_t, c)) in nats [B] at one x_t drawn from Eq. 1."""
    b_t, b_prev = chart.pair(b, x0, t, jnp.maximum(t - 1, 0))
    x0_hat = f(forward.marginal(s, x0, b_t, t).sample(key), t)
    b_t_hat, b_prev_hat = chart.pair(b, x0_hat, t, jnp.maximum(t - 1, 0))
    return posterior(s, x0, x0_hat, t, b_t, b_prev, b_t_hat, b_prev_hat, mask=mask, variance=variance)


def reconstruction_term(
    s: Schedule,
    x0: Array,
    f: Denoiser,
    b: Shift | None,
    key: Array,
    *,
    bins: int | None = 256,
    mask: Array | None = None,
) -> Array:
    """-log p_theta(x0 | x1, c) in nats [B] at one x_1; the decoder is N(x0_hat, beta_1 I) (Ho et al. 2020).

    Eq. 7 at t = 1 has the mean x0_hat, without a shift, since A_1 = 1, B_1 = 0 and b_0 = 0.
    """
    one = jnp.ones(x0.shape[:1], jnp.int32)
    b_1 = jnp.zeros_like(x0) if b is None else b(x0, one)
    x0_hat = f(forward.marginal(s, x0, b_1, one).sample(key), one)
    sigma = jnp.sqrt(1.0 - s.alpha_bar[1])
    log_prob = log_density if bins is None else partial(log_mass, bins=bins)
    return -_sum(_masked(log_prob(x0, x0_hat, sigma), mask))


def log_density(x: Array, mean: Array, sigma: Array) -> Array:
    """log N(x; mean, sigma^2), elementwise."""
    return -0.5 * ((x - mean) / sigma) ** 2 - jnp.log(sigma) - 0.5 * jnp.log(2.0 * jnp.pi)


def log_mass(x: Array, mean: Array, sigma: Array, bins: int) -> Array:
    """log of the mass that N(mean, sigma^2) gives to the bin around x, elementwise (Ho et al. 2020, Eq. 13).

    Args:
        x: values on the grid -1 + 2 i / (bins - 1).
        mean: like x.
        sigma: standard deviation, scalar or like x.
        bins: number of levels; the first and the last bin reach to infinity.
    """
    check_bins(bins)
    half = 1.0 / (bins - 1)
    # Mirrored so that the bin lies at or below the mean: the lower tail keeps its relative precision, however
    # far out.
    sign = jnp.where(x > mean, -1.0, 1.0)
    z = sign * (x - mean)
    upper, lower = log_ndtr((z + half) / sigma), log_ndtr((z - half) / sigma)
    inner = upper + jnp.log(-jnp.expm1(jnp.minimum(lower - upper, -jnp.finfo(upper.dtype).tiny)))
    first, last = log_ndtr((x + half - mean) / sigma), log_ndtr((mean - x + half) / sigma)
    return jnp.where(x < -1.0 + half, first, jnp.where(x > 1.0 - half, last, inner))


def check_bins(bins: int | None) -> None:
    """Refuses fewer than two levels."""
    if bins is not None and (isinstance(bins, bool) or int(bins) != bins or bins < 2):
        raise UserError(
            f"bins={bins} must be an integer of 2 or more (8-bit data: 256), or None if continuous"
        )


def _expand(mask: Array | None, like: Array) -> Array:
    """The mask with the axes it lacks, broadcastable to `like`."""
    if mask is None:
        return jnp.ones((), bool)
    mask = jnp.asarray(mask, bool)
    return mask.reshape(mask.shape + (1,) * (jnp.ndim(like) - mask.ndim))


def _masked(values: Array, mask: Array | None) -> Array:
    """0 in the place of what does not count, so that not even a NaN there matters."""
    return values if mask is None else jnp.where(_expand(mask, values), values, 0.0)


def _sum(values: Array) -> Array:
    """Sum over everything but the batch, [B]."""
    return jnp.sum(values, axis=tuple(range(1, values.ndim)))
