"""Frozen encoders are read in the type that they compute in, shard by shard: no host holds one whole in float32."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("measure_frozen.py")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's count of resident memory")
def test_a_text_encoder_is_read_by_shard_and_in_bfloat16(tmp_path):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    environment = os.environ | dict(JAX_PLATFORMS="cpu", XLA_FLAGS=flags, PYTHONPATH=str(SCRIPT.parents[1]))
    command = [sys.executable, str(SCRIPT), str(tmp_path)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    assert result["float32"] > 1.4e8
    assert result["on_one"] < 1.1 * result["float32"] / 2 / 8
    assert result["more"] < 0.4 * result["float32"]  # read whole it would be more than all of it
    assert not result["copied"], "training takes the arrays as they were read"
