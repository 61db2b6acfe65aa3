"""Settings and fixtures shared by all tests."""

import os

import jax
import pytest

# Most of the suite's time is compiling; read when jax first touches a device, and by the processes that tests start.
if "xla_backend_optimization_level" not in (flags := os.environ.get("XLA_FLAGS", "")):
    os.environ["XLA_FLAGS"] = f"{flags} --xla_backend_optimization_level=0".strip()


@pytest.fixture
def x64():
    """Double precision for the tests of the mathematics."""
    with jax.enable_x64(True):
        yield
