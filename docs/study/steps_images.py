"""The second part of the study on small pictures: digits, drawn scenes and clothes, each model trained at its own T.

Models of T = 1000 have the fixed cosine schedule, are drawn in few steps by solvers, and their bound is of some times.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import cifar10_nll
from contextdiff_jax import task as task_lib
from contextdiff_jax.samplers import sampling
from contextdiff_jax.training.state import stream
from contextdiff_jax.types import Batch, Params
from docs.study import images, measure, side_by_side
from docs.study.steps import ARMS, FIXED, MANY, OWN, USERS, Arm, Training, process_of, ways_of

SIZES = images.SIZES | {
    "digits": replace(images.SIZES["digits"], num_samples=200),
    "emoji16": replace(images.SIZES["emoji16"], num_samples=72),
}
# Noise levels of an image in a step, where they are not `few_steps`' own
NUM_TIMES = {"emoji32": 1, "fashion": 1, "fashion14": 1, "fashion-small": 1}
REPEATS = 4  # of the full bound
MANY_STEPS = (4, 8, 16, 64)  # in which models of T = 1000 are drawn


def config_of(name: str, T: int, arm: Arm, training: Training = OWN) -> ConfigDict:
    """The preset at the study's size and T steps of a learned process, 1000 of a fixed one."""
    config = images.config_of(name, SIZES[name])
    config.train.num_steps = training.num_steps or config.train.num_steps
    cifar10_nll.few_steps(config, T, training.rate)
    config.sample.threshold = "static"  # as the stored figures were drawn
    config.loss.num_times = NUM_TIMES.get(name, config.loss.num_times)
    fixed = FIXED if T == MANY else {}
    config.update_from_flattened_dict(fixed | arm.overrides | {"model.num_blocks": arm.num_blocks})
    return config


def reference(name: str) -> dict[str, Any]:
    """What real held-out pictures score."""
    return images.floor(name, SIZES[name])


def runs(
    name: str, missing: list[tuple[int, str, list[int]]], processes: int, training: Training = OWN
) -> Iterator[tuple[tuple[int, str, int], dict[str, Any]]]:
    """((T, arm, seed), figures) of all that is missing: of each T and arm its seeds.

    One process compiles once for all seeds of an arm, and so does each of several on an accelerator, where compiling
    takes longer than training; its figures come when all are done. Of several on a CPU each trains one seed at a time,
    the first of every arm before the others, so that later ones find its programs compiled.
    """
    if processes == 1:
        for T, arm, seeds in missing:
            for seed, figures in run(name, T, (ARMS | USERS)[arm], seeds, training):
                yield (T, arm, seed), figures
        return
    jobs = [(T, arm, tuple(seeds)) for T, arm, seeds in missing if seeds]
    if jax.default_backend() == "cpu":
        single = [(i, (T, arm, (seed,))) for T, arm, seeds in jobs for i, seed in enumerate(seeds)]
        jobs = [job for _, job in sorted(single, key=lambda job: job[0])]
    for (T, arm, _), of_seeds in side_by_side.results(_Of(name, training), jobs, processes):
        for seed, figures in of_seeds:
            yield (T, arm, seed), figures


@dataclass(frozen=True)
class _Of:
    """(T, arm, seeds) -> (seed, figures) of each, of one set: something that another process can be sent."""

    name: str
    training: Training

    def __call__(self, T: int, arm: str, seeds: tuple[int, ...]) -> list[tuple[int, dict[str, Any]]]:
        return list(run(self.name, T, (ARMS | USERS)[arm], list(seeds), self.training))


def run(
    name: str, T: int, arm: Arm, seeds: list[int], training: Training = OWN
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Trains and measures one arm at one T under each seed."""
    config, size = config_of(name, T, arm, training), SIZES[name]
    task, test, label = task_lib.build(config), images.held_out(name, size), images.asked(name, size.num_samples)
    ways = ways_of(config, MANY_STEPS) if T == MANY else {"": {}}
    bound, draws = _bound(task, test, size), {way: _draw(task, changes, label) for way, changes in ways.items()}
    for seed, state, frozen, facts in images.trained(config, seeds):
        task.check_params(state.ema)
        pictures = {way: np.asarray(draw(state.ema, frozen)) for way, draw in draws.items()}
        drawn = {way: images.quality(name, size, of_way, label) for way, of_way in pictures.items()}
        figures = bound(state.ema, frozen) | ({"drawn": drawn} if T == MANY else {"quality": drawn[""]})
        figures |= {"process": process_of(task, state.ema)}
        figures |= {"parameters": sum(v.size for v in jax.tree.leaves(state.params))}
        shown = next(iter(pictures.values()))[: images.SHOWN]
        yield seed, figures | facts | ({"picture": images.png(shown)} if seed == 0 else {})


def _bound(task: Any, test: Batch, size: images.Size) -> Callable[[Params, Params], dict[str, Any]]:
    """(params, frozen) -> the bound in bits, and its terms: prior, t = 1, then each t; of T = 1000 their sum."""
    key, per_dim = stream(0, "measure"), 1.0 / (np.log(2.0) * test["image"][0].size)
    every = jax.jit(lambda p, frozen: measure.terms(task, p, frozen, test, key, REPEATS))
    some = jax.jit(lambda p, frozen: measure.bound(task, p, frozen, test, key, size.num_t))

    def figures(p: Params, frozen: Params) -> dict[str, Any]:
        if task.schedule.num_timesteps < MANY:
            terms = np.asarray(every(p, frozen)) * per_dim
            per_image, terms = terms.sum(0), terms.mean(1)
        else:
            found = some(p, frozen)
            per_image, terms = np.asarray(found.per_image), [found.prior, found.reconstruction, found.diffusion]
        stored = {"per_image": measure.rounded(per_image), "terms": measure.rounded(terms)}
        return {"bound": float(per_image.mean())} | stored

    return figures


def _draw(task: Any, changes: dict[str, Any], label: np.ndarray) -> Callable[[Params, Params], jax.Array]:
    """Compiled (params, frozen) -> a picture of each label, under the config's section `sample` with these changes."""
    section = task.config.sample.copy_and_resolve_references()
    section.update(changes)
    plan, numbers = sampling.Plan.of(task, section), sampling.Numbers.of(section)
    keys = jax.random.split(stream(0, "sample"), len(label))
    asked = lambda p, frozen: task.encode(p, frozen, {"label": label})
    return jax.jit(lambda p, frozen: sampling.sample(task, p, frozen, asked(p, frozen), keys, numbers, plan=plan))
