"""Samplers, `(chart, s, key, x_T, num_steps, *, spacing=...) -> x0`, each written once for any chart."""

from collections.abc import Callable

from contextdiff_jax.errors import UserError
from contextdiff_jax.samplers.ddim import ddim, ddim_invert
from contextdiff_jax.samplers.ddpm import ddpm
from contextdiff_jax.samplers.dpmpp import dpmpp_2m
from contextdiff_jax.samplers.heun import heun
from contextdiff_jax.samplers.loop import SPACINGS, moves, timesteps
from contextdiff_jax.samplers.scheduler_config import SchedulerConfig, from_scheduler_config

SAMPLERS = {"ddpm": ddpm, "ddim": ddim, "heun": heun, "dpmpp_2m": dpmpp_2m}

__all__ = [
    "SAMPLERS",
    "SPACINGS",
    "SchedulerConfig",
    "ddim",
    "ddim_invert",
    "ddpm",
    "dpmpp_2m",
    "from_scheduler_config",
    "get",
    "heun",
    "moves",
    "timesteps",
]


def get(name: str) -> Callable:
    """The sampler of that name."""
    if name not in SAMPLERS:
        raise UserError(f"sampler {name!r} is unknown; accepted: {', '.join(SAMPLERS)}")
    return SAMPLERS[name]
