"""The files below a folder, and what is said of some of many."""

import os
import pathlib
import warnings
from collections.abc import Sequence

from contextdiff_jax.errors import UserError
from contextdiff_jax.files import composed

LISTED = 10  # names of a message


def files_below(root: pathlib.Path, asked_by: str = "data.path") -> list[str]:
    """Names of all files relative to the folder, with slashes, sorted; hidden ones and hidden folders are left out.

    Links are followed. Each folder is read once: by its own name where it has one below the root, else by that of the
    first link to it, so that links in a circle do no harm and no picture comes twice.

    Args:
        root: the folder.
        asked_by: what the message calls the setting that names it.

    Raises:
        UserError: a folder that cannot be read.
    """
    names: list[str] = []
    seen: set[tuple[int, int]] = set()
    todo, linked = [""], []
    while todo or linked:
        here = todo.pop() if todo else linked.pop(0)
        try:
            status = os.stat(root / here)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(root / here) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if entry.name.startswith("."):
                        continue
                    name = f"{here}/{entry.name}" if here else entry.name
                    if not is_folder(entry):
                        names.append(name)
                    else:
                        (linked if entry.is_symlink() else todo).append(name)
        except OSError as error:
            problem = f"the folder {root / here} cannot be read ({error.strerror})"
            raise UserError(f"{asked_by}: {problem}; make it readable, or move it out of {root}") from error
    return sorted(names)


def is_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder, or leads to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def listed(names: list[str]) -> str:
    """Names in a message: the first few, and how many more there are."""
    more = f", and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def differing(known: Sequence[str], found: Sequence[str]) -> str:
    """How the classes that were found differ from those known, "without ...; with ..."; "" where they are the same,
    however they are spelled and in whatever order."""
    then, now = ({composed(name): name for name in names} for names in (known, found))
    gone = sorted(name for key, name in then.items() if key not in now)
    new = sorted(name for key, name in now.items() if key not in then)
    return "; ".join(f"{word} {listed(some)}" for word, some in (("without", gone), ("with", new)) if some)


def left_out(bad: Sequence[str], total: int, what: str, max_bad_fraction: float, remedy: str) -> None:
    """Warns of what is left out.

    Args:
        bad: names and reasons.
        total: how many there are, the bad ones among them.
        what: they are, and what is wrong with them: "pictures in FOLDER cannot be read".
        max_bad_fraction: the share of them from which on it is an error, as it is where all are bad.
        remedy: what to do.

    Raises:
        UserError: too many.
    """
    if not bad:
        return
    count, named = f"{len(bad)} of {total} {what}", listed(list(bad))
    if len(bad) == total or len(bad) > max_bad_fraction * total:
        limit = f"more than data.max_bad_fraction={max_bad_fraction} allows"
        raise UserError(f"data.path: {count}, {limit}: {named}; {remedy}")
    warnings.warn(f"{count} and are skipped: {named}", stacklevel=4)
