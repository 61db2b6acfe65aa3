"""Heun's second-order method, in any chart."""

import jax
import numpy as np

from contextdiff_jax.process.chart import Chart
from contextdiff_jax.process.schedule import Schedule
from contextdiff_jax.samplers.ddim import flow
from contextdiff_jax.samplers.loop import check_head, moves, run
from contextdiff_jax.types import Array


def heun(
    chart: Chart,
    s: Schedule,
    key: Array,
    x_T: Array,
    num_steps: int,
    *,
    spacing: str | np.ndarray = "uniform",
    steps_offset: int = 0,
) -> Array:
    """Samples x0 [B, ...] with two network evaluations per step, one in the last.

    The DDIM step to s, then the same step again with the mean of the predictions at t and at s: Heun's
    trapezoid on the probability flow written as d(y / sigma) = x0_hat d(alpha / sigma). In this form it is
    finite from alpha_bar_T = 0 on; the usual one, d(y / alpha) = eps_hat d(sigma / alpha), is not, and is
    unstable wherever alpha_bar_T is small. At s = 0 there is no second prediction. Arguments and errors are
    those of `ddim`; the key has no influence.
    """
    rows = moves(s.num_timesteps, num_steps, spacing, steps_offset=steps_offset)
    check_head(chart, rows)

    def step(x, memory, t, s_index, key):
        x0_hat = chart.f(x, t)
        x_s = flow(chart, s, x, x0_hat, t, s_index)

        def correct(x_s):
            return flow(chart, s, x, (x0_hat + chart.f(x_s, s_index)) / 2, t, s_index)

        return jax.lax.cond(s_index[0] > 0, correct, lambda x_s: x_s, x_s), memory

    return run(step, key, x_T, rows, s)
