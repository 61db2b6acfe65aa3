"""What the adapter costs when sampling (Table 5): parameters, seconds an image, peak memory, with and without.

    python -m docs.figures.cost [--pictures=4] [--quick]

Every recipe that runs here, with random weights: what is measured does not depend on them. An image is a frame where
they are clips; what only an edit computes besides, inversion and attention maps, is left out. Processor time is
that of all cores together, which a busy machine changes least. Memory is the compiler's: arguments (parameters among
them) and temporaries of the sampler of one batch.
"""

import argparse
import dataclasses
import time
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import cifar10_nll, class2img, layout2img, t2i, video_edit
from contextdiff_jax import Pipeline, trees
from contextdiff_jax import config as config_lib
from contextdiff_jax import task as task_lib
from contextdiff_jax.evaluate import figures
from contextdiff_jax.samplers import sampling
from contextdiff_jax.types import Params
from docs import scripts
from docs.figures.store import keep, say

ROUNDS = 3
ARMS = {"with adapter": True, "without adapter": False}
RECIPES = {
    "t2i (demo, 32 x 32)": lambda: t2i.get_config(),
    "class2img (32 x 32)": lambda: class2img.get_config(),
    "class2img:fashion (28 x 28)": lambda: class2img.get_config("fashion"),
    "layout2img": lambda: layout2img.get_config(),
    "cifar10_nll:digits (8 x 8)": lambda: cifar10_nll.get_config("digits"),
    "cifar10_nll:fast (8 x 8)": lambda: with_adapter(cifar10_nll.get_config("fast")),
    "cifar10_nll:fashion_short (28 x 28)": lambda: with_adapter(cifar10_nll.get_config("fashion_short")),
    "cifar10_nll:emoji16 (16 x 16)": lambda: cifar10_nll.get_config("emoji16"),
    "video_edit (8 frames, 64 x 64)": lambda: video_edit.get_config(),
}
TINY = {
    "t2i:tiny": lambda: t2i.get_config("tiny"),
    "class2img:tiny": lambda: class2img.get_config("tiny"),
    "layout2img:tiny": lambda: layout2img.get_config("tiny"),
    "video_edit:tiny": lambda: video_edit.get_config("tiny"),
}


def with_adapter(config: ConfigDict) -> ConfigDict:
    """The recipe with the adapter that it leaves out."""
    config.adapter.enabled = True
    return config


def size(tree: Any) -> int:
    """Number of values."""
    return int(sum(np.prod(np.shape(leaf)) for leaf in jax.tree.leaves(tree)))


@dataclasses.dataclass(frozen=True)
class Arm:
    """The compiled sampler of one batch.

    Attributes:
        draw: the program.
        args: what it takes.
    """

    draw: jax.stages.Compiled
    args: tuple

    @classmethod
    def of(cls, pipeline: Pipeline, count: int, adapter: bool) -> "Arm":
        """Compiles it, of `count` pictures."""
        task, section = pipeline.task, ConfigDict(pipeline.config.sample.to_dict())
        section.adapter = adapter
        plan, numbers = sampling.Plan.of(task, section), sampling.Numbers.of(section)
        fields, keys = task.parts.condition.empty(count), jax.random.split(jax.random.key(0), count)

        @jax.jit
        def draw(params, frozen, fields, keys):
            context = task.encode(params, frozen, fields)
            return sampling.sample(task, params, frozen, context, keys, numbers, plan=plan)

        part = trees.select(pipeline.params, lambda name: adapter or not name.startswith("adapter/"))
        args = (part, pipeline.frozen, fields, keys)
        return cls(draw.lower(*args).compile(), args)

    def timed(self) -> tuple[float, float]:
        """(seconds, seconds of all processors together) of one batch."""
        start, spent = time.perf_counter(), time.process_time()
        jax.block_until_ready(self.draw(*self.args))
        return time.perf_counter() - start, time.process_time() - spent


def measured(pipeline: Pipeline, count: int) -> dict[str, dict[str, float]]:
    """Both arms of one model, timed in turn: {arm: {"trained", "frozen", "seconds", "processor", "gigabytes"}}."""
    arms = {name: Arm.of(pipeline, count, on) for name, on in ARMS.items()}
    frozen = {name: size(pipeline.frozen if on else frozen_without(pipeline.config)) for name, on in ARMS.items()}
    times = {name: [] for name in arms}
    for _ in range(ROUNDS + 1):
        for name, arm in arms.items():
            times[name].append(arm.timed())
    rows = {}
    for name, arm in arms.items():
        memory = arm.draw.memory_analysis()
        seconds, processor = np.median(times[name][1:], axis=0) / count
        trained, fixed = trees.split(arm.args[0], pipeline.config.train.trainable)
        rows[name] = dict(
            trained=size(trained),
            frozen=size(fixed) + frozen[name],
            seconds=float(seconds),
            processor=float(processor),
            gigabytes=(memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 1e9,
        )
    return rows


def frozen_without(config: ConfigDict) -> Params:
    """Shapes of what is loaded beside a model that has no adapter: what only an adapter looks through is not."""
    config = config.copy_and_resolve_references()
    config.adapter.enabled = False
    config_lib.put_at_rest(config)
    return task_lib.build(config, weights=False).frozen


def of_recipe(config: ConfigDict, count: int) -> dict[str, dict[str, float]]:
    """Both arms of a recipe; of clips, one clip is a batch."""
    task, count = task_lib.build(config), config.data.num_frames if config.data.num_frames > 1 else count
    return measured(Pipeline(task, task.init(jax.random.key(0)), 0), count)


def main() -> None:
    """Measures, stores and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=int, default=4, help="of a batch")
    parser.add_argument("--quick", action="store_true", help="the :tiny presets")
    args = parser.parse_args()
    rows = {}
    for name, make in (TINY if args.quick else RECIPES).items():
        say(f"cost: {name}")
        rows[name] = of_recipe(make(), args.pictures)
    if not args.quick:
        say("cost: builtin:demo")
        rows["builtin:demo (64 x 64)"] = measured(Pipeline.load("builtin:demo"), args.pictures)
    keep("cost", args.quick, dict(pictures=args.pictures, rows=rows))
    print("\n".join(figures.cost_table(rows)))


if __name__ == "__main__":
    scripts.run(main)
