"""Where the frozen networks go as they are read."""

from collections.abc import Callable
from typing import Any

from contextdiff_jax.types import Params

Places = Callable[[Params], Any]  # a tree of shapes -> a tree of shardings; names of leaves count


def within(places: Places | None, *branch: str) -> Places | None:
    """The same for a tree that hangs under these names in the whole one."""
    if places is None:
        return None

    def of_branch(shapes: Params) -> Any:
        for name in reversed(branch):
            shapes = {name: shapes}
        found = places(shapes)
        for name in branch:
            found = found[name]
        return found

    return of_branch
