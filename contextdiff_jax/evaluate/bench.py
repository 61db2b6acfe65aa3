"""What the adapter costs: step time and memory with and without it, measured in turn in one run."""

import re
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from contextdiff_jax import config as config_lib
from contextdiff_jax import task as task_lib
from contextdiff_jax import trees
from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate.suite import hardware, keep
from contextdiff_jax.files import write_json
from contextdiff_jax.training import Setup
from contextdiff_jax.training.distributed import is_primary
from contextdiff_jax.training.sharding import make_mesh

ROUNDS, STEPS = 5, 4  # timed rounds of each variant, steps per round
READING = 3.0  # seconds for which the input pipeline is timed


def records_per_second(batches: Iterator, batch_size: int, threads: int, prefetch: int) -> float:
    """What the input pipeline delivers on its own, all its threads at work, without a step that waits for it."""
    for _ in range(prefetch + threads):  # read before the clock starts
        next(batches)
    start, count = time.perf_counter(), 0
    # Threads that began together end together: of each one batch at the least.
    while (spent := time.perf_counter() - start) < READING or count < max(threads, 1):
        next(batches)
        count += 1
    return count * batch_size / spent


class _Variant:
    """The compiled training step of one config with a state to run it on."""

    def __init__(self, config: ConfigDict):
        setup = Setup.of(task_lib.build(config, mesh=make_mesh(config.mesh)))
        self.batches = setup.train_iterator()
        self.batch = setup.put(next(self.batches))
        start = time.perf_counter()
        self.step = setup.compile(self.batch)
        self.compile_seconds = time.perf_counter() - start
        self.frozen, self.state, self.guard = setup.frozen, setup.init_state(), setup.init_guard()
        memory = self.step.memory_analysis()
        self.flops = setup.flops(self.batch, self.frozen)
        self.bytes = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        self.seconds: list[float] = []

    def run(self, steps: int) -> float:
        """Seconds per step over `steps` steps."""
        start = time.perf_counter()
        for _ in range(steps):
            self.state, self.guard, metrics = self.step(self.state, self.guard, self.frozen, self.batch)
        jax.block_until_ready(metrics["loss"])
        return (time.perf_counter() - start) / steps

    def figures(self, batch_size: int) -> dict[str, float]:
        """Medians and sizes."""
        median = float(np.median(self.seconds))
        return dict(
            seconds_per_step=median,
            seconds_min=min(self.seconds),
            seconds_max=max(self.seconds),
            images_per_second=batch_size / median,
            gigabytes=self.bytes / 1e9,
            gigaflops_per_step=self.flops / 1e9,
            compile_seconds=self.compile_seconds,
        )


def bench_adapter(config: ConfigDict, out: Path) -> dict[str, Any]:
    """Times the training step with and without the adapter and writes bench.json into `out`.

    The two variants run in alternating rounds, so that a machine whose speed drifts favours neither; the ratio is
    the median over rounds. Memory is the compiler's: arguments (state, encoder, batch) plus temporaries, per device.

    Returns:
        What bench.json holds.
    """
    without = config.copy_and_resolve_references()
    without.adapter.enabled = False
    config_lib.put_at_rest(without)
    names = trees.names(jax.eval_shape(task_lib.build(without).init, jax.random.key(0)))
    left = tuple(p for p in config.train.trainable if any(re.search(p, name) for name in names))
    if not left:
        raise UserError(
            f"config.train.trainable={tuple(config.train.trainable)} trains the adapter alone: without it there is no "
            "step to compare with; add parameters of the denoiser, e.g. '/attn2/'"
        )
    without.train.trainable = left
    with_ = config.copy_and_resolve_references()
    with_.adapter.enabled = True
    variants = {"with adapter": _Variant(with_), "without adapter": _Variant(without)}
    for variant in variants.values():
        variant.run(2)
    for _ in range(ROUNDS):
        for variant in variants.values():
            variant.seconds.append(variant.run(STEPS))
    first, second = variants.values()
    speed = records_per_second(
        first.batches, config.data.batch_size, threads=config.data.num_threads, prefetch=config.data.prefetch
    )
    ratios = np.array(first.seconds) / np.array(second.seconds)
    figures = {
        "hardware": hardware(),
        "input_records_per_second": speed,
        **{name: variant.figures(config.data.batch_size) for name, variant in variants.items()},
        "ratio_step_time": float(np.median(ratios)),
        "ratio_step_time_range": [float(ratios.min()), float(ratios.max())],
        "ratio_memory": first.bytes / second.bytes,
    }
    if is_primary():
        _say(figures, config, tuple(variants))
        keep(out / "bench.json", partial(write_json, figures))
    return figures


def _say(figures: dict[str, Any], config: ConfigDict, variants: tuple[str, ...]) -> None:
    """Prints them, a line for each variant."""
    for name in variants:
        row = figures[name]
        print(
            f"{name:16s} {1e3 * row['seconds_per_step']:8.1f} ms/step  {row['images_per_second']:8.1f} images/s  "
            f"{row['gigabytes']:6.2f} GB  {row['gigaflops_per_step']:8.1f} GFLOP"
        )
    threads = f"{config.data.num_threads} threads, {config.data.prefetch} batches ahead"
    print(f"input alone      {figures['input_records_per_second']:8.1f} records/s ({threads})")
    low, high = figures["ratio_step_time_range"]
    print(
        f"ratio            {figures['ratio_step_time']:.2f} x time ({low:.2f}-{high:.2f} over {ROUNDS} rounds), "
        f"{figures['ratio_memory']:.2f} x memory"
    )
