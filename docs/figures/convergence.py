"""Convergence with and without the adapter (Figs. 11, 12): held-out bound, distance and recognition by steps and time.

    python -m docs.figures.convergence [--seeds=3] [--workdir=runs/figures] [--quick]

Both arms are trained alike but for the adapter; at a fixed cadence the averaged parameters are kept, and evaluated when
the training has ended. Runs that were cut off continue.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from configs import t2i
from contextdiff_jax import Pipeline, training
from contextdiff_jax import task as task_lib
from contextdiff_jax.evaluate import figures
from contextdiff_jax.evaluate.pages.run import read_curves
from contextdiff_jax.evaluate.suite import evaluate_run
from docs import scripts
from docs.figures.store import keep, say, shown

ARMS = {"with adapter": True, "without adapter": False}


def config_of(adapter: bool, seed: int, quick: bool) -> ConfigDict:
    """The demo's scenes at 16 x 16 in a network of its kind, small enough for six trainings on a laptop."""
    config = t2i.get_config()
    config.seed = seed
    config.data.image_size = 16
    config.model.channels, config.model.multipliers, config.model.head_dim = 32, (1, 2), 32
    config.model.self_attention_levels = config.model.cross_attention_levels = (1,)
    config.adapter.enabled, config.adapter.depth, config.adapter.width = adapter, 2, 32
    config.adapter.patch_size = 2
    config.train.num_steps, config.train.checkpoint_every = (60, 30) if quick else (300, 75)
    config.train.keep_every = config.train.checkpoint_every
    config.train.preview_every, config.train.log_every = 0, 10
    config.sample.num_steps, config.sample.batch_size = (4, 36) if quick else (8, 48)
    config.sample.sampler, config.sample.guidance, config.sample.rescale = "ddim", 3.0, 0.0
    config.eval.num_samples = 36 if quick else 48
    config.eval.bpd_always, config.eval.bpd_images, config.eval.bpd_timesteps = True, 16 if quick else 32, 8
    return config


def measured(config: ConfigDict, workdir: Path) -> dict[str, list[float]]:
    """Trains where it has not been, and evaluates every kept checkpoint: {figure: [K]}."""
    say(f"convergence: {workdir}")
    training.train(task_lib.build(config), workdir)
    times, spent = read_curves(workdir / "metrics.jsonl")["step_ms"]
    rows: dict[str, list[float]] = {"bits per dimension": [], "Frechet distance": [], "recognised": [], "seconds": []}
    for step in range(config.train.checkpoint_every, config.train.num_steps + 1, config.train.checkpoint_every):
        out = workdir / f"step-{step}"
        if not (out / "eval.json").is_file():
            evaluate_run(Pipeline.load(workdir, step=step), out)
        found = json.loads((out / "eval.json").read_text())
        arm = "adapter on" if config.adapter.enabled else ""
        name = lambda group, arm=arm: f"{group}, {arm}" if arm else group
        groups = ("seen combinations", "unseen combinations")
        rows["recognised"].append(float(np.mean([found["alignment"][name(group)]["both"] for group in groups])))
        rows["Frechet distance"].append(found["judge_features"][arm or "samples"]["frechet"])
        rows["bits per dimension"].append(found["bits_per_dim"][arm or "adapter off"]["mean"])
        steps = np.diff(np.concatenate([[0], times]))
        rows["seconds"].append(float((steps * spent)[times <= step].sum() / 1000))
    return rows


def main() -> None:
    """Trains, measures, stores and draws."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workdir", type=Path, default=Path("runs/figures"))
    parser.add_argument("--quick", action="store_true", help="one seed, two short trainings")
    args = parser.parse_args()
    found: dict[str, Any] = {}
    for arm, adapter in ARMS.items():
        runs = []
        for seed in range(1 if args.quick else args.seeds):
            config = config_of(adapter, seed, args.quick)
            name = f"{'quick' if args.quick else 'converge'}-{'on' if adapter else 'off'}-{seed}"
            runs.append(measured(config, args.workdir / name))
        found[arm] = {name: np.array([run[name] for run in runs]) for name in runs[0]}
    every = config_of(True, 0, args.quick).train.checkpoint_every
    steps = [every * (k + 1) for k in range(found["with adapter"]["seconds"].shape[1])]
    seconds = {arm: rows.pop("seconds") for arm, rows in found.items()}
    keep("convergence", args.quick, dict(steps=steps, seconds=seconds, arms=found))
    figures.convergence(steps, seconds, found, shown("convergence", args.quick))
    for name in found["with adapter"]:
        gain, error = figures.differences(found["without adapter"][name], found["with adapter"][name])
        said = ", ".join(f"{s}: {d:+.3g} +- {e:.2g}" for s, d, e in zip(steps, gain, error, strict=True))
        print(f"{name}, with minus without, by step: {said}")


if __name__ == "__main__":
    scripts.run(main)
