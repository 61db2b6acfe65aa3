"""Models by their names on the Hugging Face hub, as its own tools leave them in the cache on this machine."""

import os
import re
from pathlib import Path

from contextdiff_jax.errors import UserError
from contextdiff_jax.files import read_object
from contextdiff_jax.formats.tensor_files import STEMS

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

_PARTS = ("unet", "vae", "text_encoder")  # networks of a pipeline
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".npz", ".msgpack"}  # their readers say what fits
_SHOWN = 4  # files that a message names


def cache() -> Path:
    """The cache's folder, by the variables that the hub's own tools read."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return Path(os.environ[variable]).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser() / "hub"


def local(path: str | Path) -> Path:
    """Where a model lies: a path, with ~ for the home folder, or the newest cached state of ORG/NAME.

    A path that exists wins over a name. What is neither comes back as the path that it would be; its reader refuses it.

    Raises:
        UserError: a name that is not in the cache, or there in part only; with the command that gets it.
    """
    here = Path(path).expanduser()
    if here.exists() or here.parent.is_file() or not NAME.fullmatch(str(path)):
        return here
    found = cached(str(path))
    if found is None:
        raise UserError(
            f"{str(path)!r} is no folder here, and no model of that name is in the Hugging Face cache ({cache()}); "
            f"correct the path, or download it: hf download {path}"
        )
    if lacking := _lacking(found):
        more = f" and {len(lacking) - _SHOWN} more" if len(lacking) > _SHOWN else ""
        raise UserError(
            f"the model {str(path)!r} is in the Hugging Face cache only in part: {found} lacks "
            f"{', '.join(lacking[:_SHOWN])}{more}; download the rest: hf download {path}"
        )
    return found


def name_of(path: str | Path) -> str | None:
    """ORG/NAME of what lies in a cache; None of any other path."""
    found = re.search(r"models--([^/]+)--([^/]+)/snapshots/", f"{Path(path).absolute()}/")
    return "/".join(found.groups()) if found else None


def remedy(path: str | Path, otherwise: str) -> str:
    """How to get what a cached model lacks; of any other path `otherwise`."""
    return f"download it: hf download {name}" if (name := name_of(path)) else otherwise


def _lacking(state: Path) -> list[str]:
    """Files that the networks in a cached state need and that are not there; of a pipeline those of the parts that were
    downloaded, for not every model needs all."""
    whole = (state / "model_index.json").is_file()
    folders = [state / part for part in _PARTS if (state / part).is_dir()] if whole else [state]
    found = [file for folder in folders for file in _lacking_of_network(folder)]
    return [file.relative_to(state).as_posix() for file in found]


def _lacking_of_network(folder: Path) -> list[Path]:
    """The same of one folder: a config and weights, which need one another, and the shards that an index names."""
    names = {file.name for file in folder.iterdir() if file.exists()}  # a link into the cache may lead nowhere
    for stem in STEMS:
        index = f"{stem}.safetensors.index.json"
        if index in names and f"{stem}.safetensors" not in names:
            shards = read_object(folder / index).get("weight_map")
            named = set(shards.values()) if isinstance(shards, dict) else set()
            return [folder / name for name in sorted({"config.json", *named} - names)]
    weights = any(f"{stem}.safetensors" in names for stem in STEMS)
    if weights and "config.json" not in names:
        return [folder / "config.json"]
    others = any(Path(name).suffix in _WEIGHTS for name in names)
    return [folder / "model.safetensors"] if "config.json" in names and not others else []


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
