"""Files that are either whole or absent."""

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from contextdiff_jax.errors import UserError


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renamed onto it on success, removed on failure.

    The suffix is kept, because image writers choose the format by it. Parent folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_local(path: str | Path) -> None:
    """Raises UserError for an address of a remote store, which would otherwise become a folder of that name here."""
    if match := re.match(r"([a-z][a-z0-9+.-]+):/", str(path)):
        raise UserError(
            f"{str(path)!r} is on a remote store ({match[1]}), where this library cannot write; mount it (gcsfuse, "
            "s3fs) and give that folder, or take a local one"
        )


def check_writable(folder: str | Path, what: str, remedy: str) -> None:
    """Tries to write into a folder, or where it is to be made; leaves nothing behind.

    Raises:
        UserError: that cannot be done.
    """
    folder = Path(folder)
    place = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"tried")
    except OSError as error:
        raise UserError(f"{what} {str(folder)!r} cannot be written ({error.strerror}: {place}); {remedy}") from error


def read_json(path: Path, remedy: str = "download it again") -> Any:
    """The content of a JSON file; the remedy is for a damaged one.

    Raises:
        UserError: it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # bad JSON or bad UTF-8
        raise UserError(f"{path} is damaged ({error}); {remedy}") from error


def write_json(value: Any, path: str | Path) -> None:
    """Writes `value` as indented JSON, atomically; numpy and jax scalars become numbers, their arrays lists.

    Non-finite numbers are refused by strict readers, so they are written as null.
    """
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(_plain(value), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    """`value` in JSON's own types."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not (abs(value) < float("inf")):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
