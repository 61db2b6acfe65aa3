"""Fixtures shared by all tests."""

import jax
import pytest


@pytest.fixture
def x64():
    """Double precision for the tests of the mathematics."""
    with jax.enable_x64(True):
        yield
