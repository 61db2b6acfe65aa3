"""Sampling, evaluation and export on eight devices, and in two processes: all are used, and the results are of one."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).with_name("run_on_devices.py")


def run(out: Path, devices: int, processes: int = 1) -> list[str]:
    """The last line of each process, of which each has this many devices."""
    out.mkdir()
    with socket.socket() as s:
        s.bind(("localhost", 0))
        address = f"localhost:{s.getsockname()[1]}"
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    flags += " --xla_cpu_collective_call_terminate_timeout_seconds=600"  # devices share the cores, and wait
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_CPU_ENABLE_ASYNC_DISPATCH": "false"}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    cluster = lambda i: [] if processes == 1 else [address, str(processes), str(i)]
    started = [
        subprocess.Popen([sys.executable, str(SCRIPT), str(out), *cluster(i)], env=environment, **pipes)
        for i in range(processes)
    ]
    lines = []
    for process in started:
        printed, errors = process.communicate()
        assert process.returncode == 0, errors[-2000:]
        lines.append(printed.splitlines()[-1])
    return lines


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The arrays of one device."""
    out = tmp_path_factory.mktemp("devices") / "1"
    assert run(out, 1) == ["devices {1}, rows on each 8, split [False, False]"]
    return np.load(out / "arrays-0.npz")


# Each process compiles everything: minutes. What a mesh does to a training is tested quickly in tests/training.
@pytest.mark.slow
def test_eight_devices_give_the_pictures_of_one(one, tmp_path):
    assert run(tmp_path / "8", 8) == ["devices {8}, rows on each 1, split [True, True]"]
    agree(np.load(tmp_path / "8" / "arrays-0.npz"), one)
    np.testing.assert_allclose(one["pictures"][:3], one["again"], atol=2e-3)


@pytest.mark.slow
def test_two_processes_give_the_pictures_of_one(one, tmp_path):
    assert run(tmp_path / "2", 2, processes=2) == ["devices {4}, rows on each 2, split [True, True]"] * 2
    for process in range(2):
        agree(np.load(tmp_path / "2" / f"arrays-{process}.npz"), one)


def agree(several, one):
    """Pictures and figures are those of one device."""
    for name in several:
        if name != "recognised":
            np.testing.assert_allclose(several[name], one[name], rtol=1e-4, atol=2e-3, err_msg=name)
    assert len(one["recognised"]) == 2
    np.testing.assert_array_equal(several["recognised"], one["recognised"])
