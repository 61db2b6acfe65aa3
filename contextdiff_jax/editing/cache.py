"""What an editor keeps for the next edit: programs, networks, whatever is the same for it."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import jax

T = TypeVar("T")


class Kept:
    """The things that were asked for last, each by what it depends on.

    Args:
        most: how many; the one that was asked for longest ago goes first.
    """

    def __init__(self, most: int):
        self._most, self._things = most, OrderedDict()

    def of(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` has returned for this key, or returns now."""
        if key not in self._things:
            self._things[key] = make()
        self._things.move_to_end(key)
        while len(self._things) > self._most:
            self._things.popitem(last=False)
        return self._things[key]

    def found(self, key: Hashable) -> Any:
        """What is kept under this key; None where nothing is."""
        return self._things.get(key)


def takes(program: jax.stages.Compiled, args: tuple[Any, ...]) -> bool:
    """Whether a program that was compiled from shapes alone can be called with these: of the same shapes and types, and
    on the devices that it was compiled for."""
    flat = lambda tree: jax.tree.flatten(tree, is_leaf=lambda x: x is None)
    (infos, structure), (values, given) = flat(program.args_info[0]), flat(args)
    return structure == given and all(map(_agrees, infos, flat(program.input_shardings[0])[0], values))


def _agrees(info: Any, place: Any, value: Any) -> bool:
    """Of one argument; a host's array goes where it is wanted, and what is not looked at has no place."""
    if info is None or value is None:
        return info is value
    if (info.shape, info.dtype) != (value.shape, value.dtype):
        return False
    own = getattr(value, "sharding", None)
    return place is None or own is None or own.is_equivalent_to(place, value.ndim)


def shape_of(tree: Any) -> Hashable:
    """All that a compiled program depends on of its arguments: structure, shapes, types and places."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple((v.shape, v.dtype, getattr(v, "sharding", None)) for v in leaves)
