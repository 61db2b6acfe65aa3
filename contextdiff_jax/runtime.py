"""What a program is compiled for: this machine's devices, or those of a topology that one does not have.

    runtime = here()                      # made once; after several processes have joined
    runtime = described("v5e:2x2")        # a TPU topology, through libtpu; arrays cannot be put there
    with in_use(runtime): ...             # whatever is traced inside chooses its kernels for those devices
"""

import contextlib
import contextvars
import dataclasses
import functools
import importlib.util
import os
import re
from collections.abc import Iterator
from typing import Any

import jax

from contextdiff_jax.errors import UserError

_EXAMPLES = "v5e:2x2, v5e:16x16, v5p:2x2x1, v5p:4x4x4, v6e:16x16"


@dataclasses.dataclass(frozen=True)
class Runtime:
    """Devices, and what they can do.

    Attributes:
        platform: cpu, gpu or tpu.
        capability: CUDA's compute capability of the NVIDIA card, e.g. 7.5 for a T4; 0.0 for everything else.
        devices: all devices, of all processes.
        described: the topology's name, where the devices are not this machine's; else "".
    """

    platform: str
    capability: float
    devices: tuple[Any, ...]
    described: str = ""

    @property
    def kind(self) -> str:
        """Name of the devices, e.g. "TPU v5 lite" or "NVIDIA H100 80GB HBM3"."""
        return self.devices[0].device_kind

    @property
    def local(self) -> tuple[Any, ...]:
        """The devices of this process."""
        return tuple(device for device in self.devices if device.process_index == jax.process_index())

    def __str__(self) -> str:
        cores = f", {os.cpu_count()} cores" if self.platform == "cpu" else ""
        return f"{len(self.devices)} x {self.kind}{cores}"


@functools.cache
def here() -> Runtime:
    """This machine's, or this cluster's when `jax.distributed` has been initialised before."""
    devices = tuple(jax.devices())
    return Runtime(jax.default_backend(), _capability(devices[0]), devices)


def _capability(device: Any) -> float:
    """Compute capability of an NVIDIA card."""
    # AMD's cards are "gpu" as well, and answer with a name such as gfx90a.
    return float(device.compute_capability) if "NVIDIA" in device.device_kind else 0.0


def described(topology: str) -> Runtime:
    """The devices of a TPU topology such as v5e:16x16, from libtpu; programs can be compiled for them, not run.

    Raises:
        UserError: no libtpu, or a topology that it does not know.
    """
    if not re.fullmatch(r"v\w+:\d+(x\d+)+", topology):
        raise UserError(f"topology {topology!r} is unknown; give a generation and its chips, e.g. {_EXAMPLES}")
    if not _has_libtpu():
        raise UserError(f"topology {topology!r} needs the TPU compiler, which is not installed: pip install libtpu")
    from jax.experimental import topologies

    # Without these libtpu asks a cloud's metadata server, refuses to be loaded by a second process, as if that ran
    # anything, and logs to a folder in /tmp.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:  # libtpu raises what it likes
        reason = str(error).splitlines()[0][:200]
        raise UserError(f"topology {topology!r} is unknown to libtpu ({reason}); it knows e.g. {_EXAMPLES}") from error
    return Runtime("tpu", 0.0, tuple(found.devices), topology)


def _has_libtpu() -> bool:
    """Whether the TPU compiler can be found."""
    return importlib.util.find_spec("libtpu") is not None or "TPU_LIBRARY_PATH" in os.environ


_IN_USE: contextvars.ContextVar[Runtime | None] = contextvars.ContextVar("runtime", default=None)


def current() -> Runtime:
    """The runtime that is traced for: the one in use, or this machine's."""
    return _IN_USE.get() or here()


@contextlib.contextmanager
def in_use(runtime: Runtime) -> Iterator[None]:
    """Makes `runtime` the current one."""
    token = _IN_USE.set(runtime)
    try:
        yield
    finally:
        _IN_USE.reset(token)
