"""Files that are either whole or absent, and text files as the world writes them."""

import atexit
import codecs
import contextlib
import errno
import functools
import json
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from absl import logging

from contextdiff_jax.errors import UserError

T = TypeVar("T")

_ROOM, _RIGHTS = "make room", "make it readable and writable, or take another place"
_REFUSALS = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _ROOM)
_REFUSALS |= dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _RIGHTS)
_REFUSALS |= {errno.ENAMETOOLONG: "take a shorter name"}
_LONGEST_NAME = 255  # bytes of one part of a path, on every common disk

# What a network disk says for a moment, when its server or the way there is busy.
_PASSING = (
    *(errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EBUSY),
    *(errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNRESET, errno.EHOSTDOWN, errno.ENETDOWN),
)
_WAITS = (0.5, 2.0, 5.0)  # seconds before each new attempt


def persistently(read: Callable[[], T]) -> T:
    """What `read` returns; called again where the disk fails in a way that may pass.

    Raises:
        Exception: what it raises, an OSError of that kind after the last attempt.
    """
    for wait in _WAITS:
        try:
            return read()
        except OSError as error:
            if error.errno not in _PASSING:
                raise
            logging.warning("%s; trying again", error)
            time.sleep(wait)
    return read()


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renamed onto it on success, removed on failure.

    The suffix is kept, because image writers choose the format by it. Parent folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem[:80]}.{unique()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.filename in (None, str(temporary)):  # a full disk does not say for which file
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Yields a temporary folder beside `path`; renamed to it on success, removed where what fills it fails.

    Where there is such a folder, its files stay: the temporary one is in it, so that both are on one disk, and the new
    files are moved, the one that was written last at the end. Parent folders are made.

    Raises:
        UserError: what is whole cannot be put there; it stays, and the message says where.
    """
    path = Path(path).absolute()
    there = path.exists()
    building = path / f".building-{unique()}" if there else path.with_name(f".{path.name[:80]}.{unique()}")
    building.mkdir(parents=True)
    try:
        yield building
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    try:
        if not there:
            building.rename(path)
            return
        for file in sorted(building.iterdir(), key=lambda file: file.stat().st_mtime_ns):
            os.replace(file, path / file.name)
        building.rmdir()
    except OSError as error:
        reason = f"{error.strerror or error}: {error.filename2 or error.filename}"
        raise UserError(f"{path} cannot take the results ({reason}); they are in {building}: move them") from error


def unique() -> str:
    """Processes of several hosts may share a folder, and their numbers may agree."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


@contextlib.contextmanager
def refusals_in_words() -> Iterator[None]:
    """What a disk refuses meanwhile, in one line: it is full, or this user may not read or write there.

    Raises:
        UserError: names the file, where that is known.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        where = f": {error.filename}" if error.filename else ""
        raise UserError(
            f"a file cannot be read or written ({error.strerror}{where}); {_REFUSALS[error.errno]}, and run the same "
            "command again"
        ) from error


def is_remote(path: str | Path) -> bool:
    """Whether this is an address of a remote store, such as gs://bucket/folder."""
    return re.match(r"[a-z][a-z0-9+.-]+:/", str(path), re.IGNORECASE) is not None


def user_path(path: str | Path) -> Path:
    """A path as a user gives it, ~ being the home folder; one that has none, as ~nobody, stays as it is.

    Raises:
        UserError: no disk takes such a name, as where a text is given and not a file that holds it.
    """
    text = os.path.expanduser(path)
    if any(len(os.fsencode(part)) > _LONGEST_NAME for part in Path(text).parts):
        raise UserError(f"{text[:60]!r}... is too long for the name of a file; put a text into one, and give its name")
    return Path(text)


def local_path(path: str | Path) -> Path:
    """A path that is written to, ~ being the home folder.

    Raises:
        UserError: an address of a remote store, which would otherwise become a folder of that name here.
    """
    if is_remote(path):
        raise UserError(
            f"{str(path)!r} is on a remote store, where this library cannot write; mount it (gcsfuse, s3fs) and give "
            "that folder, or take a local one; a model of a hub is given by its name, ORG/NAME"
        )
    return user_path(path)


def check_writable(folder: str | Path, what: str, remedy: str) -> None:
    """Tries to write into a folder, or where it is to be made; leaves nothing behind.

    Raises:
        UserError: that cannot be done.
    """
    folder = Path(folder)
    place = next(p for p in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(p))
    if not place.exists():
        leads = f"{place} is a link to {os.readlink(place)}, which is not there"
        raise UserError(f"{what} {str(folder)!r} cannot be written ({leads}); {remedy}")
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"tried")
    except OSError as error:
        raise UserError(f"{what} {str(folder)!r} cannot be written ({error.strerror}: {place}); {remedy}") from error


def check_file(path: str | Path) -> None:
    """Tries whether a file of results can be written, before the work that fills it.

    Raises:
        UserError: that cannot be done, or the path is a folder.
    """
    if Path(path).is_dir():
        raise UserError(f"--out={path} is a folder; name a file in it")
    check_writable(Path(path).parent, "folder of results", "give another --out")


def read_json(
    path: Path, remedy: str = "download it again", object_hook: Callable[[dict[str, Any]], Any] | None = None
) -> Any:
    """The content of a JSON file; the remedy is for a damaged one, the hook is what `json.loads` calls on each object.

    Raises:
        UserError: it is damaged, or cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_hook=object_hook)
    except ValueError as error:  # bad JSON or bad UTF-8
        raise UserError(f"{path} is damaged ({error}); {remedy}") from error
    except RecursionError:
        raise UserError(f"{path} is damaged (too deeply nested); {remedy}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); make it a readable file") from error


def read_object(path: Path, remedy: str = "download it again") -> dict[str, Any]:
    """The content of a JSON file that holds an object; errors as `read_json`, and for anything else."""
    content = read_json(path, remedy)
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged (it holds {type(content).__name__} instead of an object); {remedy}")
    return content


def read_text(path: str | Path) -> str:
    """A text file: UTF-8 with or without a byte order mark, or UTF-16 with one.

    Raises:
        UserError: it cannot be read, or is no such text; names the line.
    """
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); make it a readable text file") from error
    encoding = "utf-16" if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path} line {line}: is not UTF-8 text; save the file as UTF-8") from None


def text_lines(text: str) -> list[str]:
    """The lines of a text, ended by \\n, \\r\\n or \\r alone: other separators belong to what people write."""
    return re.split(r"\r\n|\n|\r", text)


def is_unicode(text: str) -> bool:
    """False where a text holds half a character (a lone surrogate), which no tokenizer and no file takes."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def composed(text: str) -> str:
    """A text in the one of its spellings (Unicode NFC) in which an accent is no letter of its own.

    Systems write the names of files in one or the other, and people type either: names are compared in this one.
    """
    return unicodedata.normalize("NFC", text)


def cache_folder() -> Path:
    """Where what can be computed again is kept for the next start: $XDG_CACHE_HOME/contextdiff_jax, else ~/.cache's.
    A user without a home folder has one for this process alone."""
    caches = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return _homeless() if caches.startswith("~") else Path(caches) / "contextdiff_jax"


@functools.lru_cache(maxsize=1)
def _homeless() -> Path:
    """A folder that goes with this process."""
    folder = tempfile.mkdtemp(prefix="contextdiff_jax-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    logging.warning("no home folder is known, so nothing is kept for the next start; set HOME or XDG_CACHE_HOME")
    return Path(folder)


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
