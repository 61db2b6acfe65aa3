"""Kinds of values in other libraries' JSON files, checked before anything is made of them."""

from collections.abc import Mapping
from typing import Any

from contextdiff_jax.errors import UserError


def _positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _several(value: Any, accepts: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(accepts(v) for v in value)


# Annotation of a field, or what a whole number stands for -> (test of a value, what is accepted).
TOKEN = "token"
KINDS = {
    TOKEN: (lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= 0, "the number of a token"),
    dict: (lambda v: isinstance(v, dict), "an object"),
    bool: (lambda v: isinstance(v, bool), "true or false"),
    int: (_positive, "a positive integer"),
    float: (_number, "a number"),
    int | None: (lambda v: v is None or _positive(v), "a positive integer or null"),
    str: (lambda v: isinstance(v, str), "a name"),
    tuple[int, ...]: (lambda v: _several(v, _positive), "a list of positive integers"),
    tuple[float, ...]: (lambda v: _several(v, _number), "a list of numbers"),
    tuple[str, ...]: (lambda v: _several(v, lambda name: isinstance(name, str)), "a list of names"),
    int | tuple[int, ...]: (lambda v: _positive(v) or _several(v, _positive), "a positive integer or a list of them"),
}


def check(owner: str, values: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    """Raises UserError for the first value that is not of the kind that its key has.

    Args:
        owner: whose file it is, for the message.
        values: key -> value.
        kinds: key -> a key of `KINDS`; keys that it lacks are not looked at.
    """
    for key, value in values.items():
        if key in kinds:
            fits, accepted = KINDS[kinds[key]]
            if not fits(value):
                raise unsupported(owner, key, value, accepted)


def unsupported(owner: str, key: str, value: Any, accepted: str) -> UserError:
    """The error for a value that cannot work."""
    return UserError(f"{owner} {key}={value!r} is not supported; accepted: {accepted}")
