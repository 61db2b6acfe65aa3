"""What devices tell one another in the compiled programs of eight: parameters, never the batch's activations."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("show_communication.py")


@pytest.fixture(scope="module")
def lines() -> list[str]:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_text_embedding_is_not_summed_over_devices(lines):
    """[rows, 32 words, 128 features]: what a table split over the vocabulary would make."""
    encoding = [line for line in lines if line.startswith("encode")]
    assert any("all-gather" in line for line in encoding), "the parameters are spread over devices"
    assert not [line for line in encoding if "all-reduce" in line and ",32,128]" in line]


def test_the_two_times_of_a_shift_stay_where_their_examples_are(lines):
    assert lines[-1] == "done" and not [line for line in lines if line.startswith("pair")]
