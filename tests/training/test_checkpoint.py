"""Saving and restoring: what is damaged is noticed, what failed is said, what is intact is never lost."""

import gc
import json
import logging as std_logging
import os
import resource
import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from absl import logging

from configs import autoencoder, t2i
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import write_json
from contextdiff_jax.pipeline import loading
from contextdiff_jax.training import check_workdir, integrity, load_params, train
from contextdiff_jax.training import checkpoint_format as form
from contextdiff_jax.training.checkpoint import Checkpoints
from contextdiff_jax.training.setup import Setup
from contextdiff_jax.training.workdir import steps_in
from tests.training.toy_task import ToyTask, toy_config


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run of 12 steps with the checkpoints 4, 8 and 12. Tests work on copies."""
    workdir = tmp_path_factory.mktemp("run")
    train(ToyTask(toy_config()), workdir)
    return workdir


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    """What is said by logging.warning and logging.error."""
    said = []
    for level in ("warning", "error"):
        monkeypatch.setattr(logging, level, lambda text, *args, **_: said.append(text % args if args else text))
    return said


def everything(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint by name, read without this library."""
    items = {}
    for item in ("params", "ema", "optimizer"):
        tree = ocp.PyTreeCheckpointer().restore(workdir / "checkpoints" / str(step) / item)
        items |= {item + jax.tree_util.keystr(p): np.asarray(v) for p, v in jax.tree_util.tree_leaves_with_path(tree)}
    return items


def assert_bitwise_equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys() and len(a) > 8
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].tobytes() == b[name].tobytes(), name


def largest_file(folder: Path) -> Path:
    """The file with most data in it."""
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip_bit(path: Path, position: float = 0.5) -> None:
    """Changes one bit of a file."""
    data = bytearray(path.read_bytes())
    data[int(position * (len(data) - 1))] ^= 0x10
    path.write_bytes(data)


def flip_in_arrays(folder: Path) -> None:
    flip_bit(largest_file(folder / "params"))


def flip_in_data(folder: Path) -> None:
    flip_bit(folder / "data" / "metadata")


def flip_in_checksums(folder: Path) -> None:
    flip_bit(folder / integrity.CHECKSUMS)


def truncate(folder: Path) -> None:
    os.truncate(largest_file(folder), largest_file(folder).stat().st_size // 2)


def remove_file(folder: Path) -> None:
    largest_file(folder / "ema").unlink()


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGES = [flip_in_arrays, flip_in_data, flip_in_checksums, truncate, remove_file, empty]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_newest_is_set_aside_and_the_one_before_used(run, finished, warnings, damage):
    damage(run / "checkpoints" / "12")
    train(ToyTask(toy_config()), run)
    (text,) = [w for w in warnings if "damaged" in w]
    assert "checkpoint 12 is damaged" in text and "continuing from checkpoint 8" in text
    assert (run / "checkpoints" / "12.damaged-0").is_dir()
    assert_bitwise_equal(everything(run, 12), everything(finished, 12))


def test_every_flipped_bit_of_every_file_is_noticed(run):
    rng = np.random.default_rng(0)
    folder = run / "checkpoints" / "12"
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != integrity.CHECKSUMS):
        original = path.read_bytes()
        if original:
            flip_bit(path, rng.random())
            assert path.name in integrity.find_damage(folder)
            path.write_bytes(original)
    assert integrity.find_damage(folder) is None


def test_two_damaged_are_both_set_aside_and_never_collected(run, warnings):
    flip_in_arrays(run / "checkpoints" / "12")
    truncate(run / "checkpoints" / "8")
    (run / "checkpoints" / "8.damaged-0").mkdir()  # from an earlier accident
    train(ToyTask(toy_config()), run)
    assert sum("continuing from checkpoint 4" in w for w in warnings) == 2
    names = {p.name for p in (run / "checkpoints").iterdir()}
    assert {"4", "8", "12", "12.damaged-0", "8.damaged-0", "8.damaged-1"} <= names


def test_all_damaged_is_an_error_and_nothing_is_changed(run):
    for step in (4, 8, 12):
        flip_in_arrays(run / "checkpoints" / str(step))
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"}
    with pytest.raises(UserError, match="all checkpoints .* are damaged"):
        train(ToyTask(toy_config()), run)
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"}
    with pytest.raises(UserError, match="no intact checkpoint"):
        load_params(run, ema=False)


def test_half_written_checkpoint_is_ignored_and_removed(run, warnings):
    shutil.copytree(run / "checkpoints" / "12", run / "checkpoints" / "16.orbax-checkpoint-tmp")
    assert steps_in(run / "checkpoints") == [12, 8, 4]
    train(ToyTask(toy_config()), run)
    assert not warnings and not (run / "checkpoints" / "16.orbax-checkpoint-tmp").exists()


def test_kill_before_the_checksums_loses_nothing(run, warnings):
    (run / "checkpoints" / "12" / integrity.CHECKSUMS).unlink()
    assert load_params(run)[2] == 12
    assert int(train(ToyTask(toy_config()), run).step) == 12
    assert not warnings and integrity.has_checksums(run / "checkpoints" / "12")


@pytest.mark.parametrize(
    "damage, item",
    [
        (flip_bit, "params"),
        (flip_bit, "data"),
        (lambda p: os.truncate(p, 20), "optimizer"),
        (Path.unlink, "ema"),
    ],
)
def test_damage_is_noticed_without_checksums_as_well(run, finished, warnings, damage, item):
    folder = run / "checkpoints" / "12"
    (folder / integrity.CHECKSUMS).unlink()
    # Orbax keeps spare copies within an item, so all of them are damaged.
    for path in [p for p in (folder / item).rglob("*") if p.parent.name == "d" or p.name == "metadata"]:
        damage(path)
    train(ToyTask(toy_config()), run)
    assert any("checkpoint 12 is damaged" in w and "continuing from checkpoint 8" in w for w in warnings)
    assert_bitwise_equal(everything(run, 12), everything(finished, 12))


def test_load_params_gives_what_was_trained_and_changes_nothing(run, finished, warnings):
    state = train(ToyTask(toy_config()), run)
    for ema, tree in ((True, state.ema), (False, state.params)):
        params, config, step = load_params(run, ema=ema)
        assert step == 12 and config["task"] == "toy"
        chex.assert_trees_all_equal(params, jax.device_get(tree))
    assert load_params(run, step=4)[2] == 4
    flip_bit(largest_file(run / "checkpoints" / "12" / "optimizer"))
    assert load_params(run)[2] == 12 and not warnings, "nothing else is read"
    flip_bit(largest_file(run / "checkpoints" / "12" / "ema"))
    assert load_params(run)[2] == 8 and "12 is damaged (ema/" in warnings[-1]
    assert (run / "checkpoints" / "12").exists(), "a reader renames nothing"
    with pytest.raises(UserError, match="12 is damaged"):
        load_params(run, step=12)
    with pytest.raises(UserError, match="no checkpoint of step 5 .* 4, 8, 12"):
        load_params(run, step=5)
    with pytest.raises(UserError, match="train first"):
        load_params(run / "nowhere")


def test_a_checkpoint_that_may_not_be_read_is_not_damaged(run, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(integrity, "file_digest", refuse)
    for read in lambda: load_params(run), lambda: train(ToyTask(toy_config()), run):
        with pytest.raises(UserError, match=r"checkpoints/12/.* cannot be read \(Permission denied\); make it"):
            read()
    assert not list((run / "checkpoints").glob("*.damaged-*"))


def test_a_full_disk_is_loud_within_one_step_and_later_saves_go_on(tmp_path, warnings, finished, monkeypatch):
    """RLIMIT_FSIZE makes every larger write fail, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    heard_at = []

    class FullDisk(ToyTask):
        def train_iterator(self, process_index, process_count):
            return _Steps(super().train_iterator(process_index, process_count), self.on_step)

        def on_step(self, step):
            if step == 4:
                resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
            if any("STEP 4 WAS NOT SAVED" in w for w in warnings) and not heard_at:
                heard_at.append(step)
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            if step == 6 and not heard_at:
                pytest.fail("the failure was not reported within a step")

    try:
        train(FullDisk(toy_config(**{"train.log_every": 100})), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        # Orbax leaves failed tasks behind, which asyncio would report at the end of all tests.
        monkeypatch.setattr(std_logging.getLogger("asyncio"), "disabled", True)
        gc.collect()
    # When only a small file of step 4 failed, its arrays may still arrive once the disk has room again.
    assert steps_in(tmp_path / "checkpoints")[:2] == [12, 8]
    assert not list((tmp_path / "checkpoints").glob("*tmp*"))
    assert_bitwise_equal(everything(tmp_path, 12), everything(finished, 12))


class _Steps:
    """An iterator that tells which step (from 1) asks for its batch."""

    def __init__(self, iterator, on_step):
        self._iterator, self._on_step, self._step = iterator, on_step, 0
        self.get_state, self.set_state = iterator.get_state, iterator.set_state

    def __next__(self):
        self._step += 1
        self._on_step(self._step)
        return next(self._iterator)


@pytest.mark.parametrize("background", [True, False])
def test_a_failed_save_is_reported_and_training_goes_on(tmp_path, monkeypatch, warnings, background):
    save = ocp.PyTreeCheckpointHandler.async_save

    async def fail(self, directory, *args, **kwargs):
        futures = await save(self, directory, *args, **kwargs)
        if "8" not in str(directory.parent.name if hasattr(directory, "parent") else directory.path.parent.name):
            return futures
        if not background:
            raise OSError(28, "No space left on device")
        return [*futures, _Failing()]

    class _Failing:
        def result(self, timeout=None):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "async_save", fail)
    train(ToyTask(toy_config()), tmp_path)
    (text,) = [w for w in warnings if "WAS NOT SAVED" in w]
    assert "STEP 8" in text and "No space left" in text and "last good checkpoint is of step 4" in text
    assert steps_in(tmp_path / "checkpoints") == [12, 4]


def test_what_will_not_fit_is_not_begun(tmp_path, monkeypatch, warnings):
    begun, save, usage = [], ocp.CheckpointManager.save, shutil.disk_usage(tmp_path)

    def counted(self, step, *args, **how):
        begun.append(step)
        return save(self, step, *args, **how)

    monkeypatch.setattr(ocp.CheckpointManager, "save", counted)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1000 if begun else 10**12))
    with pytest.raises(UserError, match="step 12: .*No space left on device: 0 MB are free.*of step 4"):
        train(ToyTask(toy_config()), tmp_path)
    assert begun == [4] and [w for w in warnings if "STEP 8 WAS NOT SAVED" in w]
    assert steps_in(tmp_path / "checkpoints") == [4]


def test_a_last_save_that_fails_is_an_error(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ocp.CheckpointManager, "save", fail)
    with pytest.raises(UserError, match="could not be saved: step 12: OSError: .*No space left.*no checkpoint yet"):
        train(ToyTask(toy_config()), tmp_path)


def test_keep_policy(tmp_path):
    keep = {"train.checkpoint_every": 1, "train.keep": 2, "train.keep_every": 5}
    train(ToyTask(toy_config(**keep)), tmp_path)
    assert steps_in(tmp_path / "checkpoints") == [12, 11, 10, 5]


def test_another_config_is_refused_with_its_keys(run):
    other = toy_config(**{"optim.lr": 0.5, "data.batch_size": 8, "train.log_every": 3, "train.preview_every": 7})
    for call in (lambda: check_workdir(run, other), lambda: train(ToyTask(other), run)):
        with pytest.raises(UserError) as error:
            call()
        assert "optim.lr: saved 0.01, now 0.5" in str(error.value)
        assert "data.batch_size: saved 16, now 8" in str(error.value)
        assert "log_every" not in str(error.value) and "preview_every" not in str(error.value)
    listed = check_workdir(run, other, allow_config_change=True)
    assert listed == ["data.batch_size: saved 16, now 8", "optim.lr: saved 0.01, now 0.5"]


def test_a_run_is_not_shortened_below_what_it_has_trained(run):
    shorter = toy_config(**{"train.num_steps": 6})
    for allowed in (False, True):
        with pytest.raises(UserError, match="num_steps=6, but .* has trained 12 steps; leave it at 12"):
            check_workdir(run, shorter, allow_config_change=allowed)


def test_a_longer_run_moved_data_and_another_cadence_need_no_flag(run):
    free = {"train.log_every": 3, "train.checkpoint_every": 7, "train.keep_every": 7, "data.path": "elsewhere"}
    longer = toy_config(**free, **{"train.num_steps": 14})
    assert int(train(ToyTask(longer), run).step) == 14
    assert json.loads((run / "config.json").read_text())["train"]["num_steps"] == 14
    with pytest.raises(UserError, match="num_steps=13, but .* has trained 14 steps; leave it at 14"):
        check_workdir(run, toy_config(**{"train.num_steps": 13}))


def test_what_is_allowed_by_the_flag_is_listed(run, capfd):
    train(ToyTask(toy_config(**{"optim.b1": 0.8})), run, allow_config_change=True)
    assert "changed by --allow_config_change: optim.b1: saved 0.9, now 0.8" in capfd.readouterr().err


@pytest.mark.parametrize(
    "key, value",
    [("model.channels", 32), ("adapter.bound", 0.0), ("process.schedule", "linear"), ("train.lora.scale", 2.0)],
)
def test_no_flag_allows_another_model(tmp_path, key, value):
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    write_json(t2i.get_config("tiny").to_dict(), tmp_path / "config.json")
    other = t2i.get_config("tiny")
    other.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=f"{key}: saved .* is another model"):
        check_workdir(tmp_path, other, allow_config_change=True)
    other = t2i.get_config("tiny")
    other.model.remat, other.adapter.track_lipschitz = True, True
    assert len(check_workdir(tmp_path, other, allow_config_change=True)) == 2
    other = t2i.get_config("tiny")
    other.condition.kept_texts, other.data.class_words = 8, "elsewhere"  # a table's size, and where data lie
    assert not check_workdir(tmp_path, other)


@pytest.mark.parametrize("key", ["model.init_from", "adapter.start"])
def test_what_is_frozen_may_lie_elsewhere(tmp_path, key):
    """That it is the same says the run's record of it."""
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    own, moved = t2i.get_config("tiny"), t2i.get_config("tiny")
    own.train.trainable = moved.train.trainable = ("^lora/",)
    own.update_from_flattened_dict({key: "here"})
    moved.update_from_flattened_dict({key: "there"})
    write_json(own.to_dict(), tmp_path / "config.json")
    with pytest.raises(UserError, match=f"{key}: saved 'here', now 'there'.*allow it with --allow_config_change"):
        check_workdir(tmp_path, moved)
    assert check_workdir(tmp_path, moved, allow_config_change=True) == [f"{key}: saved 'here', now 'there'"]


def test_other_sizes_of_an_autoencoder_are_another_model(tmp_path):
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    write_json(autoencoder.get_config("tiny").to_dict(), tmp_path / "config.json")
    other = autoencoder.get_config("tiny")
    other.autoencoder.kl_weight = 1.0
    assert len(check_workdir(tmp_path, other, allow_config_change=True)) == 1
    other.autoencoder.latent_channels = 3
    with pytest.raises(UserError, match="autoencoder.latent_channels: saved 4, now 3.* is another model"):
        check_workdir(tmp_path, other, allow_config_change=True)


def test_how_a_model_runs_makes_no_other_of_it(tmp_path):
    own, given = t2i.get_config("tiny"), t2i.get_config("tiny")
    given.model.remat, given.model.dtype, given.model.dropout = True, "bfloat16", 0.5
    given.adapter.track_lipschitz, given.condition.kept_texts = True, 8
    taken = loading._with_sampling_of(own, given, tmp_path)
    assert taken.model.remat and taken.model.dtype == "bfloat16" and own.model.dtype != "bfloat16"
    given.train.lora.scale = 2.0
    with pytest.raises(UserError, match="another model than --config describes .train.lora.scale: saved 1.0, now 2.0"):
        loading._with_sampling_of(own, given, tmp_path)


def test_an_intact_checkpoint_of_another_model_is_an_error_not_damage(run, warnings):
    class Wider(ToyTask):
        def init(self, key):
            return super().init(key) | {"extra": {"bias": jnp.zeros(3)}}

    with pytest.raises(UserError, match="intact but does not fit this model"):
        train(Wider(toy_config()), run)
    assert not warnings and steps_in(run / "checkpoints") == [12, 8, 4]


def test_an_array_of_another_shape_is_another_model_s(tmp_path):
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    how = {"a": ocp.ArrayRestoreArgs(sharding=place, global_shape=(4,))}
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "one", {"a": jnp.zeros(3)})
        with pytest.raises(ValueError) as caught:  # Orbax's words
            checkpointer.restore(tmp_path / "one", args=ocp.args.PyTreeRestore({"a": jnp.zeros(4)}, restore_args=how))
    assert "does not fit this model (ValueError: " in form.refusal(caught.value, tmp_path, intact=True)
    assert form.refusal(caught.value, tmp_path, intact=False) is None


@pytest.mark.parametrize("checksums", [True, False])
@pytest.mark.parametrize(
    "error, words",
    [
        (OSError(5, "Input/output error"), r"cannot be read \(OSError: .*Input/output error\); make it readable"),
        (ValueError("DATA_LOSS: d/a [OS error 116: ESTALE]"), r"cannot be read \(ValueError: .*ESTALE"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"), "does not fit these devices .*mesh.fsdp"),
    ],
)
def test_what_is_no_damage_and_no_other_model_is_called_neither(run, warnings, monkeypatch, checksums, error, words):
    def fail(*args):
        raise error

    if not checksums:
        (run / "checkpoints" / "12" / integrity.CHECKSUMS).unlink()
    monkeypatch.setattr(form, "read", fail)
    for read in lambda: train(ToyTask(toy_config()), run), lambda: load_params(run):
        with pytest.raises(UserError, match=f"checkpoint .*/12 {words}") as caught:
            read()
        assert "\n" not in str(caught.value)
    assert not warnings and steps_in(run / "checkpoints") == [12, 8, 4]


def test_a_state_that_is_not_finite_is_never_written(tmp_path):
    setup = Setup.of(ToyTask(toy_config()))
    checkpoints = Checkpoints(tmp_path, setup.task.config)
    checkpoints.open()
    state = setup.init_state()
    state.ema["denoiser"]["bias"] = state.ema["denoiser"]["bias"].at[3].set(jnp.inf)
    with pytest.raises(FloatingPointError, match="after step 0"):
        checkpoints.save(state, setup.train_iterator())
    checkpoints.close()
    assert steps_in(tmp_path / "checkpoints") == []


def test_the_host_finds_the_fingerprint_of_the_devices(monkeypatch):
    monkeypatch.setattr(integrity, "_CHUNK", 64)
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((5, 7, 9)).astype(np.float32)
    others = [rng.integers(-9, 9, (4, 6)), np.float32(3), np.zeros((0, 3), np.float32), np.array([True, False])]
    halves = np.asarray(jnp.asarray(normal, jnp.bfloat16)), normal.astype(np.float16)
    for x in (normal, normal[:, ::2], *halves, *others):
        assert integrity._of_host(np.asarray(x)) == tuple(jax.device_get(integrity._fingerprint(x)))
    with jax.enable_x64():
        assert integrity._of_host(1.0 * others[0]) == tuple(jax.device_get(integrity._fingerprint(1.0 * others[0])))


def test_fingerprints_see_single_bits_and_order(monkeypatch):
    rng = np.random.default_rng(0)
    tree = {"a": rng.standard_normal((5, 7)).astype(np.float32), "b": np.arange(6, dtype=np.int32)}
    _, reference = integrity.fingerprints(tree)
    with monkeypatch.context() as patch:  # by the devices, one after the other, and where they need not wait
        patch.setattr(integrity, "_platforms", lambda x: ["tpu"])
        assert integrity.fingerprints(jax.tree.map(jnp.asarray, tree)) == (True, reference)
        patch.setattr(jax, "default_backend", lambda: "tpu")
        assert integrity.fingerprints(jax.tree.map(jnp.asarray, tree)) == (True, reference)
    for _ in range(50):
        words = tree["a"].copy().view(np.uint32)
        words[rng.integers(5), rng.integers(7)] ^= np.uint32(1 << rng.integers(23))
        assert integrity.fingerprints(tree | {"a": words.view(np.float32)})[1]["a"] != reference["a"]
    swapped = tree["a"].copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    changed = integrity.fingerprints(tree | {"a": swapped})[1]
    assert changed["a"] != reference["a"] and changed["b"] == reference["b"]
    assert not integrity.fingerprints({"a": np.array([1.0, np.nan], np.float32)})[0]
