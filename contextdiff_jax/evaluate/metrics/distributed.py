"""A metric's parts, joined over the processes of a run."""

import io

import numpy as np

from contextdiff_jax.evaluate.metrics.base import Accumulator, Metric


def across_processes(metric: Metric) -> None:
    """Makes every process's metric that of the whole stream; all processes call it, with the same metric."""
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return
    own = np.frombuffer(pack(metric.kept), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(own), np.int32))
    # As bytes, because arrays of another length do not gather and float64 would become float32.
    padded = np.pad(own, (0, int(sizes.max()) - len(own)))
    parts = multihost_utils.process_allgather(padded)
    kept = [unpack(metric.kept, part[:size].tobytes()) for part, size in zip(parts, sizes, strict=True)]
    metric.kept = kept[0]
    for part in kept[1:]:
        metric.kept.merge(part)


def pack(kept: Accumulator) -> bytes:
    """What is remembered, as bytes."""
    buffer = io.BytesIO()
    np.savez(buffer, **kept.state())
    return buffer.getvalue()


def unpack(like: Accumulator, packed: bytes) -> Accumulator:
    """A fresh accumulator of the same kind with what `pack` wrote."""
    fresh = object.__new__(type(like))
    fresh.__dict__.update(like.__dict__)
    with np.load(io.BytesIO(packed), allow_pickle=False) as state:
        fresh.load(dict(state))
    return fresh
