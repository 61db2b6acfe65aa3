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
from contextdiff_jax.process.forward import Gaussian
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
