"""The real step, U-Net, adapter and CLIP, from the command line: one device, two processes, eight devices (slow)."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import chex
import numpy as np
import pytest

from contextdiff_jax.training.checkpoint import load_params

ROOT = Path(__file__).resolve().parents[2]
# Adam divides by the gradient's size: with its usual eps the rounding of a vanishing gradient would be a whole step.
OVERRIDES = ("train.num_steps=3", "train.checkpoint_every=3", "optim.eps=0.001", "optim.warmup_steps=1")
# One level, which all kinds of layers are in: every process compiles for itself.
OVERRIDES += ("model.multipliers=(1,)", "model.self_attention_levels=(0,)", "model.cross_attention_levels=(0,)")


def start(workdir: Path, devices: int, *flags: str) -> subprocess.Popen:
    """A training run of configs/t2i.py:tiny on some simulated devices."""
    xla = {
        "force_host_platform_device_count": devices,
        "backend_optimization_level": 0,  # quick to compile, as is the one below
        "cpu_collective_call_terminate_timeout_seconds": 600,  # simulated devices share the cores, and wait for them
    }
    if "xla_cpu_use_fusion_emitters" in os.environ["XLA_FLAGS"]:  # this XLA knows it
        xla["cpu_use_fusion_emitters"] = "false"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        # One program at a time: the threads of two at once could wait for each other's.
        "JAX_CPU_ENABLE_ASYNC_DISPATCH": "false",
        "XLA_FLAGS": " ".join(f"--xla_{name}={value}" for name, value in xla.items()),
    }
    command = [sys.executable, "-m", "contextdiff_jax.main", "--config=configs/t2i.py:tiny", f"--workdir={workdir}"]
    command += [f"--config.{override}" for override in OVERRIDES] + list(flags)
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)


def finished(*processes: subprocess.Popen) -> None:
    """Waits for a run, which must end well."""
    for process in processes:
        output = process.communicate(timeout=900)[0]
        assert process.returncode == 0, output


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    """Workdir of the training on one device."""
    workdir = tmp_path_factory.mktemp("topologies") / "one"
    finished(start(workdir, 1))
    return workdir


def eight_devices(workdir: Path) -> list[subprocess.Popen]:
    return [start(workdir, 8, "--config.mesh.data=4", "--config.mesh.fsdp=2")]


def two_processes(workdir: Path) -> list[subprocess.Popen]:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    cluster = (f"--coordinator=localhost:{port}", "--num_processes=2", "--config.mesh.fsdp=2")
    return [start(workdir, 2, *cluster, f"--process_id={i}") for i in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("others", [eight_devices, two_processes])
def test_the_topology_makes_no_difference_but_rounding(one, others, tmp_path):
    finished(*others(tmp_path))
    losses = [
        np.array([json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()])
        for workdir in (one, tmp_path)
    ]
    assert len(losses[0]) == 3
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    one, several = (load_params(workdir, ema=False)[0] for workdir in (one, tmp_path))
    chex.assert_trees_all_close(one, several, rtol=1e-4, atol=2e-6)
    moved = max(float(np.abs(leaf).max()) for leaf in one["adapter"]["out"].values())
    assert moved > 1e-5, "a training that moves nothing would agree as well"
