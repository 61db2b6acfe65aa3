"""DPM-Solver++(2M) (Lu et al. 2022), in any chart."""

import jax.numpy as jnp
import numpy as np

from contextdiff_jax.process.chart import Chart
from contextdiff_jax.process.schedule import Schedule, gather
from contextdiff_jax.samplers.ddim import flow
from contextdiff_jax.samplers.loop import check_head, moves, run
from contextdiff_jax.types import Array


def dpmpp_2m(
    chart: Chart,
    s: Schedule,
    key: Array,
    x_T: Array,
    num_steps: int,
    *,
    spacing: str | np.ndarray = "uniform",
    steps_offset: int = 0,
    first_order_last: bool = False,
) -> Array:
    """Samples x0 [B, ...] by the second-order multistep solver, one network evaluation per step.

    The DDIM step with x0_hat extrapolated in lambda = log(alpha / sigma) from the step before, in the shifts
    as well: with those of the plain x0_hat it would be of first order. A last step that ends at t = 0 is of first
    order; with `first_order_last` it is so wherever it ends. The other arguments and the errors are those of `ddim`;
    the key has no influence.
    """
    rows = moves(s.num_timesteps, num_steps, spacing, steps_offset=steps_offset)
    check_head(chart, rows)
    log_snr = 0.5 * (jnp.log(s.alpha_bar) - jnp.log1p(-s.alpha_bar))  # lambda_t

    def step(x, memory, t, s_index, key):
        x0_prev, h_prev = memory
        h = gather(log_snr, s_index, x) - gather(log_snr, t, x)
        # First order wherever an end of the interval is infinitely far: the first step, the last, zero
        # terminal SNR.
        second = jnp.isfinite(h) & jnp.isfinite(h_prev)
        if first_order_last:
            second &= gather(jnp.arange(s.num_timesteps + 1), t, x) != rows[-1, 0]
        share = jnp.where(second, h / (2.0 * h_prev), 0.0)
        x0_hat = chart.f(x, t)
        return flow(chart, s, x, x0_hat + share * (x0_hat - x0_prev), t, s_index), (x0_hat, h)

    x_T = jnp.asarray(x_T, jnp.result_type(x_T, s.alpha_bar))
    h_first = jnp.full(x_T.shape[:1] + (1,) * (x_T.ndim - 1), jnp.inf, x_T.dtype)
    return run(step, key, x_T, rows, s, memory=(jnp.zeros_like(x_T), h_first))
