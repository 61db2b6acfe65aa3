"""What a training will need, before there is a machine for it: the step compiled ahead of time for a topology.

    contextdiff --config=t2i.py:small --mode=plan --topology=v5e:4x4
"""

import dataclasses
import math
import re
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from contextdiff_jax import task as task_lib
from contextdiff_jax.runtime import Runtime, described, here
from contextdiff_jax.training import Setup, sharding
from contextdiff_jax.training.setup import spec_of
from contextdiff_jax.types import Batch


@dataclasses.dataclass(frozen=True)
class Chip:
    """The makers' figures: FLOP/s in bfloat16, bytes of memory, bytes/s of memory and between chips."""

    flops: float
    memory: float
    bandwidth: float
    network: float


# By a part of the device's name; the first that is found counts.
CHIPS = {
    "v6e": Chip(918e12, 32e9, 1640e9, 448e9),
    "v6 lite": Chip(918e12, 32e9, 1640e9, 448e9),
    "v5e": Chip(197e12, 16e9, 819e9, 200e9),
    "v5 lite": Chip(197e12, 16e9, 819e9, 200e9),
    "v5": Chip(459e12, 95e9, 2765e9, 600e9),
    "v4": Chip(275e12, 32e9, 1228e9, 300e9),
    "H200": Chip(989e12, 141e9, 4800e9, 450e9),
    "H100": Chip(989e12, 80e9, 3350e9, 450e9),
    "A100": Chip(312e12, 80e9, 2039e9, 300e9),
}
_SENT = re.compile(r"= (.*?) (?:all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")
_SHAPE = re.compile(r"(pred|[suf]\d+|bf16)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class StepCost:
    """What one chip does in one step, by the compiler; the operations as they are written.

    Attributes:
        runtime: the devices.
        mesh: sizes of the axes.
        parameters: trained ones, of the whole model.
        batch_size: of all chips.
        arguments: bytes of state, frozen networks and batch.
        temporaries: bytes that come and go.
        flops: floating-point operations (`contextdiff_jax.flops`).
        moved: bytes between memory and processor.
        sent: bytes that collectives give to other chips; of a loop's body once.
        compile_seconds: what the compilation took.
    """

    runtime: Runtime
    mesh: dict[str, int]
    parameters: int
    batch_size: int
    arguments: int
    temporaries: int
    flops: float
    moved: float
    sent: int
    compile_seconds: float

    @property
    def chip(self) -> Chip | None:
        """The maker's figures, where they are known."""
        name = f"{self.runtime.described} {self.runtime.kind}"
        return next((chip for part, chip in CHIPS.items() if part in name), None)

    def roofline(self) -> dict[str, float]:
        """Seconds that each of computing, memory and network needs at the least; a step takes the largest or more."""
        chip = self.chip
        if chip is None:
            return {}
        return {
            "computing": self.flops / chip.flops,
            "memory": self.moved / chip.bandwidth,
            "network": self.sent / chip.network,
        }

    def lines(self) -> list[str]:
        """For a terminal."""
        mesh = ", ".join(f"{axis} {size}" for axis, size in self.mesh.items())
        total, chip, bounds = self.arguments + self.temporaries, self.chip, self.roofline()
        room = "" if chip is None else f" of {chip.memory / 1e9:.0f} GB" + (
            "" if total < chip.memory else ": IT DOES NOT FIT; raise config.mesh.fsdp, or lower config.data.batch_size"
        )
        lines = [
            f"{self.parameters / 1e6:.4g} M parameters, batch {self.batch_size}, on {self.runtime} (mesh: {mesh})",
            f"compiled in {self.compile_seconds:.0f} s",
            f"memory a chip: {_amount(self.arguments)}B of state, frozen networks and batch + "
            f"{_amount(self.temporaries)}B of temporaries = {_amount(total)}B{room}",
            f"a chip and step: {_amount(self.flops)}FLOP, {_amount(self.moved)}B moved, {_amount(self.sent)}B sent",
        ]
        if not bounds:
            return [*lines, f"no roofline: the peak speed of {self.runtime.kind!r} is not known here"]
        bound = max(bounds, key=bounds.get)
        each = ", ".join(f"{name} {1e3 * seconds:.3g} ms" for name, seconds in bounds.items())
        least = bounds[bound]
        return [
            *lines,
            f"roofline: at least {1e3 * least:.3g} ms a step, bound by {bound} ({each}); at most "
            f"{self.batch_size / least:.4g} images/s; real steps take 1.5 to 4 times as long",
        ]


def plan(config: ConfigDict, topology: str = "") -> StepCost:
    """Compiles the training step of a config for a topology, or for this machine.

    Args:
        config: the whole config; its mesh must fit the topology. Neither weights nor data are read.
        topology: such as v5e:16x16; "" takes this machine's devices.

    Raises:
        UserError: no libtpu, an unknown topology, or a config that does not fit it.
    """
    runtime = described(topology) if topology else here()
    setup = Setup.of(task_lib.build(config, runtime, weights=False), runtime)
    return compiled(setup)[0]


def compiled(setup: Setup) -> tuple[StepCost, jax.stages.Compiled]:
    """The training step for batches of the task's shape, and what it will need."""
    batch = spec_of(batch_spec(setup.task), jax.sharding.NamedSharding(setup.mesh, sharding.ROWS))
    start = time.perf_counter()
    step = setup.lower(batch, setup.frozen_spec).compile()
    compile_seconds = time.perf_counter() - start
    memory, cost = step.memory_analysis(), step.cost_analysis()
    found = StepCost(
        runtime=setup.runtime,
        mesh=dict(setup.mesh.shape),
        parameters=sum(math.prod(x.shape) for x in jax.tree.leaves(setup.abstract.params)),
        batch_size=setup.task.config.data.batch_size,
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        flops=setup.flops(batch, setup.frozen_spec),
        moved=float(cost["bytes accessed"]),
        sent=bytes_sent(step.as_text()),
        compile_seconds=compile_seconds,
    )
    return found, step


def batch_spec(task: Any) -> Batch:
    """Shapes of a global batch: from the task where it knows them, else of one that is read."""
    if hasattr(task, "batch_spec"):
        return task.batch_spec()
    batch = next(task.train_iterator(0, 1))
    return {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in batch.items()}


def bytes_sent(program: str) -> int:
    """Bytes of the results of all collectives in a compiled program's text."""
    total = 0
    for results in _SENT.findall(program):
        for kind, sizes in _SHAPE.findall(results):
            bits = 8 if kind == "pred" else int(re.sub(r"\D", "", kind))
            total += math.prod(int(n) for n in sizes.split(",") if n) * bits // 8
    return total


def _amount(value: float) -> str:
    """With a unit's prefix, e.g. "1.23 G"."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.3g} "
