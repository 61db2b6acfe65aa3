"""Checks of a config before anything is built: each section by its owner, in whose room its `settings` stand."""

import numbers
from collections.abc import Callable, Collection, Iterable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from contextdiff_jax import keys
from contextdiff_jax.conditions import settings as conditions
from contextdiff_jax.data import settings as data
from contextdiff_jax.editing import settings as editing
from contextdiff_jax.encoders import settings as encoders
from contextdiff_jax.errors import UserError
from contextdiff_jax.keys import Values, differences, idle, leaves, require, whole_paths, with_later
from contextdiff_jax.losses import settings as losses
from contextdiff_jax.models import adapter_settings as adapter
from contextdiff_jax.models import recogniser_settings as recogniser
from contextdiff_jax.models import settings as models
from contextdiff_jax.process import settings as process
from contextdiff_jax.samplers import settings as samplers
from contextdiff_jax.training import settings as training

__all__ = [
    "check",
    "check_present",
    "check_sections",
    "complete",
    "differences",
    "leaves",
    "put_at_rest",
    "whole_paths",
    "with_later",
]

OWNERS = (
    *(data, training, models, conditions, process, losses, adapter, samplers, editing),
    *(encoders, recogniser),  # of what is trained here for diffusion to use
)
# Of the section `eval`, whose owner stands to the right of what is built from a config.
EVALUATION = Values(
    positive="eval.num_samples eval.reference",
    not_negative="eval.bpd_images eval.bpd_timesteps eval.judge_steps",
    whole="eval.num_samples eval.reference eval.bpd_images eval.bpd_timesteps",
    listed="eval.features",
    trained="eval.num_samples eval.recogniser eval.bpd_images eval.bpd_timesteps",
)
SECTIONS = ("task", "preset", "seed", "data", "optim", "ema", "train", "mesh", "sharding")
OF_TASKS = {
    "diffusion": ("encoder", "process", "model", "adapter", "loss", "sample"),
    "contrastive": ("clip",),
    "recogniser": ("recogniser",),
    "autoencoder": ("autoencoder",),
}
LARGEST_FLOAT = 3.4e38  # of float32, in which everything is computed


def check_sections(config: Any, where: str) -> None:
    """Raises UserError where a config lacks what every run reads; `where` it comes from."""
    if not isinstance(config, ConfigDict):
        raise UserError(f"{where}: get_config() must return an ml_collections.ConfigDict, not {type(config).__name__}")
    needed = (*SECTIONS, *OF_TASKS.get(str(config.get("task")), ()), *("eval",) * (config.get("task") == "diffusion"))
    if missing := [name for name in needed if name not in config]:
        raise UserError(
            f"{where}: the config has no {', '.join(missing)}; start from a shipped config's get_config(), such as "
            "configs/t2i.py's, and change that"
        )
    if "edit" in config:  # a caller of Pipeline.edit says them himself
        require(leaves(config), "edit.prompts edit.after_training")


def complete(saved: ConfigDict) -> ConfigDict:
    """A saved config with the keys that an older version did not have, and without what changed nothing.

    Raises:
        UserError: a section that is none.
    """
    result = keys.complete(saved)
    _put_sampling_at_rest(result)
    return result


def put_at_rest(config: ConfigDict, asked: Collection[str] = ()) -> None:
    """Leaves out what cannot act beside the rest of the config, unless it is among the keys that were asked for: those
    are refused by `check`, what a recipe brings is not."""
    keys.put_at_rest(config, asked)
    _put_sampling_at_rest(config, asked)


def _put_sampling_at_rest(config: ConfigDict, asked: Collection[str] = ()) -> None:
    if "sample" in config:
        samplers.put_at_rest(config.sample, [key.removeprefix("sample.") for key in asked if key.startswith("sample.")])


def check(config: ConfigDict) -> None:
    """Values that no part of the library accepts, and keys that are missing.

    Raises:
        UserError: names the key, the value and what is accepted.
    """
    config = with_later(config)
    check_present(config)
    flat, values = leaves(config), [owner.VALUES for owner in OWNERS] + [EVALUATION]
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


def check_present(config: ConfigDict) -> None:
    """Whether what is read of a config is there, and of the kind that is read.

    Raises:
        UserError: names the section or the keys.
    """
    flat, values = leaves(config), [owner.VALUES for owner in OWNERS] + [EVALUATION]
    needed = ("data", "train", *OF_TASKS.get(str(config.get("task")), ()))
    if missing := [name for name in needed if name not in config]:
        raise UserError(
            f"the config has no {', '.join(missing)}; start from a shipped one, such as configs/t2i.py, and change that"
        )
    for name in _sections(" ".join(of_owner.needed + " " + of_owner.trained for of_owner in values)):
        if name in config and not isinstance(config[name], ConfigDict):
            raise UserError(f"config.{name}={config[name]!r} is no section of a config")
    for of_owner in values:
        read = of_owner.needed.split() + (of_owner.trained.split() if "optim" in config else [])
        require(flat, " ".join(key for key in read if "." not in key or key.partition(".")[0] in config))
    _check_numbers(flat)
    for of_owner in values:
        of_numbers = f"{of_owner.positive} {of_owner.not_negative} {of_owner.fractions}"
        _check_kind(flat, of_numbers, (numbers.Real, np.ndarray, jax.Array), "a number")
        _check_kind(flat, of_owner.whole, numbers.Integral, "a whole number")
        _check_kind(flat, of_owner.listed, tuple, "a tuple or a list, such as (1, 2) or ()")


def _sections(keys: str) -> Iterable[str]:
    return dict.fromkeys(key.partition(".")[0] for key in keys.split() if "." in key)


def _check_kind(flat: dict[str, Any], keys: str, kind: type | tuple[type, ...], words: str) -> None:
    for key in keys.split():
        if key in flat and (not isinstance(flat[key], kind) or isinstance(flat[key], bool)):
            raise UserError(f"config.{key}={flat[key]!r} must be {words}")


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
