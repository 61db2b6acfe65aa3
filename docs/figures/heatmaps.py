"""Heatmaps of words (Figs. 8, 9) with the adapter on and off, and how much of an object's heat lies on the object.

    python -m docs.figures.heatmaps [--model=runs/demo] [--quick]
    python -m docs.figures.heatmaps --trained=runs/figures

Of `--trained` the shares alone, of all models that docs.figures.convergence has trained with and without the adapter.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from contextdiff_jax import Pipeline
from contextdiff_jax.evaluate import figures
from contextdiff_jax.evaluate.groups import settings_of
from contextdiff_jax.evaluate.heat_pictures import shares, write_heatmaps
from docs import scripts
from docs.figures import store

PROMPTS = (
    "a frog on a purple background",
    "a red apple on a blue background",
    "a pumpkin on a green background",
    "a penguin on a yellow background",
)


def over_trainings(folder: Path) -> dict[str, list[float]]:
    """{words and arm: how many times its share of the picture the heat has on the object, of each training seed}."""
    found: dict[str, list[float]] = {}
    for kind, runs in store.trainings(folder).items():
        for run in runs:
            pipeline = Pipeline.load(run)
            for label, row in shares(pipeline, settings_of(pipeline)).items():
                name = f"{label}, trained without" if kind == "off" else label
                found.setdefault(name, []).append(row["ratio"])
                store.say(f"heatmaps: {run.name}, {label}: {row['ratio']:.3f} +- {row['ratio_stderr']:.3f}")
    return found


def main() -> None:
    """Draws and prints the shares."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="", help=store.MODEL_HELP)
    parser.add_argument("--trained", type=Path, help="folder with the trainings of the figure of convergence")
    parser.add_argument("--quick", action="store_true", help="one prompt")
    args = parser.parse_args()
    if args.trained is not None:
        ratios = over_trainings(args.trained)
        store.keep("heatmaps-trainings", args.quick, dict(model=str(args.trained), ratios=ratios))
        print("\n".join(f"{name}: {figures.spread(np.array(v))}" for name, v in ratios.items()))
        return
    prompts = PROMPTS[:1] if args.quick else PROMPTS
    model = store.model_of(args.model, args.quick)
    about: dict[str, Any] = write_heatmaps(Pipeline.load(model), prompts, store.place(args.quick) / "heatmaps")
    print(json.dumps(about["shares"], indent=2))


if __name__ == "__main__":
    scripts.run(main)
