"""The variance of the reverse steps p_theta(x_{t-1} | x_t, c)."""

import jax.numpy as jnp

from contextdiff_jax.errors import UserError
from contextdiff_jax.process import forward
from contextdiff_jax.process.schedule import Schedule, gather, index
from contextdiff_jax.types import Array

VARIANCES = ("posterior", "beta")
Variance = str | Array  # a name, or a table [T+1] or [T+1, C]


def reverse_variance(s: Schedule, t: Array, like: Array, variance: Variance = "posterior") -> Array:
    """Variance of p_theta(x_{t-1} | x_t, c), broadcastable to `like`; t in 1..T.

    "posterior" is var_t of Eq. 3, right for data that x_t determines; "beta" is beta_t, right for data that
    x_t leaves uncertain. Both are the decoder's beta_1 at t = 1. A table [T+1], or per
    channel [T+1, C], is a learned one.
    """
    t = index(s, t, lowest=1)
    if not isinstance(variance, str):
        return gather(check_table(s, variance), t, like)
    if variance not in VARIANCES:
        raise UserError(f"variance {variance!r} is unknown; accepted: {', '.join(VARIANCES)}, or a table [T+1]")
    beta_t = gather(s.beta_t(jnp.arange(s.num_timesteps + 1)), t, like)
    if variance == "beta":
        return beta_t
    _, _, var_t = forward.posterior_coefficients(s, t, like)
    return jnp.where(gather(jnp.arange(s.num_timesteps + 1), t, like) == 1, beta_t, var_t)


def variance_table(s: Schedule, variance: Variance) -> Array:
    """The variances of all reverse steps, [T+1] or [T+1, C], 0 at t = 0: a table as it is, or what a name means."""
    if not isinstance(variance, str):
        return check_table(s, variance)
    of_steps = reverse_variance(s, jnp.arange(1, s.num_timesteps + 1), jnp.zeros((s.num_timesteps,)), variance)
    return jnp.concatenate([jnp.zeros_like(of_steps[:1]), of_steps])


def decoder_variance(s: Schedule, variance: Variance) -> Array:
    """Of p_theta(x_0 | x_1, c): beta_1 [], or what a table says, [] or [C]."""
    return 1.0 - s.alpha_bar[1] if isinstance(variance, str) else check_table(s, variance)[1]


def kl_of_variances(s: Schedule, t: Array, like: Array, variance: Variance, log_scale: Array = 0.0) -> Array:
    """1/2 (q - 1 - log q), which Eq. 5 has beside the mismatch; 0 at t = 1, where var_t is 0.

    q = exp(log_scale) var_t / v. Without cancellation as q comes near 1; the scale's part is 0 where log_scale is.
    """
    t = index(s, t, lowest=1)
    ab_t, ab_prev = gather(s.alpha_bar, t, like), gather(s.alpha_bar, jnp.maximum(t - 1, 0), like)
    if isinstance(variance, str) and variance == "beta":
        short = jnp.where(ab_prev < 1.0, forward.ratio(ab_prev - ab_t, 1.0 - ab_t), 0.0)  # 1 - var_t / beta_t
        return _stretched(-0.5 * (short + jnp.log1p(-short)), 1.0 - short, log_scale)
    _, _, var_t = forward.posterior_coefficients(s, t, like)
    v = reverse_variance(s, t, like, variance)
    log_p = jnp.log(jnp.where(ab_prev < 1.0, var_t, v)) - jnp.log(v)
    return _stretched(0.5 * (jnp.expm1(log_p) - log_p), jnp.exp(log_p), log_scale)


def _stretched(kl: Array, p: Array, log_scale: Array) -> Array:
    """1/2 (q - 1 - log q) of q = exp(log_scale) p from that of p, `kl`."""
    if isinstance(log_scale, float):  # none
        return kl
    return kl + 0.5 * (p * jnp.expm1(log_scale) - log_scale)


def check_table(s: Schedule, table: Array) -> Array:
    """A learned variance [T+1] or [T+1, C].

    Raises:
        UserError: another shape.
    """
    if jnp.ndim(table) not in (1, 2) or jnp.shape(table)[0] != s.num_timesteps + 1:
        raise UserError(
            f"variance of shape {jnp.shape(table)}; pass a name ({', '.join(VARIANCES)}) or a table "
            f"[{s.num_timesteps + 1}] or [{s.num_timesteps + 1}, C]"
        )
    return jnp.asarray(table)
