"""Several processes as one machine."""

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from contextdiff_jax.errors import UserError

T = TypeVar("T")
_PATIENCE = 20.0  # seconds that a network file system may take to show a new file elsewhere


def initialize_if_needed(
    coordinator_address: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the processes of a run into one JAX cluster; must come before the first JAX computation.

    Args:
        coordinator_address: host:port of process 0; "auto" lets JAX ask the cluster (TPU pods, SLURM); empty
            for one process.
        num_processes: how many processes there are; not with "auto".
        process_id: which of them this is, from 0; not with "auto".

    Raises:
        UserError: incomplete or contradictory arguments, or processes that cannot reach each other.
    """
    if not coordinator_address:
        if num_processes not in (None, 1) or process_id not in (None, 0):
            raise UserError(
                f"num_processes={num_processes}, process_id={process_id} need a coordinator; "
                "give --coordinator=HOST:PORT of process 0"
            )
        return
    if jax.distributed.is_initialized():
        return
    # CPUs need a library for collectives between processes; other platforms bring their own and ignore this.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if coordinator_address == "auto":
        try:
            jax.distributed.initialize()
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"--coordinator=auto found no cluster to join ({error}); it works on TPU pods and under SLURM, "
                "elsewhere give --coordinator=HOST:PORT --num_processes=N --process_id=I"
            ) from error
        return
    if num_processes is None or process_id is None or not 0 <= process_id < num_processes:
        raise UserError(
            f"--coordinator={coordinator_address} needs --num_processes=N and --process_id in 0..N-1; "
            f"got {num_processes} and {process_id}"
        )
    try:
        jax.distributed.initialize(coordinator_address, num_processes, process_id)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"process {process_id} of {num_processes} could not join {coordinator_address}: {error}; "
            "check that all are started and can reach that address"
        ) from error


def is_primary() -> bool:
    """True in the one process that writes files and prints."""
    return jax.process_index() == 0


def agree(value: int) -> int:
    """Process 0's value, on every process."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(value))


def broadcast_bytes(value: bytes) -> bytes:
    """Process 0's bytes, on every process."""
    if jax.process_count() == 1:
        return value
    padded = np.zeros(agree(len(value)), np.uint8)
    if is_primary():
        padded[:] = np.frombuffer(value, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes() if padded.size else b""


def all_true(value: bool) -> bool:
    """Whether `value` holds on every process."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.process_allgather(int(value)).all())


def barrier(name: str) -> None:
    """Waits for all processes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def gather_texts(text: str) -> list[str]:
    """Every process's text, on every process, in their order."""
    if jax.process_count() == 1:
        return [text]
    raw = np.frombuffer(text.encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(raw.size))
    padded = np.zeros(max(1, int(lengths.max())), np.uint8)
    padded[: raw.size] = raw
    rows = multihost_utils.process_allgather(padded)
    return [row[:n].tobytes().decode() for row, n in zip(rows, lengths, strict=True)]


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Work that processes share: what one raises ends all of them, with a UserError that names it where it was another,
    so that none waits for one that is gone."""
    problem = None
    try:
        yield
    except Exception as error:
        problem = error
    if failed := _by_process(gather_texts(_words(problem))):
        raise problem or UserError(failed)


def _words(problem: Exception | None) -> str:
    """An error as others are told it, "" for none."""
    if problem is None:
        return ""
    return str(problem) if isinstance(problem, UserError) else f"{type(problem).__name__}: {problem}"


def the_same(make: Callable[[], T], describe: Callable[[T], str]) -> T:
    """`make()` on process 0 first and then on the others, which find what it has left in shared folders.

    Args:
        make: the same on every process.
        describe: what must be the same of its results, in words.

    Raises:
        UserError: one of them failed, or the descriptions differ; every process raises it and names the processes.
        Exception: what `make` raised on this one, if it was no UserError.
    """
    if jax.process_count() == 1:
        return make()
    result, problem = None, None
    for turn in (is_primary(), not is_primary()):
        if turn:
            try:
                result = make()
            except Exception as error:
                problem = error
        if failed := _by_process(gather_texts(_words(problem))):
            if problem and not isinstance(problem, UserError):
                raise problem
            raise UserError(f"{failed}; put that right for all processes")
    found = gather_texts(describe(result))
    if len(set(found)) > 1:
        hosts = gather_texts(socket.gethostname())
        listed = _by_process([f"{text} ({host})" for text, host in zip(found, hosts, strict=True)])
        raise UserError(f"the processes do not see the same: {listed}; give all of them the same readable files")
    return result


def check_shared(folder: Path) -> None:
    """Looks whether a folder is the same for all processes, by a file of process 0 that is gone afterwards.

    Raises:
        UserError: it is another one for some of them, or process 0 cannot write there.
    """
    if jax.process_count() == 1:
        return
    name = f".shared-{secrets.token_hex(8)}"
    try:
        with together():
            if is_primary():
                _touch(folder / name)
        name = gather_texts(name)[0]
        with together():
            if not _appears(folder / name):
                raise UserError(
                    f"{folder} on {socket.gethostname()} is not the folder of that name of process 0; give a --workdir "
                    "on a disk that all processes share"
                )
    finally:
        if is_primary():
            (folder / name).unlink(missing_ok=True)


def _touch(path: Path) -> None:
    try:
        path.touch()
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}); take another --workdir") from error


def _appears(path: Path) -> bool:
    """Whether a file is there within some seconds."""
    start = time.monotonic()
    while True:
        with contextlib.suppress(OSError):
            if path.name in os.listdir(path.parent):  # asks the server, where a look for the file may ask a cache
                return True
        if time.monotonic() - start >= _PATIENCE:
            return False
        time.sleep(0.1)


def _by_process(texts: list[str]) -> str:
    """What each process says, where it says something; those that say the same are named together."""
    who: dict[str, list[str]] = {}
    for number, text in enumerate(texts):
        if text:
            who.setdefault(text, []).append(str(number))
    return "; ".join(f"process {', '.join(numbers)}: {text}" for text, numbers in who.items())
