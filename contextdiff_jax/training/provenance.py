"""What a run was made with: the code's commit, the versions, the hardware, the records; about.json of its folder."""

import datetime
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

from absl import logging

from contextdiff_jax.errors import UserError
from contextdiff_jax.files import read_object, write_json
from contextdiff_jax.runtime import Runtime
from contextdiff_jax.training import distributed

FILE = "about.json"
PACKAGES = ("jax", "flax", "optax", "numpy")


def note_start(workdir: Path, runtime: Runtime, records: str, step: int) -> None:
    """Adds this start of a run to its about.json, the first process; what an unreadable file held is given up.

    Args:
        workdir: of the run.
        runtime: the devices.
        records: what tells its training data from others.
        step: from which it goes on.
    """
    if not distributed.is_primary():
        return
    start = {
        "step": step,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "hardware": str(runtime),
        "versions": versions(),
    }
    try:
        write_json({"records": records, "starts": [*read_starts(workdir), start]}, workdir / FILE)
    except OSError as error:
        logging.warning("%s cannot be written (%s); what the run was made with is not on record", FILE, error)


def read_starts(workdir: Path) -> list[dict[str, Any]]:
    """Every start of a run, the first one first; [] where none is on record."""
    try:
        return list(read_object(workdir / FILE)["starts"]) if (workdir / FILE).is_file() else []
    except (UserError, KeyError, TypeError):
        return []


def read_records(workdir: Path) -> str:
    """The training data's identity; "" where none is on record."""
    try:
        return str(read_object(workdir / FILE)["records"]) if (workdir / FILE).is_file() else ""
    except (UserError, KeyError):
        return ""


def commit() -> str:
    """The commit of this code, with "changed" behind it where files differ from it; "" outside a clone."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    git = lambda *what: subprocess.run(
        ("git", "-C", root, *what), capture_output=True, text=True, timeout=20, check=True
    )
    try:
        changed = git("status", "--porcelain", "--untracked-files=no").stdout.strip()
        return git("rev-parse", "HEAD").stdout.strip() + (" changed" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide over numbers."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}
