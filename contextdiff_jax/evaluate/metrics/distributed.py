"""A metric's parts, joined over the processes of a run."""

import io

import numpy as np

from contextdiff_jax.evaluate.metrics.base import Accumulator, Metric, distinct


def across_processes(*metrics: Metric) -> None:
    """Makes every process's metrics those of the whole stream; all processes call it, with the same metrics. What
    several of them share goes around once."""
    whole = {id(metric.kept): joined(metric.kept) for metric in distinct(metrics)}
    for metric in metrics:
        metric.kept = whole[id(metric.kept)]


def joined(own: Accumulator) -> Accumulator:
    """What all processes remember; all call it, each with its own part."""
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return own
    packed = np.frombuffer(pack(own), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(packed), np.int32))
    # As bytes, because arrays of another length do not gather and float64 would become float32.
    padded = np.pad(packed, (0, int(sizes.max()) - len(packed)))
    parts = multihost_utils.process_allgather(padded)
    whole, *others = [unpack(own, part[:size].tobytes()) for part, size in zip(parts, sizes, strict=True)]
    for part in others:
        whole.merge(part)
    return whole


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
