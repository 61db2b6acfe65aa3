"""Ancestral sampling: Eq. 7."""

import numpy as np

from contextdiff_jax.process.chart import Chart
from contextdiff_jax.process.schedule import Schedule
from contextdiff_jax.samplers.ddim import ddim
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
) -> Array:
    """Samples x0 [B, ...] from x_T by Eq. 3 with x0_hat in the place of x0.

    Eq. 3 is Eq. 18 at eta = 1, where it also holds between times that are not neighbours. Arguments and
    errors are those of `ddim`.
    """
    return ddim(chart, s, key, x_T, num_steps, 1.0, spacing=spacing, steps_offset=steps_offset)
