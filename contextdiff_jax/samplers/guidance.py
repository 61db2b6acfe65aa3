"""The one place where predictions are blended."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from contextdiff_jax.errors import UserError
from contextdiff_jax.models import precond
from contextdiff_jax.process.chart import Denoiser
from contextdiff_jax.process.schedule import Schedule, gather, index
from contextdiff_jax.types import Array

THRESHOLDS = (None, "static", "dynamic")


def classifier_free(
    f_both: Callable[[Array, Array], tuple[Array, Array]],
    s: Schedule,
    scale: float | Array,
    *,
    rescale: float | Array = 0.0,
    prediction: str = "x0",
    interval: tuple[float, float] | Array = (0.0, 1.0),
    threshold: str | None = None,
    percentile: float = 0.995,
) -> Denoiser:
    """A guided denoiser (Ho and Salimans 2022), blended in x0_hat, before any shift is taken from it.

    Args:
        f_both: (x_t, t) -> (x0_hat with the condition, x0_hat without it).
        s: schedule.
        scale: 1 is the conditional model, 0 the unconditional one; a number or [B]. (A pipeline, like diffusers, takes
            every scale of at most 1 as none: there 0 draws the conditional model.)
        rescale: 0..1, how far the standard deviation of the guided prediction is drawn back to the conditional one's
            (Lin et al. 2024, section 3.4; diffusers' `guidance_rescale`).
        prediction: x0, eps or v, in which that is taken: what the network answers.
        interval: fractions (low, high) of T between which guidance acts; outside it the scale is 1
            (Kynkaanniemi et al. 2024).
        threshold: None, "static" (clip to [-1, 1]) or "dynamic" (clip to a percentile of |x0_hat| and divide
            by it, Saharia et al. 2022).
        percentile: of the dynamic threshold, 0..1.

    Returns:
        f(x_t, t) -> x0_hat.
    """
    _check(scale, rescale, interval, threshold, percentile)
    # The fractions may be float32: the edges are met within a thousandth of a step.
    low, high = interval[0] * s.num_timesteps - 1e-3, interval[1] * s.num_timesteps + 1e-3

    def f(x: Array, t: Array) -> Array:
        cond, null = f_both(x, t)
        per_example = jnp.reshape(scale, (-1,) + (1,) * (cond.ndim - 1)) if jnp.ndim(scale) else scale
        # null + scale (cond - null), in the form that is exact at scale = 1
        x0_hat = cond + (per_example - 1.0) * (cond - null)
        if not _is(rescale, 0.0):
            x0_hat = _rescaled(s, x, t, cond, x0_hat, rescale, prediction)
        if not _is(interval, (0.0, 1.0)):
            at = gather(jnp.arange(s.num_timesteps + 1), index(s, t), x)
            x0_hat = jnp.where((low <= at) & (at <= high), x0_hat, cond)
        return _threshold(x0_hat, threshold, percentile)

    return f


def _rescaled(
    s: Schedule, x: Array, t: Array, cond: Array, x0_hat: Array, rescale: float | Array, prediction: str
) -> Array:
    """The guided x0_hat whose prediction is multiplied by rescale std(conditional) / std(guided) + 1 - rescale."""
    output = lambda x0: precond.target(s, x0, x, t, prediction)
    factor = rescale * _std(output(cond)) / jnp.maximum(_std(output(x0_hat)), 1e-12) + (1.0 - rescale)
    if prediction == "x0":
        return x0_hat * factor
    # x0_hat is affine in the prediction: about that of prediction 0 it is stretched alike, and factor 1 changes no bit
    still = precond.to_x0_hat(s, jnp.zeros_like(x0_hat), x, t, prediction)
    return factor * x0_hat + (1.0 - factor) * still


def _threshold(x0_hat: Array, kind: str | None, percentile: float) -> Array:
    if kind == "static":
        return jnp.clip(x0_hat, -1.0, 1.0)
    if kind == "dynamic":
        size = jnp.abs(x0_hat).reshape(x0_hat.shape[0], -1)
        limit = jnp.maximum(jnp.quantile(size, percentile, axis=1), 1.0)
        limit = limit.reshape(-1, *(1,) * (x0_hat.ndim - 1))
        return jnp.clip(x0_hat, -limit, limit) / limit
    return x0_hat


def _is(value: Any, known: Any) -> bool:
    """Whether a number is known before tracing, and this one."""
    return not isinstance(value, Tracer) and np.array_equal(value, known)


def _std(x: Array) -> Array:
    """Standard deviation of each example, [B, 1, ..., 1]."""
    return jnp.std(x, axis=tuple(range(1, x.ndim)), keepdims=True)


def _check(scale, rescale, interval, threshold, percentile) -> None:
    known = lambda value: not isinstance(value, Tracer)
    if isinstance(scale, int | float) and not abs(scale) < float("inf"):
        raise UserError(f"guidance scale={scale} must be a finite number; 1 turns guidance off")
    if known(rescale) and not 0.0 <= rescale <= 1.0:
        raise UserError(f"guidance rescale={rescale} must lie between 0 and 1")
    if len(interval) != 2 or known(interval) and not 0.0 <= interval[0] < interval[1] <= 1.0:
        raise UserError(f"guidance interval={interval} must be two rising fractions of T, e.g. (0.0, 1.0)")
    if threshold not in THRESHOLDS:
        raise UserError(f"threshold {threshold!r} is unknown; accepted: None, static, dynamic")
    if not 0.0 < percentile <= 1.0:
        raise UserError(
            f"percentile={percentile} of dynamic thresholding must lie between 0 and 1, e.g. 0.995"
        )
