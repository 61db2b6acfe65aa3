"""Contextualized diffusion models (ContextDiff, ICLR 2024) in JAX.

    import contextdiff_jax as cdx

The stable names: `schedule`, `forward`, `chart`, `samplers`, `losses`, `guidance`, `evaluate`, `Pipeline`.
And the rooms `data`, `encoders`, `models`, `formats`, with their modules.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from contextdiff_jax import evaluate, losses, samplers
    from contextdiff_jax.pipeline import Pipeline
    from contextdiff_jax.process import chart, forward, schedule
    from contextdiff_jax.samplers import guidance

_PLACES = {
    "chart": "contextdiff_jax.process.chart",
    "evaluate": "contextdiff_jax.evaluate",
    "forward": "contextdiff_jax.process.forward",
    "guidance": "contextdiff_jax.samplers.guidance",
    "losses": "contextdiff_jax.losses",
    "samplers": "contextdiff_jax.samplers",
    "schedule": "contextdiff_jax.process.schedule",
}
# With the modules that are not imported by their room itself.
_ROOMS = {
    "data": (),
    "encoders": ("vae", "vq", "inception", "dinov2"),
    "formats": (),
    "models": ("adapter", "sd_unet", "unet"),
}
__all__ = ["Pipeline", "chart", "evaluate", "forward", "guidance", "losses", "samplers", "schedule"]


def __getattr__(name: str) -> Any:
    """Imports each part when it is first asked for, so that a command line error costs no second of start-up."""
    if name == "Pipeline":
        return importlib.import_module("contextdiff_jax.pipeline").Pipeline
    if name in _PLACES:
        return importlib.import_module(_PLACES[name])
    if name in _ROOMS:
        for module in _ROOMS[name]:
            importlib.import_module(f"contextdiff_jax.{name}.{module}")
        return importlib.import_module(f"contextdiff_jax.{name}")
    raise AttributeError(f"module 'contextdiff_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS, "__version__"])
