"""Low-rank adaptation (Hu et al. 2022): a kernel W becomes W + scale * down up; only down and up are trained."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
from flax import traverse_util
from ml_collections import ConfigDict

from contextdiff_jax import trees
from contextdiff_jax.errors import UserError
from contextdiff_jax.types import Array, Params


def targets(denoiser: Params, patterns: Iterable[str]) -> list[tuple[str, ...]]:
    """Paths of the layers whose kernels are adapted.

    Args:
        denoiser: arrays or shapes.
        patterns: regular expressions of kernels' names.

    Raises:
        UserError: a pattern that matches no kernel.
    """
    names = [name for name in trees.names(denoiser) if name.split("/")[-1] == "kernel"]
    for pattern in patterns:
        if not any(trees.matcher([pattern])(name) for name in names):
            raise UserError(f"config.train.lora.targets: {pattern!r} matches no kernel; names are like {names[0]}")
    return [tuple(name.split("/")[:-1]) for name in names if trees.matcher(patterns)(name)]


def init(key: Array, denoiser: Params, config: ConfigDict) -> Params:
    """{layer: {"down": [..., in, rank], "up": [rank, out]}}; up is zero, so that training starts at the given weights.

    Args:
        key: of the fresh values.
        denoiser: arrays or shapes.
        config: section `train.lora`.

    Raises:
        UserError: no targets, or a pattern that matches no kernel.
    """
    kernels, result = traverse_util.flatten_dict(denoiser), {}
    chosen = targets(denoiser, config.targets)
    if not chosen:
        raise UserError("config.train.lora.targets is empty; name kernels, e.g. ('attn2/(query|value)/kernel$',)")
    for number, path in enumerate(chosen):
        *space, width, out = kernels[*path, "kernel"].shape
        draw = jax.random.normal(jax.random.fold_in(key, number), (*space, width, config.rank))
        result[*path, "down"] = draw * width**-0.5
        result[*path, "up"] = jnp.zeros((config.rank, out))
    return traverse_util.unflatten_dict(result)


def merge(denoiser: Params, lora: Params, scale: float) -> Params:
    """The parameters with W + scale * down up in the place of every adapted W."""
    kernels, flat = traverse_util.flatten_dict(denoiser), traverse_util.flatten_dict(lora)
    for path, down in flat.items():
        if path[-1] == "down":
            where = (*path[:-1], "kernel")
            kernels[where] = kernels[where] + scale * (down @ flat[*path[:-1], "up"])
    return traverse_util.unflatten_dict(kernels)


def check(config: ConfigDict, params: Params) -> None:
    """Raises UserError where the whole config leaves nothing for a LoRA to do, or trains what it should keep.

    Args:
        config: the whole config, with a rank above 0.
        params: arrays or shapes of all parameters.
    """
    if not config.model.init_from and config.model.backbone != "sd":
        raise UserError(
            f"config.train.lora.rank={config.train.lora.rank} changes a trained model; name it: config.model.init_from"
        )
    trained = trees.matcher(config.train.trainable)
    layers = targets(params["denoiser"], config.train.lora.targets)
    kernels = ["/".join(("denoiser", *path, "kernel")) for path in layers]
    if any(trained(name) for name in kernels) or not any(trained(f"lora/{n}") for n in trees.names(params["lora"])):
        raise UserError(
            f"config.train.trainable={tuple(config.train.trainable)!r} with config.train.lora.rank="
            f"{config.train.lora.rank}: the LoRA is to be trained and the kernels under it are not; give e.g. "
            "('^lora/', '^adapter/')"
        )
