"""Second part of the study: few steps. Every model is trained at its own T, on Eq. 4, with a learned process.

    python -m docs.study.steps                                     # the mixture, what is missing of it
    python -m docs.study.steps --T=4 --arms=plain,plain_wide,free,bounded
    python -m docs.study.steps --data=digits --T=8 --arms=plain,free
    python -m docs.study.steps --data=digits --T=8 --arms=plain,free --num_steps=400   # 10 minutes; a file of its own
    python -m docs.study.steps --data=digits --T=1000 --arms=plain,plain_simple # drawn in few steps by solvers
    python -m docs.study.steps --data=emoji32 --T=4,8,16 --arms=plain,free      # and fashion: for a GPU
    python -m docs.study.steps --data=fashion14 --T=4                           # Fashion-MNIST on two cores; all arms
    python -m docs.study.steps --data=fashion14 --T=4 --arms=plain,free --rate=100 # a process that learns faster

Schedule and reverse variance are learned in every arm, from the same start; the arms differ in the shift alone. At
T = 1000 both are fixed, as users have them.
"""

import argparse
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from configs import cifar10_nll
from contextdiff_jax.errors import UserError
from contextdiff_jax.training.state import stream
from contextdiff_jax.types import Batch, Params
from docs import scripts
from docs.study import measure, side_by_side, toy
from docs.study.run import RESULTS, load, save

TIMES = (2, 4, 8, 16)  # what is run unless asked otherwise
SEEDS = (0, 1, 2)
SKETCH = "mixture-sketch"  # the mixture as a first sketch of this comparison had it
SETS = ("mixture", "mixture-slow", SKETCH, "digits", "emoji16", "emoji32", "fashion", "fashion14", "fashion-small")
# The process learns so many times faster than the networks; at 1, as `mixture-slow`, 3000 steps leave it unfinished
RATE = {"mixture": 20.0, "mixture-slow": 1.0, SKETCH: 1.0}
# Times of 2..T of each point in a step, beside t = 1; 0 draws one time of 1..T alone, which is noisier
NUM_TIMES = {SKETCH: 0}
BLOCKS = 64  # test points are stored in so many means
MANY = 1000
MANY_STEPS = (2, 4, 8, 16, 64)  # in which models of T = 1000 are sampled
SOLVERS = ("dpmpp_2m", "ddim")  # by which
# What a user has at T = 1000: the cosine schedule, fixed
FIXED = {"process.schedule": "cosine", "process.variance": "beta", "optim.lr_multipliers": ()}


@dataclass(frozen=True)
class Arm:
    """What is compared at equal T.

    Attributes:
        label: as in tables and plots.
        overrides: what it changes in a config.
        colour: in plots.
        width: of the mixture's denoiser.
        num_blocks: of the pictures' denoiser, at each level.
    """

    label: str
    overrides: dict[str, object]
    colour: str
    width: int = 64
    num_blocks: int = 1


ARMS = {
    "plain": Arm("plain", {"adapter.enabled": False}, "#52606d"),
    "plain_wide": Arm("plain, more parameters", {"adapter.enabled": False}, "#3d8bc4", width=100, num_blocks=2),
    "bounded": Arm("contextual, r bounded", {"adapter.enabled": True, "adapter.bound": 1.0}, "#ee964b"),
    "free": Arm("contextual, r free", {"adapter.enabled": True, "adapter.bound": 0.0}, "#d1495b"),
    "head": Arm(
        "r free, second head",
        {"adapter.enabled": True, "adapter.bound": 0.0, "adapter.reverse": "head", "sample.threshold": "none"},
        "#8e5ea2",
    ),
    "scale": Arm("r free, scale", {"adapter.enabled": True, "adapter.bound": 0.0, "adapter.scale": 0.9}, "#2e9e5b"),
}
# What one would do otherwise, at T = 1000 alone, beside the plain arm
_SIMPLE = {"adapter.enabled": False, "loss.objective": "simple", "loss.num_times": 0}
USERS = {"plain_simple": Arm("plain, Eq. 6", _SIMPLE, "#b08968")}


@dataclass(frozen=True)
class Training:
    """How models of pictures are trained.

    Attributes:
        num_steps: 0: as many as the study's own.
        rate: how many times faster than the networks the process learns.
    """

    num_steps: int = 0
    rate: float = 20.0

    def __str__(self) -> str:
        """What its file is called by, beside the set; nothing where it is the study's own."""
        of_rate = f"-rate{self.rate:g}" if self.rate != OWN.rate else ""
        return (f"-{self.num_steps}" if self.num_steps else "") + of_rate


OWN = Training()
SIZE = toy.Size(num_steps=3000, batch_size=256, num_test=4096, num_samples=2000)


def config_of(T: int, arm: Arm, size: toy.Size, name: str = "mixture") -> ConfigDict:
    """The mixture's config at T steps, under what `RATE` and `NUM_TIMES` say of a set."""
    config = toy.config_of(size)
    cifar10_nll.few_steps(config, T, RATE[name])
    config.loss.num_times = NUM_TIMES.get(name, 1)
    changes = {"sample.last_noise": True, "process.variance_per_channel": True}
    changes |= {"optim.lr": 2e-3, "optim.b2": 0.999, "optim.warmup_steps": 0, "optim.weight_decay": 0.0}
    if name == SKETCH:
        changes["process.log_snr"] = (6.0, 6.0 - 14.0 * (T - 1) / T)
    if T == MANY:
        changes |= FIXED | {"process.variance_per_channel": False, "sample.last_noise": False}
    config.update_from_flattened_dict(changes | {"ema.decay": 0.99} | arm.overrides)
    return config


def run(
    T: int, arm: Arm, seeds: list[int], size: toy.Size = SIZE, name: str = "mixture"
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Trains and measures one arm on the mixture at one T, all seeds at once."""
    data = toy.DATA["mixture"]
    network = toy.SketchMlp if name == SKETCH else toy.Mlp
    config, size = config_of(T, arm, size, name), replace(size, width=arm.width, sampling_steps=T, network=network)
    task = toy.ToyTask(config, data, size)
    start = time.perf_counter()
    params, _ = jax.block_until_ready(toy.train(task, jnp.asarray(seeds, jnp.int32)))
    seconds = (time.perf_counter() - start) / len(seeds)
    test = task.batch(stream(0, "test"), size.num_test if T < MANY else size.num_test // 16)
    exact = np.asarray(data.negative_log_density(test["image"], test["label"]))
    bound = jax.jit(lambda p: measure.terms(task, p, task.frozen, test, stream(0, "measure"), 4 if T < MANY else 1))
    count = sum(v.size for v in jax.tree.leaves(params)) // len(seeds)
    for i, seed in enumerate(seeds):
        of_seed = jax.tree.map(lambda v, i=i: v[i], params)
        task.check_params(of_seed)
        figures = bounds(np.asarray(bound(of_seed)), exact)
        figures |= {"energy": energies(task, of_seed, size), "process": process_of(task, of_seed)}
        if task.adapter is not None and T < MANY:
            figures |= {"r_rms": sizes_of_r(task, of_seed, test), "arrows": arrows(task, of_seed)}
        yield seed, figures | {"parameters": count, "seconds": round(seconds, 1)}


def bounds(terms: np.ndarray, exact: np.ndarray) -> dict[str, Any]:
    """Of [T+1, N] terms in nats: the mean above the exact value, in blocks of points, and each term's mean."""
    blocks = (terms.sum(0) - exact).reshape(BLOCKS, -1).mean(1)
    shown = terms.mean(1) if len(terms) <= 66 else [terms[0].mean(), terms[1].mean(), terms[2:].sum(0).mean()]
    return {"above": float(blocks.mean()), "blocks": measure.rounded(blocks), "terms": measure.rounded(shown)}


def process_of(task: Any, params: Params) -> dict[str, Any]:
    """What has been learned: log SNR of t = 1..T, and the reverse variance over beta_t, mean of the channels."""
    if not task.parts.process.learned:
        return {}
    ab = np.asarray(task.schedule_of(params).alpha_bar, np.float64)[1:]
    ratio = np.exp(np.asarray(params["process"]["log_ratio"])).reshape(len(ab), -1).mean(1)
    return {"log_snr": measure.rounded(np.log(ab / (1 - ab))), "variance": measure.rounded(ratio)}


def sizes_of_r(task: Any, params: Params, test: Batch) -> list[float]:
    """Root mean square of r at t = 1..T on the data."""
    b, x0 = task.shift(params, task.frozen, task.encode(params, task.frozen, test)), test["image"]
    r_at = lambda t: b.relate(b.features(x0), jnp.full(x0.shape[:1], t), x0.shape[1:])[..., : toy.DIM]
    at = jax.jit(lambda t: jnp.sqrt(jnp.mean(r_at(t) ** 2)))
    return measure.rounded([at(t) for t in range(1, task.schedule.num_timesteps + 1)])


def arrows(task: Any, params: Params) -> list[Any]:
    """Where the shift moves the components' means: at t = 1..T, of each component, sqrt(ab_t) x0 and behind it b_t."""
    means = np.asarray(task.data.means, np.float32)
    label = np.repeat(np.arange(len(means), dtype=np.int32), means.shape[1])
    x0, s = jnp.asarray(means.reshape(-1, toy.DIM)), task.schedule_of(params)
    b = task.shift(params, task.frozen, task.encode(params, task.frozen, {"label": label}))
    at = jax.jit(lambda t: jnp.concatenate([jnp.sqrt(s.alpha_bar[t]) * x0, b(x0, jnp.full(len(label), t))], axis=1))
    return [measure.rounded(at(t)) for t in range(1, min(s.num_timesteps, 16) + 1)]


def ways_of(config: ConfigDict, numbers: tuple[int, ...] = MANY_STEPS) -> dict[str, dict[str, Any]]:
    """How a model of T = 1000 is drawn: {sampler and number of steps: changes to the section `sample`}.

    By the samplers that a user would take, in so many steps; a second head by all of ddpm's, as it predicts no others.
    """
    if config.adapter.enabled and config.adapter.reverse == "head":
        return {f"ddpm {MANY}": {"sampler": "ddpm", "num_steps": MANY}}
    return {f"{name} {steps}": {"sampler": name, "num_steps": steps} for name in SOLVERS for steps in numbers}


def energies(task: Any, params: Params, size: toy.Size) -> dict[str, float | None]:
    """Energy distances to held-out points at exactly T evaluations; of a model of T = 1000 as `ways_of` says."""
    own, few = task.config.sample, {"decoder's draw": {}, "decoder's mean": {"last_noise": False}}
    ways = few if task.schedule.num_timesteps < MANY else ways_of(task.config)
    result = {}
    for label, changes in ways.items():
        sample = own.copy_and_resolve_references()
        sample.update(changes)
        points = np.asarray(jax.jit(partial(toy.draw, task, sample=sample, size=size))(params))
        result[label] = toy.energy(task.data, points)
    return result


def study(
    name: str,
    times: list[int],
    arms: list[str],
    seeds: list[int],
    results: Path = RESULTS,
    size: toy.Size = SIZE,
    processes: int = 1,
    training: Training = OWN,
) -> None:
    """Runs whatever of these is not in its file yet (`stored_in`), and stores it run by run."""
    path = stored_in(results, name, training)
    stored = load(path)
    found = lambda T, arm, seed: stored["runs"].get(str(T), {}).get(arm, {}).get(str(seed), {})
    seeds_of = lambda T, arm: [seed for seed in seeds if not _is_whole(T, found(T, arm, seed))]
    missing = [(T, arm, some) for T in times for arm in arms if (some := seeds_of(T, arm))]
    if name in RATE:
        stored["reference"] = stored["reference"] or reference(size)
        done = (
            ((T, arm, seed), figures)
            for T, arm, some in missing
            for seed, figures in run(T, (ARMS | USERS)[arm], some, size, name)
        )
    else:
        from docs.study import steps_images  # scikit-learn and the judges, which points can do without

        stored["reference"] = stored["reference"] or steps_images.reference(name)
        done = steps_images.runs(name, missing, processes, training)
    for (T, arm, seed), figures in done:
        stored["runs"].setdefault(str(T), {}).setdefault(arm, {})[str(seed)] = figures
        save(stored, path)
        shown = ("above", "bound", "energy", "quality", "drawn", "parameters", "seconds")
        print(f"{name} T={T} {arm} seed {seed}:", {k: figures[k] for k in shown if k in figures}, flush=True)


def _is_whole(T: int, figures: dict[str, Any]) -> bool:
    """Whether a stored run has what is told of one: pictures of T = 1000 were once drawn in T steps alone."""
    return bool(figures) and (T < MANY or "energy" in figures or "drawn" in figures)


def stored_in(results: Path, name: str, training: Training = OWN) -> Path:
    """The file of a set's figures; other trainings than the study's have one of their own."""
    return results / f"steps-{name}{training}.json"


def reference(size: toy.Size) -> dict[str, float]:
    """How held-out points score against held-out points."""
    data = toy.DATA["mixture"]
    others = [toy.energy(data, toy.held_out(data, size.num_samples, f"floor {i}")) for i in range(5)]
    return {"energy": float(np.mean(others)), "energy_std": float(np.std(others, ddof=1))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mixture", help=", ".join(SETS))
    parser.add_argument("--T", default=",".join(map(str, TIMES)))
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--results", default=str(RESULTS), help="folder of the stored figures")
    parser.add_argument("--cache", default="runs/study-compiled", help="folder of compiled programs")
    parser.add_argument("--processes", type=int, default=0, help="trainings on pictures at once; 0: one a core")
    parser.add_argument("--num_steps", type=int, default=0, help="of training on pictures; 0: the study's own")
    help_of_rate = "times as fast as the networks the process of pictures learns"
    parser.add_argument("--rate", type=float, default=OWN.rate, help=help_of_rate)
    args = parser.parse_args()
    training = Training(args.num_steps, args.rate)
    if training != OWN and args.data in RATE:
        raise UserError(f"--num_steps and --rate are for pictures; --data={args.data} are points")
    if args.num_steps < 0 or not args.rate > 0:
        raise UserError(f"--num_steps={args.num_steps} and --rate={args.rate:g} must be positive")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes may share an accelerator
    jax.config.update("jax_compilation_cache_dir", str(Path(args.cache).absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    arms = args.arms.split(",")
    if unknown := set(arms) - set(ARMS | USERS):
        raise UserError(f"--arms={','.join(sorted(unknown))} is unknown; accepted: {', '.join(ARMS | USERS)}")
    if args.data not in SETS:
        raise UserError(f"--data={args.data} is unknown; accepted: {', '.join(SETS)}")
    numbers = lambda text: [int(number) for number in text.split(",")]
    times = numbers(args.T)
    if wrong := [T for T in times if not 1 <= T <= MANY]:
        raise UserError(f"--T={wrong[0]}: the tables have 1 to {MANY} steps")
    if set(arms) & set(USERS) and times != [MANY]:
        raise UserError(f"--arms={args.arms}: {', '.join(USERS)} is for --T={MANY} alone")
    processes = args.processes or side_by_side.sensible()
    from docs.study import steps_plots  # which reads the arms from here

    results = Path(args.results)
    study(args.data, times, arms, numbers(args.seeds), results, SIZE, processes, training)
    print(steps_plots.table(args.data, load(stored_in(results, args.data, training))))


if __name__ == "__main__":
    scripts.run(main)
