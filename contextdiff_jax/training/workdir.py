"""The folder of a run: one run, one config, one process (or cluster) at a time."""

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from contextdiff_jax import keys
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import check_writable, local_path, read_object

# What may differ between a saved run and its continuation without a word: where data lie, how often something happens,
# how sampling and evaluation look, and on what devices.
MAY_DIFFER = (
    "preset",
    "sample.",
    "eval.",
    "edit.",
    "mesh.",
    "sharding.",
    "condition.kept_texts",
    "data.path",
    "data.class_words",
    "data.mask_path",
    "data.flow_path",
    "data.num_threads",
    "data.prefetch",
    "data.max_bad_fraction",
    "space.latents",
    "space.rgb_map",
    "train.log_every",
    "train.preview_every",
    "train.checkpoint_every",
    "train.keep",
    "train.validate",
)
# What of that may not, after all: a ControlNet guides the tuning as well.
MAY_NOT_DIFFER = ("edit.control",)
# What makes it another model: no flag allows that. All else is allowed with the flag, and listed.
ANOTHER_MODEL = (
    "task",
    "model.",
    "adapter.",
    "process.",
    "condition.",
    "clip.",
    "recogniser.channels",
    "autoencoder.",
    "space.kind",
    "space.rgb",
    "data.image_size",
    "data.labels",
    "data.class_names",
    "train.trainable",
    "train.lora.",
)
# What of these sections is of the training alone.
OF_THE_LOSS = ("autoencoder.kl_weight",)
# How a model is computed or watched; whatever of a config says so makes no other model of it.
HOW_IT_RUNS = ("model.dropout", "model.dtype", "model.remat", "adapter.track_lipschitz", "condition.kept_texts")
# What parameters start from.
STARTS = ("model.init_from", "adapter.start")
# Where what is frozen lies says nothing about what it is: that is in the run's frozen.json.
THE_SAME_MODEL = (*HOW_IT_RUNS, *STARTS, *OF_THE_LOSS, "model.pretrained", "condition.encoder", "clip.tokenizer_dir")


def only_started_from(config: ConfigDict) -> tuple[str, ...]:
    """Those of `STARTS` from which nothing is read once there is a checkpoint: all that they give is trained."""
    patterns = tuple(config.train.trainable)
    if patterns == (".*",):
        return STARTS
    return STARTS[1:] if any(re.search(pattern, "adapter/\0") for pattern in patterns) else ()


def folder_of(workdir: str | Path) -> Path:
    """Where the checkpoints of a run are."""
    return local_path(workdir).absolute() / "checkpoints"


def steps_in(folder: Path) -> list[int]:
    """Committed steps, newest first; half-written and set-aside ones have other names.

    Raises:
        UserError: the folder cannot be read.
    """
    return sorted((int(name) for name in _names_in(folder) if re.fullmatch(r"\d+", name)), reverse=True)


def _names_in(folder: Path) -> list[str]:
    try:
        return os.listdir(folder) if folder.is_dir() else []
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror or error}); make it readable") from error


def has_trained(workdir: str | Path) -> bool:
    """Whether a run has saved anything in a folder, be it damaged or set aside: then it is what it is. Before that a
    start that failed binds nobody.

    Raises:
        UserError: the folder of checkpoints cannot be read.
    """
    return any(".orbax-checkpoint-tmp" not in name for name in _names_in(folder_of(workdir)))


def check_same_model(saved: Any, now: ConfigDict, where: str | Path) -> None:
    """Raises UserError with "key: saved X, now Y" for every key that makes `now` another model."""
    if lines := _another_model(_changes(saved, now, trained=True)):
        raise UserError(f"{where} holds another model ({'; '.join(lines)}); undo the change, or give its own --config")


def check_workdir(workdir: str | Path, config: ConfigDict, *, allow_config_change: bool = False) -> list[str]:
    """Whether a run may start, or continue, in a folder; leaves nothing there.

    Returns:
        "key: saved X, now Y" for every change that `allow_config_change` allows, or that is free because nothing has
        been saved yet.

    Raises:
        UserError: the folder cannot be written, or holds a run with another config.
    """
    workdir = local_path(workdir)
    path = workdir / "config.json"
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"workdir {str(workdir)!r} is a file; give a folder")
    check_writable(workdir, "workdir", "take another --workdir")
    check_writable(folder_of(workdir), "folder of checkpoints", "make it writable, or take another --workdir")
    if not path.exists():
        return []
    saved = _saved_config(path, "delete it to take the config of the command line")
    changes = _changes(saved, config, trained=bool(steps_in(folder_of(workdir))))
    # A config.json without these is not a run's: the folder of a model from elsewhere has one too.
    if not has_trained(workdir) and all(name in saved for name in ("task", "data", "optim", "train")):
        return changes
    if lines := _another_model(changes):
        raise UserError(
            f"{workdir} holds a run with another config ({'; '.join(lines)}), which is another model; "
            "take another --workdir, or undo the change"
        )
    newest, asked = max(steps_in(folder_of(workdir)), default=0), config.train.num_steps
    if asked < newest and asked != saved.train.num_steps:
        raise UserError(
            f"config.train.num_steps={asked}, but {workdir} holds a run that has trained {newest} steps; leave it at "
            f"{saved.train.num_steps}, or take another --workdir (--step draws of an earlier checkpoint that is kept)"
        )
    if changes and not allow_config_change:
        raise UserError(
            f"{workdir} holds a run with another config ({'; '.join(changes)}); "
            "take another --workdir, undo the change, or allow it with --allow_config_change"
        )
    return changes


def _saved_config(path: Path, remedy: str) -> ConfigDict:
    """The config that a run was started with, complete."""
    saved = read_object(path, remedy)
    try:
        return keys.complete(ConfigDict(saved))
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a config ({error}); {remedy}") from error


def saved_config(workdir: str | Path) -> ConfigDict | None:
    """The config of the run that a folder holds; None where it holds none, or one that has saved nothing yet.

    Raises:
        UserError: it cannot be read.
    """
    path = local_path(workdir) / "config.json"
    return _saved_config(path, "give the run's --config") if path.is_file() and has_trained(workdir) else None


def known_classes(workdir: str | Path) -> tuple[str, ...]:
    """The classes of the run that a folder holds, in its order; () where it holds none, one without classes, or one
    that has saved nothing yet.

    Raises:
        UserError: the run's config cannot be read.
    """
    saved = saved_config(workdir)
    return () if saved is None else keys.leaves(saved).get("data.class_names", ())


def _changes(saved: Any, now: ConfigDict, trained: bool = False) -> list[str]:
    """Lines of all that differs and may not do so without a word; `trained` says that there is a checkpoint."""
    saved, now = keys.whole_paths(keys.complete(ConfigDict(saved))), keys.whole_paths(now)
    free = MAY_DIFFER + (only_started_from(now) if trained else ())
    if not keys.leaves(now).get("data.class_names"):  # not yet taken from the folder
        free += ("data.class_names",)
    steps = [keys.leaves(c).get("train.num_steps") for c in (saved, now)]
    if None not in steps and steps[1] > steps[0]:  # a longer run
        free += ("train.num_steps",)
    lines = keys.differences(saved, now, free)
    if "edit" in saved and "edit" in now:
        lines += [line for line in keys.differences(saved, now) if line.startswith(MAY_NOT_DIFFER)]
    return lines


def _another_model(changes: list[str]) -> list[str]:
    return [line for line in changes if line.startswith(ANOTHER_MODEL) and not line.startswith(THE_SAME_MODEL)]


@contextlib.contextmanager
def exclusive(workdir: str | Path) -> Iterator[None]:
    """Holds `<workdir>/.lock`; the operating system lets go of it however the process ends.

    Raises:
        UserError: another process trains in this folder, or the lock is another user's.
    """
    path = Path(workdir) / ".lock"
    check_writable(path.parent, "workdir", "take another --workdir")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{path} cannot be opened ({error.strerror or error}); if nobody trains there, delete it, or take another "
            "--workdir"
        ) from error
    with file:
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
