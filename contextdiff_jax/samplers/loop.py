"""What the samplers share: the grid of times and the scan over it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.errors import UserError
from contextdiff_jax.process.schedule import Schedule
from contextdiff_jax.types import Array

SPACINGS = ("uniform", "trailing", "leading")

# (x, memory, t [B], s [B], key) -> (x at s, memory)
Step = Callable[[Array, Any, Array, Array, Array], tuple[Array, Any]]


def timesteps(T: int, num_steps: int, spacing: str = "uniform", *, steps_offset: int = 0) -> np.ndarray:
    """The times that sampling visits, falling from T (or near it) to 0.

    Args:
        T: number of timesteps of the process.
        num_steps: network evaluations, 1..T.
        spacing: uniform (evenly from T to 1), trailing (multiples of T / num_steps) or leading (multiples of
            T // num_steps, plus 1). The last two are diffusers' with t = theirs + 1, since our t = 0 is clean
            data.
        steps_offset: added to the times of leading spacing (Stable Diffusion: 1).

    Returns:
        int32 [num_steps + 1].

    Raises:
        UserError: num_steps, spacing or steps_offset out of range.
    """
    if isinstance(num_steps, bool) or not isinstance(num_steps, int | np.integer) or not 1 <= num_steps <= T:
        raise UserError(f"num_steps={num_steps!r} must be an integer from 1 to the process's T={T}")
    if spacing not in SPACINGS:
        raise UserError(f"spacing {spacing!r} is unknown; accepted: {', '.join(SPACINGS)}")
    if spacing == "uniform":
        times = np.linspace(T, 1, num_steps)
    elif spacing == "trailing":
        times = T - T / num_steps * np.arange(num_steps)
    else:
        times = np.arange(num_steps)[::-1] * (T // num_steps) + 1 + steps_offset
        if not 0 <= steps_offset <= T - 1 - (num_steps - 1) * (T // num_steps):
            raise UserError(f"steps_offset={steps_offset} puts {num_steps} steps outside 1..{T}; try 0")
    return np.append(np.rint(times), 0).astype(np.int32)


def run(step: Step, key: Array, x_T: Array, grid: np.ndarray, s: Schedule, memory: Any = None) -> Array:
    """Scans `step` over the grid.

    Args:
        step: one move from t to s.
        key: split into one per step.
        x_T: start [B, ...].
        grid: times [n + 1].
        s: schedule; x is carried in its precision or better.
        memory: initial value of whatever the sampler remembers, a pytree.

    Returns:
        x at the last time of the grid.
    """
    x_T = jnp.asarray(x_T, jnp.result_type(x_T, s.alpha_bar))

    def body(carry, inputs):
        t, s_index, key = inputs
        times = (jnp.full(x_T.shape[:1], i) for i in (t, s_index))
        new = step(*carry, *times, key)
        # Networks may answer in another precision; the carried one stays.
        return jax.tree.map(lambda n, old: jnp.asarray(n, old.dtype), new, carry), None

    keys = jax.random.split(key, len(grid) - 1)
    (x, _), _ = jax.lax.scan(body, (x_T, memory), (jnp.asarray(grid[:-1]), jnp.asarray(grid[1:]), keys))
    return x
