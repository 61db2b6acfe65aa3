"""Settings and fixtures shared by all tests."""

import atexit
import gc
import os
import re
import shutil
import subprocess
import sys
import tempfile

# Most of the suite's time is compiling. So programs are compiled without optimisation, by the older emitters (a third
# quicker than a pass pipeline for each fusion), each in one piece (a fifth quicker than in many, which is for idle
# cores), and once for all tests and the processes they start. Set before jax is imported, which reads them.
QUICK = {
    "xla_backend_optimization_level": "0",
    "xla_cpu_use_fusion_emitters": "false",
    "xla_cpu_parallel_codegen_split_count": "1",
}


def with_flags(quick: dict[str, str]) -> str:
    """XLA_FLAGS with those that are not there and that this XLA knows: one that it does not know aborts the process."""
    given = os.environ.get("XLA_FLAGS", "")
    missing = {f"--{name}": value for name, value in quick.items() if name not in given}
    while missing:
        flags = " ".join([given, *(f"{name}={value}" for name, value in missing.items())]).strip()
        command = [sys.executable, "-c", "import jax; jax.devices('cpu')"]
        probe = subprocess.run(command, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True, text=True)
        unknown = {name for line in re.findall("Unknown flags?.*", probe.stderr) for name in re.findall(r"--\w+", line)}
        if not unknown & missing.keys():
            return flags
        missing = {name: value for name, value in missing.items() if name not in unknown}
    return given


os.environ["XLA_FLAGS"] = with_flags(QUICK)
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
# Processes that the tests start need not start anew for it.
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
# What the library remembers between starts is not the user's here.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="remembered-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.02")

import jax  # noqa: E402
import pytest  # noqa: E402
from jax._src.interpreters import mlir  # noqa: E402

# A file is one process's; those that take minutes come first, so that no process is left alone with one at the end.
LONGEST_FIRST = (
    "test_stable_diffusion",
    "test_end_to_end",
    "test_real_sets",
    "test_cifar10_nll",
    "test_topology",
    "test_kill",
    "test_stored_figures",
    "test_unfinished",
    "test_pipeline_edit",
    "test_class_and_layout",
    "test_builtin_demo",
    "test_mutations",
    "test_edit",
    "test_export",
    "test_configs",
    "test_raster",
    "test_pretrained_files",
    "test_sd_unet",
    "test_lora",
    "test_bpd_likelihood",
    "test_video",
    "test_plan",
    "test_measure",
    "test_study",
    "test_teeth",
    "test_losses",
    "test_samplers",
    "test_bpd",
)


def lower_in_one_context(programs: int = 64) -> None:
    """Makes JAX lower so many programs in one MLIR context: a new one takes as long as all else of lowering one
    operation, of which the tests lower thousands one by one. What a context holds is freed with it."""
    make, kept = getattr(mlir, "make_ir_context", None), []

    def context():
        if not kept or kept[1] == programs:
            kept[:] = [make(), 0]
        kept[1] += 1
        return kept[0]

    if make is not None:  # JAX's own, which another version may not have
        mlir.make_ir_context = context


lower_in_one_context()


def pytest_collection_modifyitems(items):
    place = {name: i for i, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))
    # Tracing makes many objects that live; looking through all of them and the libraries' each time is a tenth of it.
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)


@pytest.fixture
def x64():
    """Double precision for the tests of the mathematics."""
    with jax.enable_x64(True):
        yield
