"""Which images of a folder can be read: looked at once, and remembered by path, size and time of change.

What can be read is appended to a file in the user's cache folder, so that an interrupted look at a million images goes
on where it stopped, and the next start opens none of them. What cannot is looked at again every time.
"""

import concurrent.futures
import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import PIL
from tqdm import tqdm

from contextdiff_jax.data import images
from contextdiff_jax.data.checks import MIN_IMAGE_SIZE
from contextdiff_jax.files import atomic, cache_folder

_THREADS = 8
_AT_A_TIME = 4096  # results between two writes: what a kill can cost
_HEADER = ["contextdiff_jax scan 1", PIL.__version__]  # another decoder may judge otherwise


class Seen(NamedTuple):
    """What is known of one file.

    Attributes:
        size: in bytes; -1 where there is no file.
        changed: time of change in nanoseconds.
        reason: why it cannot be decoded; empty if it can.
        sides: (width, height) in pixels as stored; (0, 0) where nobody asked.
    """

    size: int
    changed: int
    reason: str = ""
    sides: tuple[int, int] = (0, 0)


def scan(folder: pathlib.Path, names: Sequence[str], *, sides: bool = False) -> dict[str, Seen]:
    """{name: what is known of it}, in the order of the names; files that have not changed are not opened again.

    Args:
        folder: where the names start.
        names: of the images, relative.
        sides: whether to tell how many pixels each has.
    """
    cache = _cache_file(folder)
    known, stale = _remembered(cache)
    found: dict[str, Seen] = {}
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        look = lambda name: _look(folder / name, known.get(name), sides)
        # Shown only where there is a terminal, and something to wait for.
        bar = tqdm(names, desc="looking at the images", unit="img", disable=None, delay=3, leave=False)
        for some in _pieces(bar):
            seen = dict(zip(some, pool.map(look, some), strict=True))
            _remember(cache, {name: now for name, now in seen.items() if not now.reason and known.get(name) != now})
            found |= seen
    if stale > len(known):
        _rewrite(cache, known | found)
    return found


def _pieces(names: Iterator[str]) -> Iterator[list[str]]:
    names = iter(names)
    return iter(lambda: list(itertools.islice(names, _AT_A_TIME)), [])


def _look(path: pathlib.Path, known: Seen | None, sides: bool) -> Seen:
    """What is known of a file still holds unless size or time have changed, or it may not be read any more."""
    try:
        status = os.stat(path)
    except OSError as error:
        return Seen(-1, 0, images.reason(error))
    now = Seen(status.st_size, status.st_mtime_ns)
    holds = known is not None and known[:2] == now[:2] and os.access(path, os.R_OK)
    if holds and (not sides or any(known.sides)):
        return known
    reason = "" if holds else why_unreadable(path)
    return now._replace(reason=reason, sides=images.stored_sides(path) if sides and not reason else now.sides)


def why_unreadable(path: pathlib.Path) -> str:
    """Why an image cannot be read; empty if it can. On the very way that training takes, but as small as can be."""
    try:
        images.read_image(path, MIN_IMAGE_SIZE)
    except Exception as error:  # decoders raise almost anything on damaged files
        return images.reason(error)
    return ""


def _cache_file(folder: pathlib.Path) -> pathlib.Path:
    place = hashlib.blake2b(os.fsencode(folder.resolve()), digest_size=12).hexdigest()
    return cache_folder() / "scans" / f"{place}.jsonl"


def _remembered(cache: pathlib.Path) -> tuple[dict[str, Seen], int]:
    """({name: size and time of change of a readable image}, how many lines are out of date)."""
    try:
        lines = cache.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):  # nothing remembered, or nothing of ours
        return {}, 0
    if not lines or lines[0] + "\n" != _line(_HEADER):
        return {}, len(lines)
    known: dict[str, Seen] = {}
    for line in lines[1:]:
        # A kill may have cut a line.
        with contextlib.suppress(ValueError, TypeError):
            name, size, changed, *sides = json.loads(line)
            width, height = sides or (0, 0)
            known[name] = Seen(size, changed, sides=(width, height))
    return known, len(lines) - 1 - len(known)


def _remember(cache: pathlib.Path, found: dict[str, Seen]) -> None:
    """Appends what was found."""
    if not found:
        return
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(_entry(name, seen) for name, seen in found.items())
        with cache.open("a", encoding="ascii") as file:
            file.write(text if file.tell() else _line(_HEADER) + text)
    except OSError as error:
        _cannot_keep(cache, error)


def _rewrite(cache: pathlib.Path, known: dict[str, Seen]) -> None:
    """Writes the file anew, without what is out of date."""
    try:
        with atomic(cache) as temporary:
            lines = (_entry(name, seen) for name, seen in known.items() if not seen.reason)
            temporary.write_text(_line(_HEADER) + "".join(lines), encoding="ascii")
    except OSError as error:
        _cannot_keep(cache, error)


def _entry(name: str, seen: Seen) -> str:
    return _line([name, seen.size, seen.changed, *(seen.sides if any(seen.sides) else ())])


def _line(values: list) -> str:
    return json.dumps(values) + "\n"


def _cannot_keep(cache: pathlib.Path, error: OSError) -> None:
    # Said once: the message is the same every time.
    warnings.warn(
        f"what was found out about the images cannot be kept in {cache} ({error.strerror}): the next start looks at "
        "each of them again; set XDG_CACHE_HOME to a folder that can be written",
        stacklevel=2,
    )
