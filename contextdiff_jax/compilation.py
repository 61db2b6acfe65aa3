"""Compiled programs: what they need of a device, and where they outlive the process (JAX's persistent cache)."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
from absl import logging

from contextdiff_jax.errors import UserError
from contextdiff_jax.files import cache_folder, is_remote, local_path


def keep_programs(where: str) -> None:
    """Makes the next command find the programs that this one compiles.

    Args:
        where: "auto" is what JAX_COMPILATION_CACHE_DIR names, else a folder in the user's cache directory; "off" keeps
            nothing; anything else is a folder, or an address of a remote store that JAX writes to.

    Raises:
        UserError: a folder that cannot be made.
    """
    if where == "off":
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if where == "auto" and jax.config.jax_compilation_cache_dir:
        return
    if is_remote(where):
        jax.config.update("jax_compilation_cache_dir", where)
        return
    folder = cache_folder() / "compiled" if where == "auto" else local_path(where)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
        reason = "it cannot be written"
    except OSError as error:
        writable, reason = False, str(error)
    if writable:
        jax.config.update("jax_compilation_cache_dir", str(folder))
    elif where == "auto":
        logging.warning("compiled programs are not kept in %s: %s", folder, reason)
    else:
        raise UserError(f"--compilation_cache={where}: {reason}; give a folder that can be written, or off")


def bytes_of(compiled: jax.stages.Compiled) -> dict[str, int]:
    """{"arguments", "temporaries", "results", "peak"}: the compiler's estimate for one device; peak is their sum."""
    found = compiled.memory_analysis()
    parts = dict(
        arguments=found.argument_size_in_bytes,
        temporaries=found.temp_size_in_bytes,
        results=found.output_size_in_bytes - found.alias_size_in_bytes,
    )
    return parts | {"peak": sum(parts.values())}


def available(device: Any) -> int:
    """Bytes that the device has: as it says, or for a CPU the machine's memory."""
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit") or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_memory(
    compiled: jax.stages.Compiled, what: str, device: Any, remedy: Callable[[float], str], limit: int | None = None
) -> dict[str, int]:
    """`bytes_of`, if the device has as much.

    Args:
        compiled: the program.
        what: its name.
        device: where it is to run.
        remedy: from the share of its temporaries that there is room for, to what to do.
        limit: bytes of the device; None asks it.

    Raises:
        UserError: it has not.
    """
    needed, limit = bytes_of(compiled), available(device) if limit is None else limit
    if needed["peak"] <= limit:
        return needed
    room = max(0, limit - needed["arguments"] - needed["results"]) / max(needed["temporaries"], 1)
    gib = 2**30
    raise UserError(
        f"{what} needs {needed['peak'] / gib:.3g} GiB, the device has {limit / gib:.3g}; {remedy(room)}"
    )


def fewer_frames(window: int, tuned: bool = False) -> Callable[[float], str]:
    """A remedy for `check_memory`: temporaries grow with the frames that the network takes at once, of which a tuned
    one takes as many as it was tuned with."""

    def remedy(room: float) -> str:
        fits, how = int(room * window), "tune anew with " if tuned else ""
        which = f"about {fits} frames fit ({how}data.num_frames={fits})" if fits > 1 else "take smaller frames"
        return f"{which}; data.length takes longer clips in windows"

    return remedy


@contextlib.contextmanager
def fitting(what: str, remedy: str) -> Iterator[None]:
    """Says in one line that the device has too little memory for what is compiled or run inside.

    Raises:
        UserError: so it is; other errors pass.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(f"{what} does not fit the device ({reason}); {remedy}") from error
