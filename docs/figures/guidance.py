"""Guidance against distance, recognition and CLIPScore (Fig. 10), with the adapter on and off, from the same noise.

    python -m docs.figures.guidance [--model=runs/demo] [--seeds=3] [--pictures=36] [--steps=10] [--quick]
    python -m docs.figures.guidance --trained=runs/figures

The six weights are the paper's. A seed is that of the pictures' noise, and the model is one; or, of `--trained`, that
of the training: the models are those that docs.figures.convergence has trained with and without the adapter. CLIPScore
is the embedded CLIP's, through which the shipped model reads its texts and its adapter sees; the judge, in whose
features the distance is taken, is none of the model's own. Pictures of another size than that CLIP's, 32 x 32, are
resized smoothly for it, while `--mode=eval` and `--mode=metrics` resize in 8 bits: a CLIPScore apart.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from contextdiff_jax import Pipeline, data
from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate import figures
from contextdiff_jax.evaluate.conditions import asks_combinations, judge_of, spread
from contextdiff_jax.evaluate.feature_spaces import open_space
from contextdiff_jax.evaluate.fidelity import REFERENCE, renders
from contextdiff_jax.evaluate.groups import Clock, settings_of
from contextdiff_jax.evaluate.metrics import clip_score, frechet
from docs import scripts
from docs.figures.store import MODEL_HELP, keep, model_of, say, shown, trainings

WEIGHTS = (1.5, 3.0, 4.5, 6.0, 7.5, 9.0)
COLUMNS = {"aligned": "recognised", "frechet": "Frechet", "clip": "CLIPScore"}


def sweep(pipeline: Pipeline, weights: tuple[float, ...], seeds: int, count: int, steps: int) -> dict[str, Any]:
    """Every weight with every seed under each setting of the adapter; compiles once for each setting.

    Returns:
        {arm: {"frechet", "aligned", "clip": [S, W]}}.

    Raises:
        UserError: a model that is not asked for objects on backgrounds, or whose pictures nobody judges.
    """
    config, judge = pipeline.config, judge_of(pipeline.config)
    if not asks_combinations(config, judge):
        asked = f"config.data.source={config.data.source!r} and preset={config.data.preset!r}"
        raise UserError(
            f"this model of config.condition.kind={config.condition.kind!r}, {asked} has no judge of objects on "
            "backgrounds, which the figure needs; take a model of the texts of preset 'demo', or one whose "
            "config.eval.recogniser names a judge"
        )
    words = data.vocabulary(config.data.preset)
    asked = np.array(spread(words.seen + tuple(sorted(words.unseen)), count))
    captions = [words.caption(int(o), int(b)) for o, b in asked]
    sources = [data.source(pipeline.config.data, split) for split in ("test", "unseen")]
    reference, found = judge.features(renders(sources, REFERENCE)), {}
    clip = open_space("clip:builtin:clip_mini")
    texts = clip.captioned.embed(captions)
    how = dict(sampler="ddim", steps=steps, rescale=0.0)
    for arm, setting in settings_of(pipeline).items():
        rows = {name: np.zeros((seeds, len(weights))) for name in ("frechet", "aligned", "clip")}
        for s in range(seeds):
            for w, weight in enumerate(weights):
                drawn = pipeline.stream(captions, key=s, guidance=weight, **how, **setting)
                images = np.concatenate(list(Clock().timed(drawn)))
                objects, backgrounds = judge.predict(images)
                rows["frechet"][s, w] = frechet(judge.features(images), reference)
                rows["aligned"][s, w] = np.mean((objects == asked[:, 0]) & (backgrounds == asked[:, 1]))
                rows["clip"][s, w] = clip_score(clip.pooled(images), texts)
                said = ", ".join(f"{name} {values[s, w]:.3g}" for name, values in rows.items())
                say(f"guidance: {arm}, seed {s}, weight {weight:g}: {said}")
        found[arm or "samples"] = rows
    return found


def over_trainings(folder: Path, weights: tuple[float, ...], seeds: int, count: int, steps: int) -> dict[str, Any]:
    """The same of models of several training seeds, each the mean of its sampling seeds; trainings without an adapter
    stand beside."""
    arms: dict[str, dict[str, list[np.ndarray]]] = {}
    for kind, runs in trainings(folder).items():
        for run in runs:
            for arm, rows in sweep(Pipeline.load(run), weights, seeds, count, steps).items():
                kept = arms.setdefault("trained without" if kind == "off" else arm, {name: [] for name in rows})
                for name, values in rows.items():
                    kept[name].append(values.mean(axis=0))
    return {arm: {name: np.stack(v) for name, v in rows.items()} for arm, rows in arms.items()}


def main() -> None:
    """Measures, stores and draws."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="", help=MODEL_HELP)
    parser.add_argument("--trained", type=Path, help="folder with the trainings of the figure of convergence")
    parser.add_argument("--seeds", type=int, default=3, help="of sampling")
    parser.add_argument("--pictures", type=int, default=36)
    parser.add_argument("--steps", type=int, default=10, help="of sampling")
    parser.add_argument("--quick", action="store_true", help="one seed, three weights")
    args = parser.parse_args()
    weights, seeds, count = (WEIGHTS[::2], 1, args.pictures) if args.quick else (WEIGHTS, args.seeds, args.pictures)
    if args.trained is None:
        name, model = "guidance", model_of(args.model, args.quick)
        arms = sweep(Pipeline.load(model), weights, seeds, count, args.steps)
    else:
        name, model = "guidance-trainings", str(args.trained)
        arms = over_trainings(args.trained, weights, seeds, count, args.steps)
    keep(name, args.quick, dict(model=model, pictures=count, steps=args.steps, weights=weights, arms=arms))
    figures.guidance(weights, arms, shown(name, args.quick))
    table(weights, arms)


def table(weights: tuple[float, ...], arms: dict[str, Any]) -> None:
    """A Markdown table of all arms and of the first one's difference from the others."""
    print("| weight | " + " | ".join(f"{name}, {arm}" for name in COLUMNS.values() for arm in arms) + " |")
    print("|-|" + "-|" * (len(COLUMNS) * len(arms)))
    for w, weight in enumerate(weights):
        cells = [figures.spread(np.asarray(v[name])[:, w]) for name in COLUMNS for v in arms.values()]
        print(f"| {weight:g} | " + " | ".join(cells) + " |")
    (first, on), *others = arms.items()
    for other, off in others:
        for name in COLUMNS:
            gain, error = figures.differences(off[name], on[name])
            said = ", ".join(f"{d:+.3g} +- {e:.2g}" for d, e in zip(gain, error, strict=True))
            print(f"{name}, {first} minus {other}: {said}")


if __name__ == "__main__":
    scripts.run(main)
