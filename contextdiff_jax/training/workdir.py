"""The folder of a run: one run, one config, one process (or cluster) at a time."""

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from contextdiff_jax import config as config_lib
from contextdiff_jax.errors import UserError

# What may differ between a saved run and its continuation: it does not reach the trained parameters.
MAY_DIFFER = (
    "sample.",
    "eval.",
    "train.log_every",
    "train.preview_every",
    "mesh.",
    "sharding.",
    "data.num_threads",
    "data.prefetch",
)


def folder_of(workdir: str | Path) -> Path:
    """Where the checkpoints of a run are."""
    return Path(workdir).absolute() / "checkpoints"


def steps_in(folder: Path) -> list[int]:
    """Committed steps, newest first; half-written and set-aside ones have other names."""
    if not folder.is_dir():
        return []
    return sorted((int(p.name) for p in folder.iterdir() if re.fullmatch(r"\d+", p.name)), reverse=True)


def check_same_run(saved: Any, now: ConfigDict, where: str | Path) -> None:
    """Raises UserError with "key: saved X, now Y" for every key that makes `now` another run."""
    lines = config_lib.differences(config_lib.complete(ConfigDict(saved)), now, MAY_DIFFER)
    if lines:
        raise UserError(
            f"{where} holds a run with another config ({'; '.join(lines)}); "
            "take another --workdir, undo the change, or allow it with --allow_config_change"
        )


def check_workdir(workdir: str | Path, config: ConfigDict, *, allow_config_change: bool = False) -> None:
    """Raises UserError if `workdir` holds a run with another config; writes nothing."""
    path = Path(workdir) / "config.json"
    if Path(workdir).exists() and not Path(workdir).is_dir():
        raise UserError(f"workdir {str(workdir)!r} is a file; give a folder")
    if path.exists() and not allow_config_change:
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(
                f"{path} is not JSON ({error}); delete it to take the config of the command line"
            ) from error
        if not isinstance(saved, dict):
            raise UserError(f"{path} is not a config; delete it to take the config of the command line")
        check_same_run(saved, config, workdir)


@contextlib.contextmanager
def exclusive(workdir: str | Path) -> Iterator[None]:
    """Holds `<workdir>/.lock`; the operating system lets go of it however the process ends.

    Raises:
        UserError: another process trains in this folder.
    """
    path = Path(workdir) / ".lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"workdir {str(workdir)!r} cannot be made ({error}); take another --workdir") from error
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"workdir {str(workdir)!r} is in use by process {file.read().strip() or 'unknown'}; "
                "wait for it, or take another --workdir"
            ) from None
        except OSError:
            # Some network file systems have no locks; training there is still possible.
            pass
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
