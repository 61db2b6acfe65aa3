"""How the command starts: with large pages of memory, where the system gives them on request alone."""

import os
import sys
from pathlib import Path

_SETTING = "glibc.malloc.hugetlb"
_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def is_command() -> bool:
    """Whether the process was started as the command, and is not another program's that imports it or runs it."""
    started = sys.orig_argv
    is_module = ("-m", "contextdiff_jax.main") in zip(started, started[1:], strict=False)
    return is_module or os.path.basename(started[1] if len(started) > 1 else "") == "contextdiff"


def with_large_pages() -> None:
    """Starts the process anew, under its number and with its arguments, once glibc is told to ask for large pages.

    On a CPU a step's buffers come fresh from the kernel every time; in pages of 2 MB, not of 4 kB, the demo's steps
    took 8 to 23 % less time (docs/RESULTS.md). glibc (from 2.35 on) reads the setting before anything of ours runs.
    GLIBC_TUNABLES=glibc.malloc.hugetlb=0 leaves the pages small.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform != "linux" or not sys.executable or _SETTING in tunables or not _on_request():
        return
    os.environ["GLIBC_TUNABLES"] = f"{tunables}:{_SETTING}=1".lstrip(":")
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _on_request() -> bool:
    try:
        return "[madvise]" in _PAGES.read_text()
    except OSError:
        return False
