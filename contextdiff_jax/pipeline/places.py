"""Where the command line puts what it makes with a model: nothing that lies there is ever written over."""

import re
from pathlib import Path

from contextdiff_jax.encoders import BUILTIN
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import check_writable, user_path
from contextdiff_jax.formats.hub import RUNS
from contextdiff_jax.pipeline.export import is_export
from contextdiff_jax.training.workdir import has_trained

# What drawing leaves in a folder.
_MADE = re.compile(r"(\d{4,}|grid|clip)\.png|(heatmaps|sample)\.json|metadata\.jsonl")


def home_of(model: str) -> Path:
    """The folder below which outputs of a model go: its own, if it is a run or an export; else runs/NAME.

    A model that ships, a name of the hub, another library's folder and a single file are not written into, nor is
    another run that happens to have the name.
    """
    path = user_path(model)
    if _is_ours(model):
        return path
    is_path = path.exists() and not model.startswith(BUILTIN)
    named = path.resolve().name.removesuffix(".safetensors") if is_path else model
    name = re.sub(r"[^\w.-]+", "-", named).strip("-.") or "model"
    home = Path(RUNS) / name
    return home.with_name(f"{name}-model") if _is_ours(str(home)) else home


def _is_ours(model: str) -> bool:
    """Whether this is the folder of a run or an export."""
    path = user_path(model)
    return not model.startswith(BUILTIN) and path.is_dir() and (is_export(path) or has_trained(path))


def check_place(given: str, default: Path) -> Path:
    """Where pictures or heatmaps go: `--out` if it is given, else the default, looked at before a model is loaded.

    Raises:
        UserError: it cannot be written, or --out holds what an earlier call has made.
    """
    place = Path(given) if given else default
    check_writable(place, "output folder", "give another --out")
    names = sorted(p.name for p in place.iterdir() if _MADE.fullmatch(p.name)) if given and place.is_dir() else []
    if names:
        raise UserError(f"--out={given} holds {names[0]} of an earlier call, which stays; give another folder")
    return place
