"""The same training on one device, on eight simulated ones and on two processes, each run on its own."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import chex
import numpy as np
import pytest

from contextdiff_jax.training import load_params
from tests.training.toy_task import ToyTask, toy_config

SCRIPT = Path(__file__).with_name("run_toy.py")
STEPS = ["train.num_steps=6", "train.log_every=1", "train.checkpoint_every=3", "train.preview_every=6"]


def start(workdir: Path, *options: str) -> subprocess.Popen:
    """A toy training in the background."""
    command = [sys.executable, str(SCRIPT), f"--workdir={workdir}", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def start_two(workdir: Path, *options: str) -> list[subprocess.Popen]:
    """The same, as two processes of one cluster with two devices each."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    cluster = ["--devices=2", f"--coordinator=localhost:{port}", "--num_processes=2"]
    return [start(workdir, *cluster, f"--process_id={i}", *options) for i in range(2)]


def finish(*processes: subprocess.Popen) -> list[str]:
    """Waits for success and returns what was printed."""
    outputs = [p.communicate(timeout=900)[0] for p in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
    return outputs


def losses(workdir: Path) -> np.ndarray:
    """The logged losses, [n]."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return np.array([json.loads(line)["loss"] for line in lines])


@pytest.fixture(scope="module")
def one_device(tmp_path_factory) -> Path:
    """A workdir trained on one device."""
    workdir = tmp_path_factory.mktemp("one")
    finish(start(workdir, *STEPS))
    return workdir


def assert_same_training(a: Path, b: Path) -> None:
    """To float32 rounding."""
    for ema in (True, False):
        one, other = load_params(a, ema=ema)[0], load_params(b, ema=ema)[0]
        chex.assert_trees_all_close(one, other, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(losses(a), losses(b), rtol=2e-5)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> Path:
    """A workdir trained by two processes of two devices each."""
    workdir = tmp_path_factory.mktemp("two")
    outputs = finish(*start_two(workdir, *STEPS, "mesh.fsdp=2", "--learned_process"))
    assert "finished step 6" in outputs[0] and "finished" not in outputs[1], "one process talks"
    return workdir


def test_eight_devices_with_tensor_rules_and_accumulation_agree_with_one(tmp_path, one_device):
    rules = "sharding.rules=(('denoiser/kernel',(None,'tensor')),('adapter/kernel',('tensor','fsdp')))"
    mesh = ["mesh.fsdp=2", "mesh.tensor=2", "optim.accum_steps=2", rules]
    (output,) = finish(start(tmp_path, "--devices=8", *STEPS, *mesh))
    assert "mesh: data 2, fsdp 2, tensor 2" in output
    assert_same_training(one_device, tmp_path)


def test_two_processes_agree_with_one_device(one_device, two_processes):
    assert (two_processes / "previews" / "step-0000006.png").exists()
    assert_same_training(one_device, two_processes)


def test_checkpoint_of_two_processes_continues_on_one_with_another_mesh(tmp_path, one_device, two_processes):
    shutil.copytree(two_processes, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    (output,) = finish(start(tmp_path / "run", "--devices=4", "--allow_config_change", *STEPS, "mesh.fsdp=4"))
    assert "continuing from the checkpoint of step 3" in output
    assert_same_training(one_device, tmp_path / "run")


def wait_for_step(workdir: Path, step: int) -> None:
    """Until the metrics of `step` are written."""
    path, deadline = workdir / "metrics.jsonl", time.monotonic() + 600
    while not path.exists() or f'"step": {step},' not in path.read_text():
        assert time.monotonic() < deadline, "the run makes no progress"
        time.sleep(0.05)


def test_sigterm_to_one_of_two_processes_stops_both_at_one_step(tmp_path):
    options = ["--slow=0.2", "train.num_steps=1000", "train.checkpoint_every=500"]
    processes = start_two(tmp_path, *options)
    wait_for_step(tmp_path, 4)
    processes[1].send_signal(signal.SIGTERM)
    outputs = finish(*processes)
    assert "stopped by SIGTERM after step" in outputs[0]
    steps = {int(output.split("final step ")[1]) for output in outputs}
    assert len(steps) == 1 and 4 <= max(steps) < 1000 and steps == {load_params(tmp_path)[2]}


def test_nan_in_the_rows_of_one_process_is_named_by_both(tmp_path):
    batches = ToyTask(toy_config()).train_iterator(0, 1)
    indices = [next(batches)["index"] for _ in range(5)][-1]
    bad = indices[-1]  # a row of the second process
    processes = start_two(tmp_path, f"--bad_index={bad}", "train.log_every=100")
    for process in processes:
        output = process.communicate(timeout=900)[0]
        assert process.returncode == 2, output
        assert f"error: step 5: the loss of records [{bad}] is NaN or infinite" in output
        assert f"batch indices [{', '.join(map(str, sorted(indices)))}]" in output
        assert "last good checkpoint is of step 4" in output
