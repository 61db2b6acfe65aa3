"""The loop: continuing bitwise, stopping, NaN, metrics, previews, and what is refused."""

import json
import os
import shutil
import signal
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contextdiff_jax import files
from contextdiff_jax.errors import UserError
from contextdiff_jax.training import NonFiniteLoss, load_params, loop, metrics, preemption, train
from contextdiff_jax.training.metrics import drop_after
from contextdiff_jax.training.workdir import check_workdir, exclusive, steps_in
from tests.training.toy_task import ToyTask, toy_config


class InterruptedTask(ToyTask):
    """Does something when the batch of step `at` is asked for."""

    def __init__(self, config, at, action):
        super().__init__(config)
        self._at, self._action = at, action

    def train_iterator(self, process_index, process_count):
        return _Interrupted(super().train_iterator(process_index, process_count), self._at, self._action)


class _Interrupted:
    def __init__(self, iterator, at, action):
        self._iterator, self._left, self._action = iterator, at, action
        self.get_state, self.set_state = iterator.get_state, iterator.set_state

    def __next__(self):
        self._left -= 1
        if self._left == 0:
            self._action()
        return next(self._iterator)


class Crash(BaseException):
    """Stands for whatever ends a process at once."""


def crash():
    raise Crash


def sigterm():
    os.kill(os.getpid(), signal.SIGTERM)


def hangup():
    os.kill(os.getpid(), signal.SIGHUP)


def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def records(workdir: Path) -> list[dict]:
    """The lines of metrics.jsonl, if there are any."""
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run: its workdir and final state."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, jax.device_get(train(ToyTask(toy_config()), workdir))


@pytest.mark.parametrize("at", [3, 5, 12])
def test_a_run_that_crashed_continues_bitwise(tmp_path, whole, at):
    with pytest.raises(Crash):
        train(InterruptedTask(toy_config(), at, crash), tmp_path)
    state = train(ToyTask(toy_config()), tmp_path)
    chex.assert_trees_all_equal(jax.device_get(state), whole[1])
    keys = ("step", "loss", "grad_norm", "lr")
    logged, expected = ([[r[k] for k in keys] for r in records(d)] for d in (tmp_path, whole[0]))
    assert logged == expected, "every step is logged once, with the same figures"


@pytest.mark.parametrize(
    "action, number, cause",
    [(sigterm, signal.SIGTERM, "SIGTERM"), (ctrl_c, signal.SIGINT, "Ctrl-C"), (hangup, signal.SIGHUP, "SIGHUP")],
)
def test_a_signal_finishes_the_step_saves_and_continues_bitwise(
    tmp_path, whole, capfd, monkeypatch, request, action, number, cause
):
    monkeypatch.setattr(preemption, "_leave_the_terminal", lambda: None)  # it is read below
    if signal.getsignal(number) is signal.SIG_IGN:  # as below nohup
        request.addfinalizer(lambda: signal.signal(number, signal.SIG_IGN))
        signal.signal(number, signal.SIG_DFL)
    before = signal.getsignal(number)
    state = train(InterruptedTask(toy_config(), 6, action), tmp_path)
    assert int(state.step) == 6 and steps_in(tmp_path / "checkpoints") == [6, 4]
    assert f"stopped by {cause} after step 6 of 12; saved" in capfd.readouterr().err
    assert signal.getsignal(number) is before
    state = train(ToyTask(toy_config()), tmp_path)
    assert "continuing from the checkpoint of step 6" in capfd.readouterr().err
    chex.assert_trees_all_equal(jax.device_get(state), whole[1])


@pytest.mark.parametrize("at, saved", [(2, [1]), (5, [4]), (8, [7, 4])])
def test_a_batch_that_cannot_be_read_costs_nothing(tmp_path, whole, capfd, at, saved):
    def gone():
        raise UserError("data.path: a.png cannot be read any more")

    with pytest.raises(UserError, match="a.png cannot be read"):
        train(InterruptedTask(toy_config(), at, gone), tmp_path)
    assert steps_in(tmp_path / "checkpoints") == saved and records(tmp_path)[-1]["step"] == at - 1
    assert f"batch of step {at} cannot be read; the last good checkpoint is of step {at - 1}" in capfd.readouterr().err
    state = train(ToyTask(toy_config()), tmp_path)
    chex.assert_trees_all_equal(jax.device_get(state), whole[1])


def test_a_second_ctrl_c_ends_at_once(tmp_path):
    def twice():
        ctrl_c()
        ctrl_c()

    with pytest.raises(KeyboardInterrupt):
        train(InterruptedTask(toy_config(), 3, twice), tmp_path)
    assert steps_in(tmp_path / "checkpoints") == []


def test_a_finished_run_is_left_as_it_is(tmp_path, capfd):
    first = jax.device_get(train(ToyTask(toy_config()), tmp_path))
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "checkpoints").rglob("*") if p.is_file()}
    again = train(ToyTask(toy_config()), tmp_path)
    chex.assert_trees_all_equal(jax.device_get(again), first)
    assert files == {p: p.stat().st_mtime_ns for p in (tmp_path / "checkpoints").rglob("*") if p.is_file()}
    assert "compiled" not in capfd.readouterr().err.split("continuing")[1]


def test_a_preview_that_fails_does_not_end_the_training(tmp_path, whole, monkeypatch):
    class NoMemory(ToyTask):
        def preview(self, params, frozen, key):
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    said = []
    monkeypatch.setattr(loop.logging, "error", lambda text, *args: said.append(text % args))
    state = train(NoMemory(toy_config(**{"train.preview_every": 6})), tmp_path)
    chex.assert_trees_all_equal(jax.device_get(state), whole[1])
    assert len(said) == 2 and "RESOURCE_EXHAUSTED" in said[0] and "training goes on" in said[0]


@pytest.mark.parametrize("action", [None, sigterm])
def test_a_validation_that_fails_comes_after_the_save_and_none_after_a_signal(tmp_path, whole, monkeypatch, action):
    class Watched(InterruptedTask):
        def held_out_batches(self, process_index, process_count):
            return "val", ToyTask.train_iterator(self, process_index, process_count)

    order, save = [], loop.Checkpoints.save

    def full(validation, ema):
        order.append("validate")
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    said = []
    monkeypatch.setattr(loop.Checkpoints, "save", lambda *args: (order.append("save"), save(*args)))
    monkeypatch.setattr(loop.Validation, "__call__", full)
    monkeypatch.setattr(loop.logging, "error", lambda text, *args: said.append(text % args))
    state = train(Watched(toy_config(**{"train.validate_every": 8}), 6, action or (lambda: None)), tmp_path)
    if action:
        assert order == ["save", "save"] and steps_in(tmp_path / "checkpoints")[0] == int(state.step) == 6
        return
    chex.assert_trees_all_equal(jax.device_get(state), whole[1])
    assert order == ["save", "save", "validate", "save", "validate"], "at steps 4, 8 and 12"
    assert [line[:24] for line in said] == ["validation of step 8 fai", "validation of step 12 fa"]
    assert "RESOURCE_EXHAUSTED" in said[0] and "training goes on" in said[0]


def test_what_a_start_needs_is_looked_for_before_there_is_a_run_and_never_after(tmp_path, whole):
    class Gone(ToyTask):
        def check_start(self):
            raise UserError("config.model.init_from='runs/a' is gone")

    with pytest.raises(UserError, match="runs/a"):
        train(Gone(toy_config()), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert int(train(Gone(toy_config()), whole[0]).step) == 12


def test_validation_sees_held_out_records_with_the_same_noise_and_changes_nothing(tmp_path, whole, capfd):
    class Watched(ToyTask):
        split = "val"

        def held_out_batches(self, process_index, process_count):
            return self.split, self.train_iterator(process_index, process_count)

    changes = {"train.validate_every": 5, "train.validate_batches": 3, "optim.lr": 1e-30, "ema.decay": 0.0}
    train(Watched(toy_config(**changes)), tmp_path / "still")
    seen = [r for r in records(tmp_path / "still") if "validation_loss" in r]
    assert [r["step"] for r in seen] == [5, 10, 12] and seen[0]["validation_stderr"] > 0
    assert len({r["validation_loss"] for r in seen}) == 1, "parameters that stay lose the same"
    assert "validation_loss is of 48 records of the split 'val', which are not trained on" in capfd.readouterr().err
    Watched.split = "train"
    state = train(Watched(toy_config(**{"train.validate_every": 5})), tmp_path / "run")
    chex.assert_trees_all_equal(jax.device_get(state), whole[1])
    assert "NONE IS HELD OUT" in capfd.readouterr().err
    names = {name for r in records(tmp_path / "run") for name in r}
    assert "training_records_loss" in names and "validation_loss" not in names
    with pytest.raises(UserError, match="validate_every=5: .* has no held-out records"):
        train(ToyTask(toy_config(**{"train.validate_every": 5})), tmp_path / "none")


@pytest.mark.parametrize("file", ["metrics.append_whole", "metrics.TensorBoard.write"])
def test_metrics_that_cannot_be_written_are_said_once_and_written_later(tmp_path, whole, monkeypatch, capfd, file):
    """A disk that is full for the second to fourth lines of the log."""
    where = metrics.TensorBoard if "TensorBoard" in file else metrics
    name, calls = file.split(".")[-1], []
    right = getattr(where, name)

    def full(*args):
        calls.append(args)
        if 2 <= len(calls) <= 4:
            raise OSError(28, "No space left on device")
        return right(*args)

    monkeypatch.setattr(where, name, full)
    state = train(ToyTask(toy_config()), tmp_path)
    chex.assert_trees_all_equal(jax.device_get(state), whole[1])
    assert capfd.readouterr().err.count("No space left") == 1
    assert [record["step"] for record in records(tmp_path)] == [2, 4, 6, 8, 10, 12], "nothing is lost"


@pytest.mark.parametrize("log_every", [1, 100])
def test_nan_stops_with_step_and_indices_and_the_last_good_checkpoint(tmp_path, log_every):
    config = toy_config(**{"train.log_every": log_every})
    order = ToyTask(config).train_iterator(0, 1)
    batches = [next(order)["index"] for _ in range(12)]
    bad = int(batches[6][3])
    first = next(i for i, batch in enumerate(batches) if bad in batch) + 1
    assert first == 7
    with pytest.raises(NonFiniteLoss) as error:
        train(ToyTask(config, bad_index=bad), tmp_path)
    text = str(error.value)
    assert f"step 7: the loss of records [{bad}] is NaN" in text
    assert f"batch indices [{', '.join(map(str, sorted(batches[6])))}]" in text
    assert "last good checkpoint is of step 4" in text and "\n" not in text
    assert steps_in(tmp_path / "checkpoints") == [4]
    chex.assert_tree_all_finite(load_params(tmp_path)[0])
    assert all(np.isfinite(record["loss"]) for record in records(tmp_path))


def test_an_infinite_gradient_of_a_finite_loss_stops_too(tmp_path):
    class Cusp(ToyTask):
        def loss(self, params, frozen, batch, key):
            losses, metrics = super().loss(params, frozen, batch, key)
            return losses + jnp.sqrt(jnp.abs(params["denoiser"]["bias"]).sum() * 0.0), metrics

    with pytest.raises(NonFiniteLoss, match="step 1: the gradient is NaN .* no checkpoint yet"):
        train(Cusp(toy_config()), tmp_path)
    assert steps_in(tmp_path / "checkpoints") == []


def test_parameters_that_overflow_are_not_saved(tmp_path):
    """The loss of that step does not see them yet, so only the look before saving does."""
    rate = {"optim.lr": 3e38, "optim.lr_multipliers": ((".*", 10.0),), "optim.warmup_steps": 0}
    config = toy_config(**rate, **{"train.checkpoint_every": 1})
    with pytest.raises(NonFiniteLoss, match=r"step 1: the state has become NaN or infinite; batch indices \[\d+, "):
        train(ToyTask(config), tmp_path)
    assert steps_in(tmp_path / "checkpoints") == []


def test_metrics_are_complete(tmp_path):
    train(ToyTask(toy_config(**{"train.log_every": 5})), tmp_path)
    lines = records(tmp_path)
    assert [record["step"] for record in lines] == [5, 10, 12]
    expected = "step loss lr grad_norm rmse norm images_per_second step_ms peak_memory_mib"
    assert set(lines[0]) == set(expected.split())
    assert lines[0]["peak_memory_mib"] > 50 and lines[0]["images_per_second"] > 0
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_drop_after_keeps_earlier_lines_and_drops_a_torn_one(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "loss": 1.0}\n{"step": 4, "loss": 0.5}\n{"step": 6, "lo')
    before = path.read_text()
    with monkeypatch.context() as patch:
        patch.setattr(metrics, "atomic", lambda path: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        drop_after(path, 2)  # said, and nothing is lost
    assert path.read_text() == before
    drop_after(path, 2)
    assert path.read_text() == '{"step": 2, "loss": 1.0}\n'
    written = path.stat()
    drop_after(path, 2)
    assert path.stat() == written, "nothing was dropped"


def test_what_is_not_finite_is_null_in_the_metrics(tmp_path):
    for_one = metrics.Metrics(tmp_path, 0, 4, 1)
    for_one.note(2, {"loss": 0.5, "stderr": float("nan"), "most": float("inf")})
    for_one.close()
    assert records(tmp_path) == [{"step": 2, "loss": 0.5, "stderr": None, "most": None}]


def test_the_last_metrics_are_tried_once_more_at_the_end_and_tensorboard_is_told_apart(tmp_path, monkeypatch, capfd):
    def full(*args):
        raise OSError(28, "No space left on device")

    said = {}
    for closes in (True, False):
        with monkeypatch.context() as patch:
            for_one = metrics.Metrics(tmp_path / str(closes), 0, 4, 1)
            (tmp_path / str(closes)).mkdir(exist_ok=True)
            patch.setattr(metrics, "append_whole", full)
            for_one.note(2, {"loss": 0.5})
            for_one.note(4, {"loss": 0.25})
            if closes:
                patch.undo()
            for_one.close()
        said[closes] = capfd.readouterr().err
    assert [record["step"] for record in records(tmp_path / "True")] == [2, 4] and "THE LAST" not in said[True]
    assert said[True].count("THE METRICS OF STEP 2 WERE NOT WRITTEN") == said[True].count("No space left") == 1
    assert not records(tmp_path / "False") and "THE LAST 2 LINES OF" in said[False]
    monkeypatch.setattr(metrics.TensorBoard, "write", full)
    for_one.note(4, {"loss": 0.125})
    assert "STEP 4 IS MISSING IN TENSORBOARD'S FILE: " in (of_one := capfd.readouterr().err) and "METRICS" not in of_one


def test_previews_are_captioned_grids(tmp_path):
    train(ToyTask(toy_config(**{"train.preview_every": 5})), tmp_path)
    names = sorted(p.name for p in (tmp_path / "previews").iterdir())
    assert names == ["step-0000005.png", "step-0000010.png", "step-0000012.png"]


def test_previews_do_not_change_the_training(tmp_path, whole):
    state = train(ToyTask(toy_config(**{"train.preview_every": 3})), tmp_path)
    chex.assert_trees_all_equal(jax.device_get(state), whole[1])


def test_a_workdir_in_use_is_refused(tmp_path):
    with exclusive(tmp_path), pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        train(ToyTask(toy_config()), tmp_path)
    train(ToyTask(toy_config(**{"train.num_steps": 1})), tmp_path)


@pytest.mark.parametrize(
    "overrides, words",
    [
        ({"mesh.fsdp": 3}, "does not fit 1 devices"),
        ({"mesh.data": 0}, "sizes are positive"),
        ({"mesh.fsdp": -1}, "at most one is -1"),
        ({"optim.accum_steps": 3}, r"batch_size=16 is not divisible by 3 .*try 18"),
        ({"optim.lr_multipliers": (("decoder", 0.1),)}, "'decoder' matches no parameter"),
        ({"optim.muon": ("decoder",)}, "'decoder' matches no parameter"),
        ({"optim.muon": ("decoder",), "train.trainable": ("bias",)}, "'decoder' matches .* no matrix is trained"),
        ({"optim.muon": ("(",)}, "must be regular expressions"),
        ({"sharding.rules": ((".*", "everywhere"),)}, "'everywhere' is unknown"),
        ({"sharding.rules": ((".*", ("data",)),)}, "does not fit adapter/kernel"),
    ],
)
def test_what_cannot_work_is_one_line_before_any_compilation(tmp_path, overrides, words, capfd):
    with pytest.raises(UserError, match=words) as error:
        train(ToyTask(toy_config(**overrides)), tmp_path)
    assert "\n" not in str(error.value) and "compiled" not in capfd.readouterr().err


def test_a_step_that_does_not_fit_the_device_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(loop.compilation, "available", lambda device: 1000)
    with pytest.raises(UserError, match=r"the training step needs .* GiB, the device has .*; take smaller batches"):
        train(ToyTask(toy_config()), tmp_path)
    clips = toy_config()
    with clips.unlocked():
        clips.data.num_frames = 8
    with pytest.raises(UserError, match=r"needs .* GiB, .*; take smaller frames; data.length takes longer clips"):
        train(ToyTask(clips), tmp_path / "clips")
    monkeypatch.undo()

    def full(self, batch):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(loop.Setup, "compile", full)
    with pytest.raises(UserError, match="does not fit the device .*RESOURCE_EXHAUSTED: out of memory.*; take smaller"):
        train(ToyTask(toy_config()), tmp_path)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), loop.compilation.fitting("a step", "no remedy"):
        raise jax.errors.JaxRuntimeError("INTERNAL: a fault of another kind")


def test_a_start_that_failed_binds_nobody_before_the_first_checkpoint(tmp_path, whole, capfd):
    with pytest.raises(Crash):
        train(InterruptedTask(toy_config(**{"data.image_size": 64, "data.batch_size": 32}), 2, crash), tmp_path)
    (tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp").mkdir()
    state = train(ToyTask(toy_config()), tmp_path)
    chex.assert_trees_all_equal(jax.device_get(state), whole[1])
    assert "changed before the first checkpoint: data.batch_size: saved 32, now 16" in capfd.readouterr().err
    assert json.loads((tmp_path / "config.json").read_text())["data"]["batch_size"] == 16
    for folder in (tmp_path / "checkpoints").iterdir():  # set aside, they are a run's still
        folder.rename(folder.with_name(f"{folder.name}.damaged-0"))
    with pytest.raises(UserError, match="data.batch_size: saved 16, now 32"):
        train(ToyTask(toy_config(**{"data.batch_size": 32})), tmp_path)


def test_a_refused_start_leaves_the_run_as_it_was(tmp_path, whole, monkeypatch):
    class AnotherClip(ToyTask):
        def keep(self, workdir):
            raise UserError("the run was tuned on another clip")

    run = Path(shutil.copytree(whole[0], tmp_path / "run"))
    before = {name: (run / name).read_bytes() for name in ("config.json", "about.json", "metrics.jsonl")}
    longer = toy_config(**{"train.num_steps": 14})
    with pytest.raises(UserError, match="another clip"):
        train(AnotherClip(longer), run)
    with monkeypatch.context() as patch, pytest.raises(UserError, match="take smaller batches"):
        patch.setattr(loop.compilation, "available", lambda device: 1000)
        train(ToyTask(longer), run)
    assert before == {name: (run / name).read_bytes() for name in before}
    assert int(train(ToyTask(longer), run).step) == 14
    assert json.loads((run / "config.json").read_text())["train"]["num_steps"] == 14


def test_a_config_of_a_model_from_elsewhere_is_never_replaced(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="task: saved 'absent', now 'toy'"):
        train(ToyTask(toy_config()), tmp_path)
    assert (tmp_path / "config.json").read_text() == '{"model_type": "bert"}'


def test_a_workdir_that_cannot_be_written_is_refused_first(tmp_path, monkeypatch):
    def refuse(**where):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse)
    with pytest.raises(UserError, match=r"cannot be written \(Permission denied.*another --workdir"):
        train(ToyTask(toy_config()), tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("address", ["gs://bucket/run", "s3://bucket/run"])
def test_a_remote_workdir_is_refused_and_no_local_folder_takes_its_name(address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="remote store.* mount it"):
        train(ToyTask(toy_config()), address)
    assert not list(tmp_path.iterdir())


def test_a_workdir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        train(ToyTask(toy_config()), tmp_path / "file")
    for content in ("{", "[" * 100_000):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match="config.json is damaged .*delete it"):
            train(ToyTask(toy_config()), tmp_path)
    (tmp_path / "config.json").write_text(toy_config().to_json(), encoding="utf-8-sig")
    assert not check_workdir(tmp_path, toy_config())
    (tmp_path / "config.json").write_text('{"train": 3}')
    with pytest.raises(UserError, match="config.json is not a config .*config.train=3 is no section"):
        train(ToyTask(toy_config()), tmp_path)


def test_a_folder_of_checkpoints_that_is_none_and_a_lock_of_another_are_found_at_the_start(tmp_path, monkeypatch):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(UserError, match=r"folder of checkpoints .* cannot be written \(Not a directory"):
        train(ToyTask(toy_config()), tmp_path)
    (tmp_path / "checkpoints").unlink()
    (tmp_path / ".lock").mkdir()  # root may open any file
    with pytest.raises(UserError, match=r"\.lock cannot be opened .*take another --workdir"):
        train(ToyTask(toy_config()), tmp_path)
