"""Checks that every source makes of the values it is given."""

from collections.abc import Sequence
from typing import Any

from contextdiff_jax.errors import UserError

MIN_IMAGE_SIZE = 8


def image_size(value: Any) -> int:
    """The side of the images in pixels.

    Raises:
        UserError: not a whole number of at least 8.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < MIN_IMAGE_SIZE:
        raise UserError(f"data.image_size: {value!r} is refused; give a whole number from {MIN_IMAGE_SIZE}")
    return int(value)


def only_image_size(value: Any, only: int, source: str, *, smaller: tuple[int, ...] = ()) -> None:
    """Refuses every image size but the one that the source has, and the `smaller` ones that it makes.

    Raises:
        UserError: another size.
    """
    if value not in (only, *smaller):
        sizes = " or ".join(map(str, (only, *smaller)))
        has = f"{source} has {only} x {only} images"
        raise UserError(f"data.image_size: {value!r} is refused; {has}, set it to {sizes}")


def split(value: str, accepted: Sequence[str], source: str) -> str:
    """The name of a split.

    Raises:
        UserError: the source has no such split.
    """
    if value not in accepted:
        raise UserError(f"data split {value!r} is unknown for {source}; accepted: {', '.join(accepted)}")
    return value
