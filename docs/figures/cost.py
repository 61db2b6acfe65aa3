"""What the adapter costs when sampling (Table 5): parameters, seconds an image, peak memory, with and without.

    python -m docs.figures.cost [--pictures=4] [--quick]

Every recipe that runs here, with random weights: what is measured does not depend on them. Memory is the compiler's:
arguments (parameters among them) and temporaries of the sampler of one batch.
"""

import argparse
import time
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import cifar10_nll, class2img, layout2img, t2i
from contextdiff_jax import Pipeline, sampling, trees
from contextdiff_jax import task as task_lib
from contextdiff_jax.evaluate import figures
from docs.figures.store import keep, say

ROUNDS = 3
RECIPES = {
    "t2i (demo, 32 x 32)": lambda: t2i.get_config(),
    "class2img (32 x 32)": lambda: class2img.get_config(),
    "layout2img": lambda: layout2img.get_config(),
    "cifar10_nll:digits (8 x 8)": lambda: cifar10_nll.get_config("digits"),
}
TINY = {
    "t2i:tiny": lambda: t2i.get_config("tiny"),
    "class2img:tiny": lambda: class2img.get_config("tiny"),
    "layout2img:tiny": lambda: layout2img.get_config("tiny"),
}


def size(tree: Any) -> int:
    """Number of values."""
    return int(sum(np.prod(np.shape(leaf)) for leaf in jax.tree.leaves(tree)))


def measured(pipeline: Pipeline, count: int, adapter: bool) -> dict[str, float]:
    """One arm of one model: {"trained", "frozen", "seconds", "gigabytes"}."""
    task, section = pipeline.task, ConfigDict(pipeline.config.sample.to_dict())
    section.adapter = adapter
    plan, numbers = sampling.Plan.of(task, section), sampling.Numbers.of(section)
    fields, keys = task.parts.condition.empty(count), jax.random.split(jax.random.key(0), count)

    @jax.jit
    def draw(params, frozen, fields, keys):
        context = task.encode(params, frozen, fields)
        return sampling.sample(task, params, frozen, context, keys, numbers, plan=plan)

    params = pipeline.params if adapter else trees.select(pipeline.params, lambda name: not name.startswith("adapter/"))
    frozen = pipeline.frozen
    compiled = draw.lower(params, frozen, fields, keys).compile()
    memory, seconds = compiled.memory_analysis(), []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        jax.block_until_ready(compiled(params, frozen, fields, keys))
        seconds.append((time.perf_counter() - start) / count)
    return dict(
        trained=size(params),
        frozen=size(frozen),
        seconds=float(np.median(seconds[1:])),
        gigabytes=(memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 1e9,
    )


def of_recipe(config: ConfigDict, count: int) -> dict[str, dict[str, float]]:
    """Both arms of a recipe."""
    task = task_lib.build(config)
    pipeline = Pipeline(task, task.init(jax.random.key(0)), 0)
    return {arm: measured(pipeline, count, arm == "with adapter") for arm in ("with adapter", "without adapter")}


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
        pipeline = Pipeline.load("builtin:demo")
        arms = {"with adapter": True, "without adapter": False}
        rows["builtin:demo (64 x 64)"] = {arm: measured(pipeline, args.pictures, on) for arm, on in arms.items()}
    keep("cost", args.quick, dict(pictures=args.pictures, rows=rows))
    print("\n".join(figures.cost_table(rows)))


if __name__ == "__main__":
    main()
