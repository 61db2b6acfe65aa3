"""Ancestral sampling: Eq. 7."""

import jax.numpy as jnp
import numpy as np

from contextdiff_jax.errors import UserError
from contextdiff_jax.losses import Variance, variance_table
from contextdiff_jax.process import forward
from contextdiff_jax.process.chart import Chart
from contextdiff_jax.process.forward import Gaussian
from contextdiff_jax.process.schedule import Schedule, gather
from contextdiff_jax.samplers.ddim import ddim
from contextdiff_jax.samplers.loop import check_head, moves, run
from contextdiff_jax.types import Array


def ddpm(
    chart: Chart,
    s: Schedule,
    key: Array,
    x_T: Array,
    num_steps: int,
    *,
    spacing: str | np.ndarray = "uniform",
    steps_offset: int = 0,
    variance: Variance | None = None,
    last_noise: bool = False,
) -> Array:
    """Samples x0 [B, ...] from x_T by Eq. 3 with x0_hat in the place of x0.

    Eq. 3 is Eq. 18 at eta = 1, where it also holds between times that are not neighbours. The other arguments and the
    errors are those of `ddim`.

    Args:
        variance: None takes Eq. 3's, and the last step's mean. What the bound has, a name ("beta") or a table of
            learned ones, [T+1] or [T+1, C], see `losses.reverse_variance`, is for steps from t to t - 1 alone.
        last_noise: with a variance: draw x0 from the decoder p(x0 | x_1, c), of which the bound speaks, and not its
            mean.

    Raises:
        UserError: a variance with steps that leave out times.
    """
    if variance is None:
        return ddim(chart, s, key, x_T, num_steps, 1.0, spacing=spacing, steps_offset=steps_offset)
    variance, rows = variance_table(s, variance), moves(s.num_timesteps, num_steps, spacing, steps_offset=steps_offset)
    if np.any(rows[:, 0] - rows[:, 1] != 1):
        raise UserError(
            f"num_steps={num_steps}: the variance of the bound is that of single steps; take all T={s.num_timesteps} "
            "of them, or a sampler that draws no noise: ddim, heun or dpmpp_2m"
        )
    check_head(chart, rows, ancestral=True)

    def step(x, memory, t, s_index, key):
        var = gather(variance, t, x)
        var = var if last_noise else jnp.where(gather(jnp.arange(s.num_timesteps + 1), t, x) > 1, var, 0.0)
        # Eq. 7, with the variance of the bound
        mean = lambda y, x0_hat: forward.posterior(s, y, x0_hat, 0.0, 0.0, t).mean
        x, _ = chart.move(x, t, s_index, lambda y, x0_hat: Gaussian(mean(y, x0_hat), var).sample(key))
        return x, memory

    return run(step, key, x_T, rows, s)
