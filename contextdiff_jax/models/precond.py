"""What a network predicts, and x0_hat from it.

x0_hat is always computed from the raw x_t. The noise of eps- and v-networks is therefore the effective one,
eps_eff = (x_t - sqrt(ab_t) x0) / sqrt(1 - ab_t) = eps + b_t / sqrt(1 - ab_t), and there is no implicit
equation to solve.
"""

import jax.numpy as jnp

from contextdiff_jax.errors import UserError
from contextdiff_jax.process.forward import effective_noise, posterior_coefficients, ratio
from contextdiff_jax.process.schedule import Schedule, gather, index
from contextdiff_jax.types import Array

PREDICTIONS = ("x0", "eps", "v")


def to_x0_hat(s: Schedule, out: Array, xt: Array, t: Array, prediction: str = "x0") -> Array:
    """x0_hat from a network's output.

    Args:
        s: schedule.
        out: network output, shaped like xt.
        xt: raw noisy sample [B, ...].
        t: integer [B] or scalar, in 0..T.
        prediction: x0, eps or v.

    Returns:
        [B, ...]. An eps-network says nothing about x0 where alpha_bar_t = 0; there it is 0.
    """
    _check(prediction)
    ab_t = gather(s.alpha_bar, index(s, t), xt)
    if prediction == "eps":
        # x0 = (x_t - sqrt(1 - ab_t) eps_eff) / sqrt(ab_t)
        return ratio(xt - jnp.sqrt(1.0 - ab_t) * out, jnp.sqrt(ab_t))
    if prediction == "v":
        # x0 = sqrt(ab_t) x_t - sqrt(1 - ab_t) v
        return jnp.sqrt(ab_t) * xt - jnp.sqrt(1.0 - ab_t) * out
    return jnp.asarray(out)


def to_shift(s: Schedule, out: Array, t: Array) -> Array:
    """The shift of the step from t to t - 1 from a network's second head: (k_{t-1} + B_t k_t) out, 0 at t = 1.

    The factor is the largest that b_{t-1} - B_t b_t can have for |r| <= 1. t is an integer [B] or scalar, in 1..T.
    """
    t = index(s, t)
    _, B_t, _ = posterior_coefficients(s, jnp.maximum(t, 1), out)
    return (gather(s.k, jnp.maximum(t - 1, 0), out) + B_t * gather(s.k, t, out)) * out


def target(s: Schedule, x0: Array, xt: Array, t: Array, prediction: str = "x0") -> Array:
    """The network output for which `to_x0_hat`, otherwise called alike, returns x0; eps_eff is 0 at t = 0."""
    _check(prediction)
    if prediction == "x0":
        return jnp.asarray(x0)
    eps = effective_noise(s, xt, x0, t)
    if prediction == "eps":
        return eps
    ab_t = gather(s.alpha_bar, index(s, t), xt)
    # v = sqrt(ab_t) eps_eff - sqrt(1 - ab_t) x0
    return jnp.sqrt(ab_t) * eps - jnp.sqrt(1.0 - ab_t) * x0


def _check(prediction: str) -> None:
    if prediction not in PREDICTIONS:
        raise UserError(f"prediction {prediction!r} is unknown; accepted: {', '.join(PREDICTIONS)}")
