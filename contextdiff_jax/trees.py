"""Nested dicts of parameters, split by name and put together again."""

import hashlib
import re
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util


def merge(*trees: dict) -> dict:
    """One nested dict of all leaves; of leaves with the same name the last one counts."""
    flat = {}
    for tree in trees:
        flat |= traverse_util.flatten_dict(tree)
    return traverse_util.unflatten_dict(flat)


def select(tree: dict, wanted: Callable[[str], bool]) -> dict:
    """The leaves whose "/"-joined name is wanted; branches without any disappear."""
    flat = traverse_util.flatten_dict(tree, sep="/")
    return traverse_util.unflatten_dict({name: leaf for name, leaf in flat.items() if wanted(name)}, sep="/")


def split(tree: dict, patterns: Iterable[str]) -> tuple[dict, dict]:
    """(leaves in whose name one of the regular expressions is found, all others)."""
    found = matcher(patterns)
    return select(tree, found), select(tree, lambda name: not found(name))


def matcher(patterns: Iterable[str]) -> Callable[[str], bool]:
    """Whether one of the regular expressions is found in a name."""
    compiled = [re.compile(pattern) for pattern in patterns]
    return lambda name: any(pattern.search(name) for pattern in compiled)


def names(tree: Any) -> list[str]:
    """The "/"-joined names of all leaves."""
    return list(traverse_util.flatten_dict(tree, sep="/"))


def digest(tree: Any) -> str:
    """What tells one tree of arrays from another: a hash of names, shapes and float32 values."""
    result = hashlib.sha256()
    for name, leaf in sorted(traverse_util.flatten_dict(tree, sep="/").items()):
        value = np.ascontiguousarray(leaf, np.float32)
        result.update(f"{name} {value.shape}".encode())
        result.update(value)
    return result.hexdigest()[:16]


def cast(tree: dict, dtype: Any) -> dict:
    """The tree with its floating arrays, or the shapes of such, in this type."""

    def cast_leaf(value: Any) -> Any:
        if value.dtype == dtype or not jnp.issubdtype(value.dtype, jnp.floating):
            return value
        is_shape = isinstance(value, jax.ShapeDtypeStruct)
        return jax.ShapeDtypeStruct(value.shape, dtype) if is_shape else value.astype(dtype)

    return jax.tree.map(cast_leaf, tree)
