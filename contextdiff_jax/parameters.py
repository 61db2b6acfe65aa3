"""Fresh parameters of Linen modules and their shapes, each module traced once for the shapes of its inputs.

Tracing a large network takes seconds, and a run or a loaded pipeline asks for its parameters' shapes several times.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import flax.linen as nn
import jax

from contextdiff_jax import draws
from contextdiff_jax.types import Array, Params


def init(module: nn.Module, key: Array, *args: Any, **kwargs: Any) -> Params:
    """Fresh parameters from the shapes of the inputs alone; pure, and may be traced.

    Args:
        module: hashable, as Linen modules of plain settings are.
        key: a typed JAX PRNG key.
        args: inputs, trees of arrays or of `jax.ShapeDtypeStruct`; what else they hold is taken as it is.
        kwargs: as `args`, by name.
    """
    leaves, tree = jax.tree.flatten((args, kwargs))
    return _program(module, tree, tuple(map(_shape, leaves)))(key)


def shapes(module: nn.Module, *args: Any, **kwargs: Any) -> Params:
    """`jax.ShapeDtypeStruct`s of what `init` gives."""
    return jax.eval_shape(lambda key: init(module, key, *args, **kwargs), jax.random.key(0))


def _shape(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if hasattr(leaf, "shape") else leaf


@lru_cache(maxsize=64)
def _program(module: nn.Module, tree: Any, leaves: tuple[Any, ...]) -> Callable[[Array], Params]:
    args, kwargs = jax.tree.unflatten(tree, leaves)
    # Lazily: a forward pass on dummy data would be folded by the compiler, weight by weight.
    return jax.jit(draws.in_few(partial(_init, module, args, kwargs)))


def _init(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], key: Array) -> Params:
    return module.lazy_init(key, *args, **kwargs)["params"]
