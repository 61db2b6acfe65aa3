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


def shape_of(tree: Any) -> Hashable:
    """All that a compiled program depends on of its arguments: structure, shapes, types and places."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple((v.shape, v.dtype, getattr(v, "sharding", None)) for v in leaves)
