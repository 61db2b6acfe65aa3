"""A forward scale s_t(x0, c) > 0 beside the shift: q(x_t | x0, c) = N(sqrt(ab_t) x0 + b_t, (1 - ab_t) diag s_t^2).

Given x0, x_t is an affine image of an ordinary diffusion y_t, whose noise is stretched by s_t around the data:

    x_t = sqrt(ab_t) x0 + b_t + s_t (y_t - sqrt(ab_t) x0)

so every Gaussian of the process is the ordinary one's, carried through that map (docs/scale.md). At s_t = 1 these are
Eqs. 1-3, to the last bit.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from contextdiff_jax.process import forward
from contextdiff_jax.process.forward import Gaussian, posterior_coefficients
from contextdiff_jax.process.schedule import Schedule, gather, index
from contextdiff_jax.types import Array


class Warp(NamedTuple):
    """Shift and scale of one time, both shaped like x0; the scale may be the number 1."""

    shift: Array
    scale: Array | float


def straight(s: Schedule, x: Array, x0: Array, warp: Warp, t: Array) -> Array:
    """y_t of x_t; t in 0..T."""
    y = x - warp.shift
    return y + (1.0 / warp.scale - 1.0) * _noise(s, y, x0, t)


def bent(s: Schedule, y: Array, x0: Array, warp: Warp, t: Array) -> Array:
    """x_t of y_t; t in 0..T."""
    return y + (warp.scale - 1.0) * _noise(s, y, x0, t) + warp.shift


def _noise(s: Schedule, y: Array, x0: Array, t: Array) -> Array:
    """What is stretched: y - sqrt(ab_t) x0."""
    return y - jnp.sqrt(gather(s.alpha_bar, index(s, t), x0)) * x0


def carried(
    s: Schedule, x: Array, x0: Array, now: Warp, then: Warp, t: Array, to: Array, update: Callable[[Array], Array]
) -> Array:
    """x at `to` from x at t through a step of the ordinary diffusion, update(y_t) -> y."""
    return bent(s, update(straight(s, x, x0, now, t)), x0, then, to)


def marginal(s: Schedule, x0: Array, warp: Warp, t: Array) -> Gaussian:
    """q(x_t | x0, c); t in 0..T."""
    plain = forward.marginal(s, x0, warp.shift, t)
    return Gaussian(plain.mean, plain.var * warp.scale**2)


def transition(s: Schedule, x_prev: Array, x0: Array, now: Warp, before: Warp, t: Array) -> Gaussian:
    """q(x_t | x_{t-1}, x0, c); t in 1..T."""
    step = lambda y: forward.transition(s, y, 0.0, 0.0, t)
    mean = carried(s, x_prev, x0, before, now, t - 1, t, lambda y: step(y).mean)
    return Gaussian(mean, step(x_prev).var * now.scale**2)


def posterior(s: Schedule, xt: Array, x0: Array, now: Warp, before: Warp, t: Array) -> Gaussian:
    """q(x_{t-1} | x_t, x0, c); with x0_hat and its warps for x0 and its, the mean of the sampling step. t in 1..T."""
    step = lambda y: forward.posterior(s, y, x0, 0.0, 0.0, t)
    mean = carried(s, xt, x0, now, before, t, jnp.maximum(t - 1, 0), lambda y: step(y).mean)
    return Gaussian(mean, step(xt).var * before.scale**2)


def mismatch(
    s: Schedule, xt: Array, x0: Array, x0_hat: Array, warps: tuple[Warp, Warp], warps_hat: tuple[Warp, Warp], t: Array
) -> Array:
    """Mean of `posterior` at x0_hat minus that at x0, without the cancellation of the two; t in 1..T.

    Args:
        s: schedule.
        xt: sample at t, [B, ...].
        x0: data.
        x0_hat: its estimate.
        warps: of x0 at t and at t - 1.
        warps_hat: of x0_hat, likewise.
        t: integer [B] or scalar.
    """
    (now, before), (now_hat, before_hat) = warps, warps_hat
    A_t, B_t, _ = posterior_coefficients(s, t, xt)
    root = jnp.sqrt(gather(s.alpha_bar, index(s, t), xt))
    keep, keep_hat = before.scale / now.scale, before_hat.scale / now_hat.scale
    # As of Eq. 7 minus Eq. 3, and what the scales add: 0 at scale 1
    error = x0_hat - x0
    of_shifts = A_t * error - B_t * keep_hat * (now_hat.shift - now.shift) + (before_hat.shift - before.shift)
    noise = xt - now.shift - root * x0
    return of_shifts + B_t * ((keep_hat - keep) * noise - (keep_hat - 1.0) * root * error)
