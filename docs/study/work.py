"""Work of a step of each arm of the second part, in operations counted from the program before compilation.

    python -m docs.study.work      # two to three minutes of one core; writes the table into docs/study.md
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from contextdiff_jax import task as task_lib
from contextdiff_jax.samplers import sampling
from contextdiff_jax.types import Batch
from docs import scripts
from docs.study import images, steps, steps_images, toy
from docs.study.plots import PAGE, replace_table

STEPS = 4  # T; a step's work does not depend on it
SETS = ("mixture", "digits", "emoji16", "fashion14")


def task_of(name: str, arm: steps.Arm) -> tuple[Any, Batch]:
    """The task of an arm on a set, and a batch of it."""
    if name == "mixture":
        size = toy.replace(steps.SIZE, width=arm.width)
        task = toy.ToyTask(steps.config_of(STEPS, arm, size), toy.DATA[name], size)
        return task, jax.eval_shape(lambda: task.batch(jax.random.key(0), size.batch_size))
    config = steps_images.config_of(name, STEPS, arm)
    some = lambda v: v[: config.data.batch_size]
    return task_lib.build(config), jax.tree.map(some, images.held_out(name, steps_images.SIZES[name]))


def counted(task: Any, batch: Batch) -> np.ndarray:
    """Operations of a training step (its loss and gradient) and of one step of sampling the same batch, [2].

    The steps of a sampler are one loop, whose body is counted once.
    """
    params, key, sample = jax.eval_shape(task.init, jax.random.key(0)), jax.random.key(0), task.config.sample
    plan, numbers, size = sampling.Plan.of(task, sample), sampling.Numbers.of(sample), len(batch["label"])
    asked = lambda p, label: task.encode(p, task.frozen, {"label": label})
    loss = lambda p, batch: task.loss(p, task.frozen, task.draw(batch, key), key)[0].mean()
    draw = lambda p, batch: sampling.sample(
        task, p, task.frozen, asked(p, batch["label"]), jax.random.split(key, size), numbers, plan=plan
    )
    return np.array([_operations(f, params, batch) for f in (jax.grad(loss), draw)])


def _operations(f: Callable[..., Any], *inputs: Any) -> float:
    return jax.jit(f).lower(*inputs).cost_analysis()["flops"]


def table(found: dict[str, dict[str, np.ndarray]]) -> str:
    """A row for each arm, from {set: {arm: [2]}}; plain is 1."""
    rows = [["step of", *(f"{name}, {what}" for name in found for what in ("training", "sampling"))]]
    rows.append(["-"] * len(rows[0]))
    for arm in next(iter(found.values())):
        shares = np.concatenate([of_set[arm] / of_set["plain"] for of_set in found.values()])
        rows.append([steps.ARMS[arm].label, *(f"{share:.2f}" for share in shares)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    found = {name: {arm: counted(*task_of(name, of)) for arm, of in steps.ARMS.items()} for name in SETS}
    replace_table(PAGE, "steps-work", table(found))
    print(table(found))


if __name__ == "__main__":
    scripts.run(main)
