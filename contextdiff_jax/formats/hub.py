"""Models by their names on the Hugging Face hub, as its own tools leave them in the cache on this machine."""

import os
import re
from pathlib import Path

from contextdiff_jax.errors import UserError
from contextdiff_jax.files import user_path

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
ADDRESS = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([^/]+/[^/?#]+).*")
RUNS = "runs"  # where trainings go if nobody says otherwise: what is not there is no model of a hub


def cache() -> Path:
    """The cache's folder, by the variables that the hub's own tools read."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return user_path(os.environ[variable])
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return user_path(home) / "hub"


def local(path: str | Path) -> Path:
    """Where a model lies: a path, with ~ for the home folder, or the newest cached state of ORG/NAME.

    A path that exists wins over a name. What is neither comes back as the path that it would be; its reader refuses it,
    and also what a cached model lacks (see `remedy`): not every use needs all of it.

    Raises:
        UserError: a name that is not in the cache, with the command that gets it; or an address of the hub.
    """
    if found := ADDRESS.fullmatch(str(path)):
        raise UserError(f"{str(path)!r} is an address of the hub; give the model's name, {found[1]!r}")
    here = user_path(path)
    if here.exists() or here.parent.is_file() or not NAME.fullmatch(str(path)):
        return here
    found = cached(str(path))
    if found is None and here.parts[0] == RUNS:
        return here
    if found is None:
        raise UserError(
            f"{str(path)!r} is no folder here, and no model of that name is in the Hugging Face cache ({cache()}); "
            f"correct the path, or download it: hf download {path}"
        )
    return found


def name_of(path: str | Path) -> str | None:
    """ORG/NAME of what lies in a cache; None of any other path."""
    found = re.search(r"models--([^/]+)--([^/]+)/snapshots/", f"{Path(path).absolute()}/")
    return "/".join(found.groups()) if found else None


def remedy(path: str | Path, otherwise: str) -> str:
    """How to get what a cached model lacks; of any other path `otherwise`."""
    return f"download it: hf download {name}" if (name := name_of(path)) else otherwise


def cached(name: str) -> Path | None:
    """The folder of the cached state of ORG/NAME that its main branch had last; None where there is none.

    Raises:
        UserError: several states, and no word which is the newest.
    """
    folder = cache() / f"models--{name.replace('/', '--')}"
    main = folder / "refs" / "main"
    if main.is_file() and (state := folder / "snapshots" / main.read_text(encoding="utf-8").strip()).is_dir():
        return state
    states = sorted(p for p in (folder / "snapshots").glob("*") if p.is_dir())
    if len(states) > 1:
        raise UserError(
            f"the Hugging Face cache has {len(states)} states of {name!r} and does not say which is the newest; give "
            f"the folder of one, e.g. {states[0]}, or download it: hf download {name}"
        )
    return states[0] if states else None
