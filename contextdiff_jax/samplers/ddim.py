"""DDIM (Song et al. 2021) and its inversion, in any chart: Eqs. 11 and 18."""

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.process.chart import Chart
from contextdiff_jax.process.forward import check_eta, ddim_posterior, effective_noise
from contextdiff_jax.process.schedule import Schedule, gather
from contextdiff_jax.samplers.loop import check_head, moves, run
from contextdiff_jax.types import Array


def ddim(
    chart: Chart,
    s: Schedule,
    key: Array,
    x_T: Array,
    num_steps: int,
    eta: float = 0.0,
    *,
    spacing: str | np.ndarray = "uniform",
    steps_offset: int = 0,
    clip: bool = False,
) -> Array:
    """Samples x0 [B, ...] from x_T by Eq. 18 with x0_hat in the place of x0.

    Args:
        chart: `chart.plain(f)` or `chart.contextual(f, b)`.
        s: schedule.
        key: for the noise; without influence at eta = 0. With one key per example, [B], an example does not depend on
            the batch it comes in.
        x_T: standard normal noise [B, ...].
        num_steps: network evaluations, 1..T.
        eta: 0 is deterministic, 1 the ancestral sampler.
        spacing: uniform, trailing or leading, see `samplers.timesteps`; or the times themselves, see
            `samplers.moves`.
        steps_offset: of leading spacing.
        clip: whether the data that a step aims at is clipped to [-1, 1], while its noise stays that of the unclipped
            x0_hat, as diffusers' DDIM has it.

    Raises:
        UserError: num_steps, eta or spacing out of range; a second head with other steps than Eq. 7's.
    """
    check_eta(eta)
    rows = moves(s.num_timesteps, num_steps, spacing, steps_offset=steps_offset)
    check_head(chart, rows, ancestral=not isinstance(eta, jax.core.Tracer) and eta == 1 and not clip)

    def step(x, memory, t, s_index, key):
        def update(y, x0_hat):
            y_s = ddim_posterior(s, y, x0_hat, 0.0, 0.0, t, s_index, eta).sample(key)
            if not clip:
                return y_s
            return y_s + jnp.sqrt(gather(s.alpha_bar, s_index, y)) * (jnp.clip(x0_hat, -1.0, 1.0) - x0_hat)

        x, _ = chart.move(x, t, s_index, update)
        return x, memory

    return run(step, key, x_T, rows, s)


def flow(chart: Chart, s: Schedule, x: Array, x0_hat: Array, t: Array, s_index: Array) -> Array:
    """The deterministic step from t to s < t under a given x0_hat, shifts included.

    It is the exact probability flow for a constant x0_hat, so the higher-order samplers are this step with a
    better one.
    """
    update = lambda y: ddim_posterior(s, y, x0_hat, 0.0, 0.0, t, s_index, 0.0).mean
    return chart.carry(x, x0_hat, t, s_index, update)


def ddim_invert(
    chart: Chart,
    s: Schedule,
    x0: Array,
    num_steps: int,
    *,
    spacing: str | np.ndarray = "uniform",
    steps_offset: int = 0,
) -> Array:
    """The deterministic trajectory from x0 up to x_T; without a shift and for eps-networks, diffusers' inverse DDIM.

    A step from s up to t shows the network x_s but the target time t, which keeps t = 0, where 1 - alpha_bar
    = 0, out of every denominator. What it answers is read at the level of noise that it was told; diffusers reads it
    at that of x_s, which for x0- and v-networks is another thing.

    Args:
        chart: as for `ddim`.
        s: schedule.
        x0: data [B, ...].
        num_steps: network evaluations, 1..T.
        spacing: as for `ddim`, whose times it visits in reverse.
        steps_offset: of leading spacing.

    Returns:
        [num_steps + 1, B, ...], x0 first.
    """
    rows = moves(s.num_timesteps, num_steps, spacing, steps_offset=steps_offset)[::-1]
    check_head(chart, rows)
    x0 = jnp.asarray(x0, jnp.result_type(x0, s.alpha_bar))

    def body(x, times):
        t, s_index = (jnp.full(x.shape[:1], i) for i in times)
        new = ascend(chart, s, x, chart.f(x, t), s_index, t).astype(x.dtype)
        return new, new

    _, trajectory = jax.lax.scan(body, x0, jnp.asarray(rows))
    return jnp.concatenate([x0[None], trajectory])


def ascend(chart: Chart, s: Schedule, x: Array, x0_hat: Array, s_index: Array, t: Array) -> Array:
    """One step of the inversion, from x at s up to t > s, under x0_hat = f(x, t)."""
    return chart.carry(x, x0_hat, s_index, t, lambda y: _ascend(s, y, x0_hat, s_index, t))


def _ascend(s: Schedule, y_s: Array, x0_hat: Array, s_index: Array, t: Array) -> Array:
    """y_t from y_s, t > s."""
    ab_s, ab_t = gather(s.alpha_bar, s_index, y_s), gather(s.alpha_bar, t, y_s)
    eps_hat = effective_noise(s, y_s, x0_hat, t)
    x0 = (y_s - jnp.sqrt(1.0 - ab_s) * eps_hat) / jnp.sqrt(ab_s)
    return jnp.sqrt(ab_t) * x0 + jnp.sqrt(1.0 - ab_t) * eps_hat
