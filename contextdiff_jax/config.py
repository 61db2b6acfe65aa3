"""Checks of a config before anything is built: each section by its owner, in whose room its `settings` stand."""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from contextdiff_jax.conditions import settings as conditions
from contextdiff_jax.data import settings as data
from contextdiff_jax.editing import settings as editing
from contextdiff_jax.errors import UserError
from contextdiff_jax.keys import Values, complete, differences, idle, leaves, put_at_rest, whole_paths
from contextdiff_jax.losses import settings as losses
from contextdiff_jax.models import adapter_settings as adapter
from contextdiff_jax.models import settings as models
from contextdiff_jax.process import settings as process
from contextdiff_jax.samplers import settings as samplers
from contextdiff_jax.training import settings as training

__all__ = ["check", "check_sections", "complete", "differences", "leaves", "put_at_rest", "whole_paths"]

OWNERS = (data, training, models, conditions, process, losses, adapter, samplers, editing)
# Of the section `eval`, whose owner stands to the right of what is built from a config.
EVALUATION = Values(
    positive="eval.num_samples eval.reference",
    not_negative="eval.bpd_images eval.bpd_timesteps eval.judge_steps",
)
SECTIONS = ("task", "preset", "seed", "data", "optim", "ema", "train", "mesh", "sharding")
LARGEST_FLOAT = 3.4e38  # of float32, in which everything is computed


def check_sections(config: Any, where: str) -> None:
    """Raises UserError where a config lacks what every run reads; `where` it comes from."""
    if not isinstance(config, ConfigDict):
        raise UserError(f"{where}: get_config() must return an ml_collections.ConfigDict, not {type(config).__name__}")
    missing = [name for name in SECTIONS if name not in config]
    if missing:
        raise UserError(
            f"{where}: the config has no {', '.join(missing)}; start from configs.common.base(TASK), or from a shipped "
            "config's get_config(), and change that"
        )


def check(config: ConfigDict) -> None:
    """Values that no part of the library accepts.

    Raises:
        UserError: names the key, the value and what is accepted.
    """
    flat, values = leaves(config), [owner.VALUES for owner in OWNERS] + [EVALUATION]
    _check_numbers(flat)
    for key, accepted in (choice for of_owner in values for choice in of_owner.choices.items()):
        if key in flat and flat[key] not in accepted:
            raise UserError(f"config.{key}={flat[key]!r} is unknown; accepted: {', '.join(accepted)}")
    for of_owner in values:
        _check_range(flat, of_owner.positive, lambda v: 0 < v < float("inf"), "greater than 0 and finite")
        _check_range(flat, of_owner.not_negative, lambda v: v >= 0, "0 or more")
        _check_range(flat, of_owner.fractions, lambda v: 0 <= v <= 1, "between 0 and 1")
    for owner in OWNERS:
        owner.check(config)
    for key, (rest, reason) in idle(config).items():
        raise UserError(f"config.{key}={flat[key]!r} cannot act: {reason}; set it to {rest!r}")


def _check_numbers(flat: dict[str, Any]) -> None:
    """Numbers that arrays and programs can hold; the ranges of each key come after."""
    for key, value in flat.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if isinstance(value, float) and not abs(value) <= LARGEST_FLOAT:
            raise UserError(f"config.{key}={value!r} must be finite, and at most {LARGEST_FLOAT:g} in size")
        if isinstance(value, int) and not abs(value) < 2**32:
            raise UserError(f"config.{key}={value!r} is too large; the largest is {2**32 - 1}")


def _check_range(flat: dict[str, Any], keys: str, holds: Callable[[Any], bool], words: str) -> None:
    for key in keys.split():
        if key in flat and not holds(flat[key]):
            raise UserError(f"config.{key}={flat[key]!r} must be {words}")
