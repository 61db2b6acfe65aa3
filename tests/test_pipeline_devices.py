"""Sampling, evaluation and export on eight devices: all are used, and the results are those of one."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).with_name("run_on_devices.py")


def run(out: Path, devices: int) -> str:
    out.mkdir()
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(out)],
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()[-1]


@pytest.mark.slow  # two processes that compile everything: a minute and a half
def test_eight_devices_give_the_pictures_of_one(tmp_path):
    assert run(tmp_path / "8", 8) == "devices {8}, rows on each 1, split True"
    assert run(tmp_path / "1", 1) == "devices {1}, rows on each 8, split False"
    eight, one = (np.load(tmp_path / n / "arrays.npz") for n in ("8", "1"))
    for name in ("pictures", "again", "bound", "distances"):
        np.testing.assert_allclose(eight[name], one[name], rtol=1e-4, atol=2e-3, err_msg=name)
    assert len(one["recognised"]) == 2
    np.testing.assert_array_equal(eight["recognised"], one["recognised"])
    np.testing.assert_allclose(one["pictures"][:3], one["again"], atol=2e-3)
