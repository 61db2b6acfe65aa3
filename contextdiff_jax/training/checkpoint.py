"""Checkpoints: saved in the background, verified on restore, damaged ones set aside.

    <workdir>/config.json                     the config of the run
    <workdir>/checkpoints/<step>/             params, ema, optimizer: arrays; data, config, fingerprints: JSON
    <workdir>/checkpoints/<step>/checksums.json
    <workdir>/checkpoints/<step>.damaged-0/   set aside, never deleted

A folder named by a number is a committed checkpoint: it is written under another name and renamed when whole.
"""

import contextlib
import errno
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from absl import logging
from ml_collections import ConfigDict

from contextdiff_jax.errors import UserError
from contextdiff_jax.training import checkpoint_format as form
from contextdiff_jax.training import distributed, integrity
from contextdiff_jax.training.workdir import folder_of, steps_in
from contextdiff_jax.types import Params, TrainState

__all__ = ["Checkpoints", "load_params"]

T = TypeVar("T")

_DAMAGED = -2
_COMPRESSED = 0.9  # of the state's bytes are left of it on disk, at the least: floats hardly shrink


class _Damaged(Exception):
    """A checkpoint that can be read, and holds something else than what was saved."""


class Checkpoints:
    """Saves and restores the checkpoints of one run; every process has one and calls it at the same steps."""

    def __init__(self, workdir: str | Path, config: ConfigDict):
        self.folder = folder_of(workdir)
        self._config = json.loads(json.dumps(config.to_dict()))
        self._train = config.train
        self._manager: ocp.CheckpointManager | None = None
        self._hashing: threading.Thread | None = None
        self._in_flight: int | None = None
        self._healthy = True
        self.failure = ""  # why the last save failed, if it did

    # Restore.

    def restore(self, abstract: TrainState, iterator: Any, any_records: bool = False) -> TrainState | None:
        """The newest intact state, with the iterator moved to where it was; None where there is none yet.

        Args:
            abstract: shapes and shardings of the state.
            iterator: this process's data iterator.
            any_records: whether the data may be other records than those the run has seen.

        Raises:
            UserError: there are checkpoints and all are damaged, or an intact one does not fit the model.
        """
        damaged: dict[int, str] = {}
        while (step := distributed.agree(self._next_candidate(damaged))) >= 0:
            state, problem = self._try(step, abstract, iterator, any_records)
            if state is not None:
                self._set_aside(damaged, step)
                return state
            damaged[step] = problem
        if step == _DAMAGED:
            listed = "; ".join(f"{s}: {why}" for s, why in damaged.items()) or "see the messages of process 0"
            raise UserError(
                f"all checkpoints in {self.folder} are damaged ({listed}); nothing was changed; "
                "restore one from a copy, or take another --workdir to start anew"
            )
        return None

    def _next_candidate(self, damaged: dict[int, str]) -> int:
        """The newest step whose files are not known to be damaged; -1: no checkpoint; -2: all are damaged."""
        with distributed.together():
            if not distributed.is_primary():
                return -1
            steps = steps_in(self.folder)
            for step in steps:
                problem = damaged.get(step) or integrity.find_damage(self.folder / str(step))
                if problem is None:
                    return step
                damaged[step] = problem
            return _DAMAGED if steps else -1

    def _try(
        self, step: int, abstract: TrainState, iterator: Any, any_records: bool
    ) -> tuple[TrainState | None, str]:
        """The state of a step, or None and why it is damaged.

        Raises:
            UserError: it may be intact, but one of the processes cannot take it.
        """
        directory = self.folder / str(step)
        loaded, problem = self._attempt(directory, lambda: form.read(directory, form.abstract_items(abstract)))
        if loaded is None:
            return None, problem
        optimizer = loaded["optimizer"]
        state = TrainState(optimizer["step"], loaded["params"], loaded["ema"], optimizer["opt_state"])
        # Of arrays that are spread over processes: none may begin before all have read.
        agreed, problem = self._attempt(directory, lambda: _compared(loaded, state))
        if agreed is None:
            return None, problem
        with distributed.together():
            form.set_iterator(iterator, loaded["data"], loaded["config"]["data"]["batch_size"], any_records)
        if distributed.is_primary() and not integrity.has_checksums(directory):
            self._checksum(directory)
        return state, ""

    def _attempt(self, directory: Path, read: Callable[[], T]) -> tuple[T | None, str]:
        """What `read` returns on this process, if it does on all of them; else None and why the checkpoint is damaged.

        Raises:
            UserError: see `checkpoint_format.refusal`.
        """
        result, problem = None, ""
        with distributed.together():
            try:
                result = read()
            except _Damaged as error:
                problem = str(error)
            except Exception as error:
                problem = _why_unreadable(error, directory)
        if not distributed.all_true(not problem):
            return None, problem or "another process cannot read it"
        return result, ""

    def _set_aside(self, damaged: dict[int, str], used: int) -> None:
        """Renames what was found damaged, now that an intact checkpoint is in hand, and says so."""
        for step, why in damaged.items():
            if distributed.is_primary():
                target = integrity.set_aside(self.folder / str(step))
                logging.warning(
                    "checkpoint %d is damaged (%s): set aside as %s; continuing from checkpoint %d",
                    step,
                    why,
                    target.name,
                    used,
                )
        distributed.barrier("checkpoints set aside")

    # Save.

    def open(self) -> None:
        """Makes the folder ready for saving; after `restore`."""
        if distributed.is_primary():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_half_written()
        distributed.barrier("checkpoint folder")
        self._manager = self._new_manager()

    def _new_manager(self) -> ocp.CheckpointManager:
        """Orbax's manager of the folder, with the config's policy of what to keep."""
        policy = ocp.checkpoint_managers
        kept = [policy.LatestN(self._train.keep)]
        if self._train.keep_every:
            kept.append(policy.EveryNSteps(self._train.keep_every))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy.AnyPreservationPolicy(kept), lightweight_initialize=True
        )
        return ocp.CheckpointManager(self.folder, options=options, item_names=form.ITEMS)

    def _recover(self) -> None:
        """After a failed save on any process: a new manager; the old one would raise that error again."""
        if distributed.all_true(self._healthy):
            return
        with contextlib.suppress(Exception):
            self._manager.close()
        self._manager, self._healthy = self._new_manager(), True

    def _remove_half_written(self) -> None:
        """Frees the space of saves that a kill or an error ended."""
        for half_written in self.folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(half_written, ignore_errors=True)

    def save(self, state: TrainState, iterator: Any) -> None:
        """Starts a save in the background; if it cannot even start, that is reported like a later failure.

        Raises:
            FloatingPointError: the state holds NaN or infinity; nothing is written.
        """
        self._settle()
        step = int(state.step)
        finite, prints = integrity.fingerprints(form.items_of(state))
        if not finite:
            raise FloatingPointError(f"the state after step {step} holds NaN or infinity")
        data = form.iterator_states(iterator)
        digests = {"data": integrity.json_digest(data), "config": integrity.json_digest(self._config)}
        arrays = {name: ocp.args.PyTreeSave(tree) for name, tree in form.items_of(state).items()}
        values = {"data": data, "config": self._config, "fingerprints": {"arrays": prints, "json": digests}}
        jsons = {name: ocp.args.JsonSave(value) for name, value in values.items()}
        self._recover()
        if distributed.is_primary():
            self._remove_half_written()
        try:
            self._check_space(form.items_of(state))
            self._manager.save(step, args=ocp.args.Composite(**arrays, **jsons), force=True)
            self._in_flight = step
        except Exception as error:
            self._report(step, error)

    def _check_space(self, items: dict[str, Any]) -> None:
        """Raises OSError for what will not fit, before Orbax begins, whose threads report it in thousands of lines."""
        need = sum(leaf.nbytes for leaf in jax.tree.leaves(items))
        free = shutil.disk_usage(self.folder).free
        if distributed.agree(int(free < _COMPRESSED * need)):
            megabytes = f"{free / 1e6:.0f} MB are free, the checkpoint has {need / 1e6:.0f} MB"
            raise OSError(errno.ENOSPC, f"No space left on device: {megabytes}", str(self.folder))

    def poll(self) -> None:
        """To be called after every step: reports a failed save, and has a finished one checksummed."""
        if self._in_flight is not None and not self._manager.is_saving_in_progress():
            self._finish()

    def _settle(self) -> None:
        """Waits for the save in flight and its checksums."""
        if self._in_flight is not None:
            self._finish()
        if self._hashing is not None:
            self._hashing.join()
            self._hashing = None

    def _finish(self) -> None:
        """Takes note of how the save in flight ended."""
        step, self._in_flight = self._in_flight, None
        directory = self.folder / str(step)
        try:
            self._manager.wait_until_finished()
            if distributed.is_primary() and not directory.is_dir():
                raise FileNotFoundError(f"{directory} was not committed")
        except Exception as error:
            self._report(step, error)
            return
        self.failure = ""
        if distributed.is_primary():
            self._hashing = threading.Thread(target=self._checksum, args=(directory,), name="checksums")
            self._hashing.start()

    def _checksum(self, directory: Path) -> None:
        """Writes the checksums; without them the fingerprints still vouch for the checkpoint."""
        try:
            integrity.write_checksums(directory)
        except OSError as error:
            logging.error("checkpoint %s was saved, but its checksums could not be written: %s", directory, error)

    def _report(self, step: int, error: Exception) -> None:
        """Says loudly that a save failed."""
        self._healthy = False
        self.failure = f"step {step}: {form.brief(error)}"
        logging.error(
            "THE CHECKPOINT OF STEP %d WAS NOT SAVED: %s; %s; training goes on, and so do later saves",
            step,
            form.brief(error),
            self.newest_in_words(),
        )

    def newest(self) -> int | None:
        """The step that a new start would continue from; waits for the save in flight."""
        self._settle()
        return next(iter(steps_in(self.folder)), None)

    def newest_in_words(self) -> str:
        """The same as a message says it."""
        step = self.newest()
        return "there is no checkpoint yet" if step is None else f"the last good checkpoint is of step {step}"

    def close(self) -> None:
        """Waits for what is in flight. A second call does nothing."""
        if self._manager is not None:
            self._settle()
            # A manager that has failed may raise the same error again; it has been reported.
            with contextlib.nullcontext() if self._healthy else contextlib.suppress(Exception):
                self._manager.close()
            self._manager = None
            if distributed.is_primary():
                self._remove_half_written()


def _why_unreadable(error: Exception, directory: Path) -> str:
    """Why a checkpoint is damaged, of which reading has raised an error.

    Raises:
        UserError: it may be whole; see `checkpoint_format.refusal`.
    """
    if refusal := form.refusal(error, directory, integrity.has_checksums(directory)):
        raise UserError(refusal) from error
    return f"it cannot be read ({form.brief(error)})"


def _compared(loaded: dict[str, Any], state: TrainState) -> bool:
    """True, if the state is what was saved; raises `_Damaged` otherwise."""
    if problem := form.disagreement(loaded, form.items_of(state)):
        raise _Damaged(problem)
    return True


def load_params(workdir: str | Path, step: int | None = None, ema: bool = True) -> tuple[Params, dict[str, Any], int]:
    """The trained parameters of a run as host arrays, with its config and step; changes nothing on disk.

    Args:
        workdir: the run's folder.
        step: which checkpoint; None takes the newest intact one.
        ema: the averaged parameters, or the last ones.

    Raises:
        UserError: no such run, no such step, or damaged; or one that cannot be read, which is no damage.
    """
    folder = folder_of(workdir)
    steps = steps_in(folder)
    if not steps:
        raise UserError(f"no checkpoint in {folder}; train first with --mode=train, or give another --workdir")
    if step is not None and step not in steps:
        raise UserError(f"no checkpoint of step {step} in {folder}; there are {', '.join(map(str, steps[::-1]))}")
    name, problems = "ema" if ema else "params", []
    for candidate in steps if step is None else [step]:
        directory = folder / str(candidate)
        problem = integrity.find_damage(directory, without={*form.ARRAYS} - {name})
        if problem is None:
            try:
                loaded = form.read(directory, {name: form.on_host(directory / name)})
                problem = form.disagreement(loaded, {name: loaded[name]})
            except Exception as error:
                problem = _why_unreadable(error, directory)
        if problem is None:
            if problems:
                logging.warning("checkpoint %s; using checkpoint %d", "; ".join(problems), candidate)
            return loaded[name], loaded["config"], candidate
        problems.append(f"{candidate} is damaged ({problem})")
    raise UserError(f"no intact checkpoint in {folder}: {'; '.join(problems)}")
