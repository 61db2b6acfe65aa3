"""A judge in a folder: model.safetensors, its tensors by our parameters' paths and in our axes, and config.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors.numpy import load_file, save

from contextdiff_jax import parameters
from contextdiff_jax.files import atomic, write_json
from contextdiff_jax.types import Params

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def write(folder: Path, params: Params, about: Mapping[str, Any]) -> None:
    """Writes the weights, and config.json with `about` after them; the folder is made when absent."""
    flat = traverse_util.flatten_dict(jax.device_get(params), sep=".")
    with atomic(folder / WEIGHTS) as temporary:  # safetensors' own files are for the owner only
        temporary.write_bytes(save({name: np.ascontiguousarray(value) for name, value in flat.items()}))
    write_json(dict(about), folder / CONFIG)


def read(folder: Path) -> Params:
    """The weights that `write` wrote.

    Raises:
        Exception: of safetensors, for a damaged file.
    """
    return traverse_util.unflatten_dict(load_file(folder / WEIGHTS), sep=".")


def expected(net: nn.Module, shape: tuple[int, ...]) -> Params:
    """Shapes of the parameters of a network for images of this shape.

    Raises:
        Exception: of Flax, for sizes that make no network.
    """
    return parameters.shapes(net, jax.ShapeDtypeStruct((1, *shape), jnp.float32))


def misfits(params: Params, wanted: Params) -> list[str]:
    """"name: expected shape, found shape" of every tensor in which two trees differ."""
    of = lambda tree: {name: tuple(v.shape) for name, v in traverse_util.flatten_dict(tree, sep=".").items()}
    right, found = of(wanted), of(params)
    wrong = sorted(name for name in right.keys() | found.keys() if right.get(name) != found.get(name))
    return [f"{name}: expected {right.get(name)}, found {found.get(name)}" for name in wrong]
