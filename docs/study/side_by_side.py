"""Several trainings at once: small networks leave half of two cores idle, each of them takes one; and most of an
accelerator, which they share."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, TypeVar

import jax

Job = TypeVar("Job", bound=tuple)
CACHE = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


def cores() -> list[int]:
    """Those that this process may use; one nameless one where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [-1]


def sensible() -> int:
    """How many trainings at once: one a core, at most four; an accelerator is taken by one."""
    return min(4, len(cores())) if jax.default_backend() == "cpu" else 1


def results(work: Callable[..., Any], jobs: list[Job], processes: int) -> Iterator[tuple[Job, Any]]:
    """(job, work(*job)) of every job as it ends, so many of them at once in processes of their own.

    Raises:
        Whatever `work` raises; the jobs that have not begun are dropped.
    """
    context = multiprocessing.get_context("spawn")  # a forked JAX hangs
    free = context.Queue()
    pinned = cores() if jax.default_backend() == "cpu" else [-1]
    for i in range(processes):
        free.put(pinned[i % len(pinned)])
    settings = {name: getattr(jax.config, name) for name in CACHE}
    pool = ProcessPoolExecutor(processes, context, _settle, (free, settings))
    try:
        ended = {pool.submit(work, *job): job for job in jobs}
        for future in as_completed(ended):
            yield ended[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _settle(free: Any, settings: dict[str, Any]) -> None:
    """Takes a core, before JAX counts how many it has, and the folder of compiled programs."""
    if (core := free.get()) >= 0:
        os.sched_setaffinity(0, {core})
    for name, value in settings.items():
        jax.config.update(name, value)
