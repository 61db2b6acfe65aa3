"""What the samplers share: the times they visit and the scan over them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.errors import UserError
from contextdiff_jax.process.chart import Chart
from contextdiff_jax.process.schedule import Schedule
from contextdiff_jax.types import Array

SPACINGS = ("uniform", "trailing", "leading")

# (x, memory, t [B], s [B], key) -> (x at s, memory)
Step = Callable[[Array, Any, Array, Array, Array], tuple[Array, Any]]


def timesteps(T: int, num_steps: int, spacing: str = "uniform", *, steps_offset: int = 0) -> np.ndarray:
    """The times that sampling visits, falling from T (or near it) to 0.

    All three spacings are diffusers' with t = theirs + 1, since our t = 0 is clean data, down to how they round.

    Args:
        T: number of timesteps of the process.
        num_steps: network evaluations, 1..T.
        spacing: uniform (evenly from T to 1; their linspace), trailing (multiples of T / num_steps) or leading
            (multiples of T // num_steps, plus 1).
        steps_offset: added to the times of leading spacing (Stable Diffusion: 1).

    Returns:
        int32 [num_steps + 1].

    Raises:
        UserError: num_steps, spacing or steps_offset out of range.
    """
    check_num_steps(T, num_steps)
    if spacing not in SPACINGS:
        raise UserError(f"spacing {spacing!r} is unknown; accepted: {', '.join(SPACINGS)}")
    if spacing == "uniform":
        # Counted from below, which decides where a half is rounded to; a single step starts at T.
        times = np.rint(np.linspace(0, T - 1, num_steps))[::-1] + 1 if num_steps > 1 else [T]
    elif spacing == "trailing":
        # arange may add a zero at the end by rounding
        times = np.arange(T, 0, -T / num_steps)[:num_steps]
    else:
        if (most := most_steps(T, num_steps, spacing, steps_offset)) < num_steps:
            remedy = f"take at most {most}" if most else f"it is from 0 to {T - 1}"
            raise UserError(f"{num_steps} leading steps with steps_offset={steps_offset} leave 1..{T}; {remedy}")
        times = np.arange(num_steps)[::-1] * (T // num_steps) + 1 + steps_offset
    return np.append(np.rint(times), 0).astype(np.int32)


def most_steps(T: int, num_steps: int, spacing: str, steps_offset: int) -> int:
    """The largest number of steps, at most `num_steps`, whose times are among 1..T; 0 where there is none."""
    if spacing != "leading":
        return min(num_steps, T)
    numbers = range(min(num_steps, T), 0, -1)
    return next((n for n in numbers if 0 <= steps_offset <= T - 1 - (n - 1) * (T // n)), 0)


def check_num_steps(T: int, num_steps: int) -> None:
    """Refuses what is not a number of steps from 1 to T."""
    if isinstance(num_steps, bool) or not isinstance(num_steps, int | np.integer) or not 1 <= num_steps <= T:
        raise UserError(f"num_steps={num_steps!r} must be an integer from 1 to the process's T={T}")


def moves(T: int, num_steps: int, spacing: str | np.ndarray = "uniform", *, steps_offset: int = 0) -> np.ndarray:
    """Where each step of a sampler starts and ends, rows (t, s), int32 [num_steps, 2].

    Args:
        T: number of timesteps of the process.
        num_steps: network evaluations.
        spacing: a name, see `timesteps`; or falling times [num_steps + 1]; or the rows themselves.
        steps_offset: of leading spacing.

    Raises:
        UserError: as `timesteps`; times of another shape or type, or out of order.
    """
    check_num_steps(T, num_steps)
    if isinstance(spacing, str):
        times = timesteps(T, num_steps, spacing, steps_offset=steps_offset)
    else:
        times = np.asarray(spacing)
        if not np.issubdtype(times.dtype, np.integer) or times.shape not in ((num_steps + 1,), (num_steps, 2)):
            raise UserError(
                f"spacing is an array of {times.dtype}, shape {times.shape}; pass a name ({', '.join(SPACINGS)}), "
                f"integer times [{num_steps + 1}] or rows (t, s) [{num_steps}, 2]"
            )
    rows = times if times.ndim == 2 else np.stack([times[:-1], times[1:]], axis=1)
    t, s = rows.T
    if not (np.all(np.diff(t) < 0) and np.all((s >= 0) & (s <= t)) and t[-1] >= 1 and t[0] <= T):
        raise UserError(f"spacing holds times out of order: each step goes from t in 1..{T}, falling, to s in 0..t")
    return rows.astype(np.int32)


def check_head(chart: Chart, rows: np.ndarray, *, ancestral: bool = False) -> None:
    """A second head predicts b_{t-1} - B_t b_t, the shift of Eq. 7's steps from t to t - 1; of no other step.

    Raises:
        UserError: the chart has such a head, and these moves, or this sampler, are others.
    """
    if not chart.two_headed or (ancestral and np.all(rows[:, 0] - rows[:, 1] == 1)):
        return
    raise UserError(
        "a second head (config.adapter.reverse='head') predicts the shift of single steps of ddpm: take all T of them, "
        f"not num_steps={len(rows)} of another kind; or sample the plain process, without the adapter"
    )


def run(step: Step, key: Array, x_T: Array, rows: np.ndarray, s: Schedule, memory: Any = None) -> Array:
    """Scans `step` over the moves.

    Args:
        step: one move from t to s.
        key: split into one per step; or one key per example, [B], each split into one per step.
        x_T: start [B, ...].
        rows: moves [n, 2].
        s: schedule; x is carried in its precision or better.
        memory: initial value of whatever the sampler remembers, a pytree.

    Returns:
        x at the end of the last move.
    """
    x_T = jnp.asarray(x_T, jnp.result_type(x_T, s.alpha_bar))

    def body(carry, inputs):
        t, s_index, key = inputs
        times = (jnp.full(x_T.shape[:1], i) for i in (t, s_index))
        new = step(*carry, *times, key)
        # Networks may answer in another precision; the carried one stays.
        return jax.tree.map(lambda n, old: jnp.asarray(n, old.dtype), new, carry), None

    one_for_all = key.ndim == 0 or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    split = partial(jax.random.split, num=len(rows))
    keys = split(key) if one_for_all else jax.vmap(split, out_axes=1)(key)
    (x, _), _ = jax.lax.scan(body, (x_T, memory), (jnp.asarray(rows[:, 0]), jnp.asarray(rows[:, 1]), keys))
    return x
