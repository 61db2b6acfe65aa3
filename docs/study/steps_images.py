"""The second part of the study on small pictures: digits, drawn scenes and clothes, each model trained at its own T."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import cifar10_nll
from contextdiff_jax import task as task_lib
from contextdiff_jax.samplers import sampling
from contextdiff_jax.training.state import stream
from docs.study import images, measure, side_by_side
from docs.study.steps import ARMS, Arm, process_of

SIZES = {
    "digits": replace(images.SIZES["digits"], num_samples=200),
    "emoji16": replace(images.SIZES["emoji16"], num_samples=72),
    "emoji32": images.SIZES["emoji32"],
    "fashion": images.SIZES["fashion"],
}
NUM_TIMES = {"emoji32": 1, "fashion": 1}  # noise levels of an image in a step, where they are not `few_steps`' own
REPEATS = 4  # of the full bound


def config_of(name: str, T: int, arm: Arm, num_steps: int = 0) -> ConfigDict:
    """The preset at the study's size and T steps of a learned process; `num_steps` of training, 0: the study's."""
    config = images.config_of(name, SIZES[name])
    config.train.num_steps = num_steps or config.train.num_steps
    cifar10_nll.few_steps(config, T)
    config.sample.threshold = "static"  # as the stored figures were drawn
    config.loss.num_times = NUM_TIMES.get(name, config.loss.num_times)
    config.update_from_flattened_dict(arm.overrides | {"model.num_blocks": arm.num_blocks})
    return config


def reference(name: str) -> dict[str, Any]:
    """What real held-out pictures score."""
    return images.floor(name, SIZES[name])


def runs(
    name: str, missing: list[tuple[int, str, list[int]]], processes: int, num_steps: int = 0
) -> Iterator[tuple[tuple[int, str, int], dict[str, Any]]]:
    """((T, arm, seed), figures) of all that is missing: of each T and arm its seeds.

    One process compiles once for all seeds of an arm. Of several each trains one seed at a time, the first of every arm
    before the others, so that later ones find its programs compiled.
    """
    if processes == 1:
        for T, arm, seeds in missing:
            for seed, figures in run(name, T, ARMS[arm], seeds, num_steps):
                yield (T, arm, seed), figures
        return
    jobs = [(i, (T, arm, seed)) for T, arm, seeds in missing for i, seed in enumerate(seeds)]
    jobs = [job for _, job in sorted(jobs, key=lambda job: job[0])]
    yield from side_by_side.results(_Of(name, num_steps), jobs, processes)


@dataclass(frozen=True)
class _Of:
    """(T, arm, seed) -> figures, of one set: something that another process can be sent."""

    name: str
    num_steps: int

    def __call__(self, T: int, arm: str, seed: int) -> dict[str, Any]:
        ((_, figures),) = run(self.name, T, ARMS[arm], [seed], self.num_steps)
        return figures


def run(
    name: str, T: int, arm: Arm, seeds: list[int], num_steps: int = 0
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Trains and measures one arm at one T under each seed."""
    config, size = config_of(name, T, arm, num_steps), SIZES[name]
    task, test, label = task_lib.build(config), images.held_out(name, size), images.asked(name, size.num_samples)
    plan, numbers = sampling.Plan.of(task, config.sample), sampling.Numbers.of(config.sample)
    keys = jax.random.split(stream(0, "sample"), len(label))
    bound = jax.jit(lambda p, frozen: measure.terms(task, p, frozen, test, stream(0, "measure"), REPEATS))
    asked = lambda p, frozen: task.encode(p, frozen, {"label": label})
    draw = jax.jit(lambda p, frozen: sampling.sample(task, p, frozen, asked(p, frozen), keys, numbers, plan=plan))
    bits = 1.0 / (np.log(2.0) * test["image"][0].size)
    for seed, state, frozen, facts in images.trained(config, seeds):
        task.check_params(state.ema)
        pictures, terms = np.asarray(draw(state.ema, frozen)), np.asarray(bound(state.ema, frozen)) * bits
        figures = {
            "bound": float(terms.sum(0).mean()),
            "per_image": measure.rounded(terms.sum(0)),
            "terms": measure.rounded(terms.mean(1)),
            "quality": images.quality(name, size, pictures, label),
            "process": process_of(task, state.ema),
            "parameters": sum(v.size for v in jax.tree.leaves(state.params)),
        }
        yield seed, figures | facts | ({"picture": images.png(pictures[: images.SHOWN])} if seed == 0 else {})
