"""The files below a folder."""

import os
import pathlib

from contextdiff_jax.errors import UserError


def files_below(root: pathlib.Path) -> list[str]:
    """Names of all files relative to the folder, with slashes, sorted; hidden ones and hidden folders are left out.

    Links are followed. Each folder is read once: by its own name where it has one below the root, else by that of the
    first link to it, so that links in a circle do no harm and no picture comes twice.

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
                    if not _is_folder(entry):
                        names.append(name)
                    else:
                        (linked if entry.is_symlink() else todo).append(name)
        except OSError as error:
            problem = f"the folder {root / here} cannot be read ({error.strerror})"
            raise UserError(f"data.path: {problem}; make it readable, or move it out of {root}") from error
    return sorted(names)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def listed(names: list[str], most: int = 10) -> str:
    """Names in a message: the first few, and how many more there are."""
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
