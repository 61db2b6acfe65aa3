"""SIGKILL at random moments; `kill_test.py` beside this file does the same by hand with more kills.

The real run is slow-marked: the toy goes through the same loop, and is killed in the same places.
"""

import sys
from pathlib import Path

import pytest

from tests.training.kill_test import MAIN, kill_test

TOY = (sys.executable, str(Path(__file__).with_name("run_toy.py")), "--slow=0.03")


def test_toy_run_killed_ends_bitwise_equal(tmp_path):
    kill_test([*TOY, "train.num_steps=40", "train.log_every=1", "train.checkpoint_every=3"], tmp_path, kills=1)


@pytest.mark.slow
def test_real_run_killed_ends_bitwise_equal(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    one_level = [f"--config.model.{levels}_attention_levels=(0,)" for levels in ("self", "cross")]  # quick to compile
    kill_test(
        [*MAIN, "--config=configs/t2i.py:tiny", "--config.model.multipliers=(1,)", *one_level], tmp_path, kills=1
    )
