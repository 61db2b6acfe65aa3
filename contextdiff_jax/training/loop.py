"""The training loop, for every task: one story from top to bottom."""

import contextlib
import math
import time
from collections import deque
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from contextdiff_jax import compilation, trees
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import local_path, write_json
from contextdiff_jax.training import distributed
from contextdiff_jax.training.checkpoint import Checkpoints
from contextdiff_jax.training.checkpoint_format import brief
from contextdiff_jax.training.metrics import Metrics
from contextdiff_jax.training.preemption import StopRequest
from contextdiff_jax.training.provenance import note_start
from contextdiff_jax.training.setup import Setup
from contextdiff_jax.training.state import stream
from contextdiff_jax.training.validation import Validation
from contextdiff_jax.training.watch import Watch
from contextdiff_jax.training.workdir import check_workdir, exclusive, folder_of, has_trained, steps_in
from contextdiff_jax.types import Batch, TrainState

_SMALLER = "take smaller batches or pictures, of clips fewer frames, or config.model.remat=True"
_AHEAD = 2  # steps that may wait on the devices: enough to keep them busy, few enough to hold few batches


def train(task: Any, workdir: str | Path, *, allow_config_change: bool = False) -> TrainState:
    """Trains `task` in `workdir`, or continues there from the newest intact checkpoint.

    Returns:
        The state at the end, or where SIGTERM or Ctrl-C stopped the run (compare `state.step` with `train.num_steps`).

    Raises:
        UserError: a config that does not fit the devices or the workdir, a workdir in use or not shared by all
            processes, checkpoints that are all damaged, a last checkpoint that could not be saved.
        Exception: what the task's batches raise; with one process the state before is saved first.
        NonFiniteLoss: (a UserError) names the step and the record indices of its batch; checkpoints stay
            intact.
    """
    config, workdir = task.config, local_path(workdir)
    num_steps, every = config.train.num_steps, config.train
    with contextlib.ExitStack() as stack:
        with distributed.together():
            changes = check_workdir(workdir, config, allow_config_change=allow_config_change)
            allowed = "by --allow_config_change" if has_trained(workdir) else "before the first checkpoint"
            if hasattr(task, "check_start") and not steps_in(folder_of(workdir)):
                task.check_start()
            if distributed.is_primary():
                stack.enter_context(exclusive(workdir))
        distributed.check_shared(workdir)
        stop = stack.enter_context(StopRequest())

        # Shapes first: whatever does not fit is said before anything is allocated or compiled.
        setup = Setup.of(task)
        if hasattr(task, "check"):
            task.check()
        batches = setup.train_iterator()
        checkpoints = Checkpoints(workdir, config)
        stack.callback(checkpoints.close)

        # The newest intact checkpoint, or a fresh start.
        state = checkpoints.restore(setup.abstract, batches, any_records=allow_config_change)
        first = 0 if state is None else int(state.step)
        state = setup.init_state() if state is None else state
        if hasattr(task, "keep"):
            task.keep(workdir)
        validation = Validation(setup) if every.validate_every else None
        records = str(batches.get_state().get("records", ""))
        checkpoints.open()
        metrics = Metrics(workdir, first, num_steps, config.data.batch_size)
        stack.callback(metrics.close)
        metrics.say(_greeting(setup, first, num_steps))
        for change in changes:
            metrics.say(f"changed {allowed}: {change}")
        if validation:
            metrics.say(validation.about)
        if first >= num_steps:
            _write_config(config, workdir / "config.json")

        watch = Watch(setup.init_guard(), setup.shard[0])
        compiled, queued = None, deque()
        for step in range(first + 1, num_steps + 1):
            try:
                batch = next(batches)
            except Exception:
                if step - 1 > first:
                    _rescue(setup, checkpoints, state, batches, watch, metrics)
                raise
            watch.note(step, batch)
            batch = setup.put(batch)
            if compiled is None:
                with metrics.pause():
                    compiled = _compile(setup, batch, metrics)
                    # Only now is it this config's run: a start that was refused leaves the folder as it was.
                    _write_config(config, workdir / "config.json")
                    note_start(workdir, setup.runtime, records, first)
            state, watch.guard, values = compiled(state, watch.guard, setup.frozen, batch)
            metrics.add(values)
            queued.append(values["loss"])
            if len(queued) > _AHEAD:
                queued.popleft().block_until_ready()

            checkpoints.poll()
            stopping = stop.reached(step)
            last = stopping or step == num_steps
            log_due, save_due = (last or step % n == 0 for n in (every.log_every, every.checkpoint_every))
            preview_due = not stopping and every.preview_every and (last or step % every.preview_every == 0)
            validation_due = not stopping and validation and (last or step % every.validate_every == 0)
            if log_due or save_due or preview_due or validation_due:
                watch.check(checkpoints.newest_in_words)
            if log_due:
                metrics.log(step)
            # What may fail, for lack of memory at the least, comes after the save.
            if save_due:
                with metrics.pause():
                    _save(setup, checkpoints, state, batches, watch)
            if validation_due:
                with metrics.pause():
                    _validate(validation, state, metrics)
            if preview_due:
                with metrics.pause():
                    _preview(setup, state, workdir / "previews" / f"step-{step:07d}.png")
            if last:
                break

        checkpoints.close()
        if checkpoints.failure:
            raise UserError(
                f"the last checkpoint could not be saved: {checkpoints.failure}; "
                f"{checkpoints.newest_in_words()}; put that right and run the same command again"
            )
        metrics.say(_farewell(int(state.step), num_steps, workdir, stop.cause))
    return state


def _write_config(config: ConfigDict, path: Path) -> None:
    """Puts the config into the workdir; of all processes.

    Raises:
        UserError: the disk is full.
    """
    with distributed.together():
        try:
            if distributed.is_primary():
                write_json(config.to_dict(), path)
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({error.strerror}); make room, or take another --workdir"
            ) from error


def _compile(setup: Setup, batch: Batch, metrics: Metrics) -> jax.stages.Compiled:
    """The compiled step; says how long that took.

    Raises:
        UserError: the device has less memory than the compiler says that a step needs.
    """
    start = time.perf_counter()
    metrics.say("compiling the training step; a large model takes minutes")
    with compilation.fitting("the training step", _SMALLER):
        compiled = setup.compile(batch)
    data = setup.task.config.data
    frames = data.num_frames if "num_frames" in data else 1
    remedy = lambda room: f"{compilation.fewer_frames(frames)(room)}; {_SMALLER}" if frames > 1 else _SMALLER
    compilation.check_memory(compiled, "the training step", setup.runtime.local[0], remedy)
    metrics.say(f"compiled the training step in {time.perf_counter() - start:.0f} s")
    return compiled


def _save(setup: Setup, checkpoints: Checkpoints, state: TrainState, batches: Any, watch: Watch) -> None:
    """Starts a save, unless the state went bad where the loss of its step could not show it yet."""
    if hasattr(setup.task, "check_params"):
        for trained in (state.params, state.ema):
            setup.task.check_params(trees.merge(setup.frozen.get("fixed", {}), trained))
    try:
        checkpoints.save(state, batches)
    except FloatingPointError:
        watch.stop(int(state.step), "the state has become", checkpoints.newest_in_words())


def _rescue(
    setup: Setup, checkpoints: Checkpoints, state: TrainState, batches: Any, watch: Watch, metrics: Metrics
) -> None:
    """Saves the state of the last step before a batch that cannot be read. With several processes the others are
    not here to do so, and what the last checkpoint has is what is left."""
    step = int(state.step)
    if jax.process_count() > 1:
        return
    try:
        watch.check(checkpoints.newest_in_words)
        metrics.log(step)
        if checkpoints.newest() != step:
            _save(setup, checkpoints, state, batches, watch)
        metrics.say(f"the batch of step {step + 1} cannot be read; {checkpoints.newest_in_words()}")
    except Exception as error:
        logging.error("the state of step %d could not be saved: %s", step, brief(error))


def _greeting(setup: Setup, first: int, num_steps: int) -> str:
    """What is about to happen."""
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(setup.abstract.params))
    mesh = ", ".join(f"{axis} {size}" for axis, size in setup.mesh.shape.items())
    what = f"continuing from the checkpoint of step {first}" if first else "starting"
    return f"{what}, to step {num_steps}; {count / 1e6:.3g} M parameters on {setup.runtime.platform} (mesh: {mesh})"


def _farewell(step: int, num_steps: int, workdir: Path, cause: str) -> str:
    """What has happened."""
    if step < num_steps:
        return f"stopped by {cause} after step {step} of {num_steps}; saved; run the same command to continue"
    written = "checkpoints, metrics and previews" if (workdir / "previews").is_dir() else "checkpoints and metrics"
    return f"finished step {step}; {written} are in {workdir}"


def _validate(validation: Validation, state: TrainState, metrics: Metrics) -> None:
    """Notes the loss of the averaged parameters; whatever fails here is logged, as of a preview."""
    step = int(state.step)
    try:
        metrics.note(step, validation(state.ema))
    except Exception as error:
        logging.error("validation of step %d failed: %s; training goes on", step, brief(error))


def _preview(setup: Setup, state: TrainState, path: Path) -> None:
    """Captioned pictures of the averaged parameters, from the same noise every time: grids compare.

    Whatever fails here, memory included, is logged: a training does not end for a picture.
    """
    # Only here: pictures need fonts and image libraries, which a run without previews does not.
    from contextdiff_jax.pictures import caption_grid

    try:
        params = trees.merge(setup.frozen.get("fixed", {}), state.ema)
        drawn = setup.task.preview(params, setup.frozen, stream(setup.task.config.seed, "preview"))
        if drawn is not None and distributed.is_primary():
            caption_grid(np.asarray(drawn[0]), drawn[1], path)
    except Exception as error:
        logging.error("preview %s failed: %s; training goes on", path, brief(error))
