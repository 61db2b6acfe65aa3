"""AdamW, or Muon for chosen matrices, with warm-up, decay of matrices only, clipping and learning rates by name."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from contextdiff_jax.errors import UserError
from contextdiff_jax.training.sharding import leaf_name
from contextdiff_jax.types import Array, Params

# Parts that a config may leave out or not train, whatever its recipe says of how they learn
PARTS = ("adapter/", "denoiser/", "process/")


def learning_rate(config: ConfigDict, step: Array | int) -> Array:
    """The learning rate of the update that follows `step` finished ones.

    Linear warm-up to `optim.lr` over `optim.warmup_steps` updates, then constant, or half a cosine to zero at
    `train.num_steps`.
    """
    optim, total = config.optim, config.train.num_steps
    step = jnp.asarray(step, jnp.float32)
    warmup = jnp.minimum(1.0, (step + 1) / max(1, optim.warmup_steps))
    if optim.schedule == "constant":
        return optim.lr * warmup
    progress = (step - optim.warmup_steps) / max(1, total - optim.warmup_steps)
    return optim.lr * warmup * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0)))


def make_optimizer(config: ConfigDict, params: Params) -> optax.GradientTransformation:
    """Clipping by the global norm, Adam or Muon, decoupled weight decay, learning-rate multipliers, schedule.

    Args:
        config: the whole config; `optim` and `train.num_steps` are read. `clip_norm` 0 does not clip.
        params: arrays or their shapes; their names are matched by `optim.lr_multipliers`, ((regex, factor),
            ...) of which the first that is found in a name counts, and by `optim.muon`.

    Raises:
        UserError: a regex matches no parameter, and does not speak of a part that this config leaves out.
    """
    optim = config.optim
    multipliers = _multipliers(optim.lr_multipliers, params)
    return optax.chain(
        optax.clip_by_global_norm(optim.clip_norm) if optim.clip_norm else optax.identity(),
        _directions(optim, params),
        optax.add_decayed_weights(optim.weight_decay, mask=_decayed),
        optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, multipliers)),
        optax.scale_by_learning_rate(lambda step: learning_rate(config, step)),
    )


def _directions(optim: ConfigDict, params: Params) -> optax.GradientTransformation:
    """Adam's direction of every parameter but those that `optim.muon` names, which take Muon's."""
    adam = optax.scale_by_adam(b1=optim.b1, b2=optim.b2, eps=optim.eps)
    if not optim.muon:
        return adam
    try:
        patterns = [re.compile(pattern) for pattern in optim.muon]
    except (re.error, TypeError) as error:
        raise UserError(f"config.optim.muon={optim.muon!r} must be regular expressions: {error}") from error
    matrices = [leaf_name(path) for path, x in jax.tree_util.tree_leaves_with_path(params) if x.ndim >= 2]
    for pattern in patterns:
        _check_found("muon", pattern.pattern, matrices)

    def label(path: tuple, x: Any) -> str:
        return "muon" if x.ndim >= 2 and any(p.search(leaf_name(path)) for p in patterns) else "adam"

    labels = lambda params: jax.tree_util.tree_map_with_path(label, params)
    return optax.partition({"adam": adam, "muon": _muon(optim.momentum)}, labels)


def _muon(momentum: float) -> optax.GradientTransformation:
    """Momentum made orthogonal, of the size of Adam's steps (Liu et al. 2025, arXiv:2502.16982).

    The last axis of a kernel is its outputs; all others together are its inputs.
    """
    axes = lambda x: MuonDimensionNumbers(tuple(range(x.ndim - 1)), (x.ndim - 1,))
    size = lambda x: 0.2 * max(math.prod(x.shape[:-1]), x.shape[-1]) ** 0.5
    return optax.chain(
        scale_by_muon(beta=momentum, weight_dimension_numbers=lambda params: jax.tree.map(axes, params)),
        optax.stateless(lambda updates, _: jax.tree.map(lambda x: size(x) * x, updates)),
    )


def _decayed(params: Params) -> Params:
    """True for matrices, unless they are tables of the process."""
    decayed = lambda path, x: x.ndim >= 2 and not leaf_name(path).startswith("process/")
    return jax.tree_util.tree_map_with_path(decayed, params)


def _multipliers(rules: Any, params: Params) -> Params:
    """One factor per parameter."""
    try:
        rules = [(re.compile(pattern).pattern, float(factor)) for pattern, factor in rules]
    except (re.error, TypeError, ValueError) as error:
        raise UserError(f"config.optim.lr_multipliers={rules!r} must be (regex, factor) pairs: {error}") from error
    names = [leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for pattern, _ in rules:
        _check_found("lr_multipliers", pattern, names)

    def factor_of(path: tuple, _: Any) -> float:
        return next((f for pattern, f in rules if re.search(pattern, leaf_name(path))), 1.0)

    return jax.tree_util.tree_map_with_path(factor_of, params)


def _check_found(key: str, pattern: str, names: list[str]) -> None:
    absent = tuple(part for part in PARTS if not any(name.startswith(part) for name in names))
    if not pattern.lstrip("^").startswith(absent) and not any(re.search(pattern, name) for name in names):
        there = f"names are like {names[0]} and {names[-1]}" if names else "no matrix is trained; leave it out"
        raise UserError(f"config.optim.{key}: {pattern!r} matches no parameter; {there}")
