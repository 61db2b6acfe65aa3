"""Heun's second-order method, in any chart."""

import jax
import jax.numpy as jnp

from contextdiff_jax.process.chart import Chart
from contextdiff_jax.process.forward import ddim_posterior
from contextdiff_jax.process.schedule import Schedule
from contextdiff_jax.samplers.loop import run, timesteps
from contextdiff_jax.types import Array


def heun(
    chart: Chart,
    s: Schedule,
    key: Array,
    x_T: Array,
    num_steps: int,
    *,
    spacing: str = "uniform",
    steps_offset: int = 0,
) -> Array:
    """Samples x0 [B, ...] with two network evaluations per step, one in the last.

    Heun's trapezoid on d(y / sigma) = x0_hat d(alpha / sigma), the probability flow in the coordinates in which it stays
    finite from alpha_bar_T = 0 on: the DDIM step to s, then the same step again with the mean of the predictions at t and
    at s. At s = 0 there is no second prediction. Arguments and errors are those of `ddim`; the key has no influence.
    """
    grid = timesteps(s.num_timesteps, num_steps, spacing, steps_offset=steps_offset)

    def step(x, memory, t, s_index, key):
        euler = lambda y, x0_hat: ddim_posterior(s, y, x0_hat, 0.0, 0.0, t, s_index, 0.0).mean
        x_s, x0_hat = chart.move(x, t, s_index, euler)

        def correct(_):
            mean_x0_hat = (x0_hat + chart.f(x_s, s_index)) / 2
            return chart.carry(x, mean_x0_hat, t, s_index, lambda y: euler(y, mean_x0_hat)).astype(x_s.dtype)

        return jax.lax.cond(s_index[0] > 0, correct, lambda _: jnp.asarray(x_s), None), memory

    return run(step, key, x_T, grid, s)
