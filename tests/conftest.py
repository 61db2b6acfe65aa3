"""Settings and fixtures shared by all tests."""

import atexit
import os
import shutil
import tempfile

# Most of the suite's time is compiling. So programs are compiled without optimisation, and once for all tests and the
# processes they start. Set before jax is imported, which reads them.
if "xla_backend_optimization_level" not in (flags := os.environ.get("XLA_FLAGS", "")):
    os.environ["XLA_FLAGS"] = f"{flags} --xla_backend_optimization_level=0".strip()
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
# What the library remembers between starts is not the user's here.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="remembered-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import jax  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture
def x64():
    """Double precision for the tests of the mathematics."""
    with jax.enable_x64(True):
        yield
