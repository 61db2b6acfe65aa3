"""The evaluation of a trained run: alignment, bits per dimension and speed, into eval.json and report.png."""

import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from contextdiff_jax import data
from contextdiff_jax.evaluate.alignment import MEASURES, alignment, ceiling, chance, hits
from contextdiff_jax.evaluate.bpd import bits_per_dim, join
from contextdiff_jax.evaluate.class_judge import judge_of
from contextdiff_jax.evaluate.conditions import by_classifier, by_recogniser, class_rows, layout_rows, with_boxes
from contextdiff_jax.evaluate.fidelity import REFERENCE, fidelity, renders
from contextdiff_jax.evaluate.report import write_report
from contextdiff_jax.files import write_json
from contextdiff_jax.models.recogniser import Recogniser, load_recogniser
from contextdiff_jax.pipeline import Pipeline
from contextdiff_jax.runtime import here
from contextdiff_jax.training.distributed import is_primary
from contextdiff_jax.training.sharding import gather
from contextdiff_jax.types import Params

GRID = 32  # pictures of each set shown in the report
REAL_IMAGES = 10_000  # of the held-out ones, judged at the most: the ceiling of a classifier


def evaluate_run(pipeline: Pipeline, out: Path, seed: int = 0) -> dict[str, Any]:
    """Evaluates the model and writes eval.json and report.png into `out`.

    Args:
        pipeline: the trained model; its config says how much to evaluate.
        out: folder for the two files.
        seed: of prompts' noise and of the bound's Monte Carlo.

    Returns:
        What eval.json holds.
    """
    config = pipeline.config
    figures: dict[str, Any] = {
        "title": f"{out.name}: step {pipeline.step}, {config.sample.sampler} {config.sample.num_steps} steps, "
        f"guidance {config.sample.guidance:g}",
        "step": pipeline.step,
        "seed": seed,
        "hardware": hardware(),
    }
    if config.condition.kind == "class" and config.eval.judge_steps:
        named = by_classifier(judge_of(config, out / "judge"))
        found = class_rows(pipeline, named, seed, real=("images", REAL_IMAGES))
        figures["alignment"], figures["samples_per_second"], grids = found
    elif (judge := _judge(config)) is None:
        figures["asked_for"], figures["samples_per_second"], grids = _unjudged(pipeline, seed)
    elif config.condition.kind == "layout":
        figures["alignment"], figures["samples_per_second"], grids = layout_rows(pipeline, judge, seed)
    elif (config.condition.kind, config.data.preset) == ("class", "demo_objects"):
        found = class_rows(pipeline, by_recogniser(judge), seed, real=("renders", config.eval.num_samples))
        figures["alignment"], figures["samples_per_second"], grids = found
    else:
        figures["alignment"], figures["samples_per_second"], grids, drawn = _alignment(pipeline, judge, seed)
        figures["judge_features"] = _fidelity(config, judge, drawn)
    trained_for_likelihood = config.loss.objective in ("nelbo", "posterior")
    if config.eval.bpd_images and config.space.kind == "pixels" and (trained_for_likelihood or config.eval.bpd_always):
        figures["bits_per_dim"] = _bits_per_dim(pipeline, seed)
    if is_primary():
        _print(figures)
        keep(out / "eval.json", partial(write_json, figures))
        keep(out / "report.png", partial(write_report, figures, grids))
    return figures


def keep(path: Path, write: Callable[[Path], None]) -> None:
    """Writes a file of results and says so, or says why it could not be written: they have been printed."""
    try:
        write(path)
        print(f"written: {path}")
    except OSError as error:
        print(f"NOT WRITTEN: {path} ({error})")


def hardware() -> str:
    """What the figures were measured on, e.g. "1 x cpu, 2 cores"."""
    return str(here())


def _judge(config: ConfigDict) -> Recogniser | None:
    """The recogniser of an openmoji preset, the one named or the shipped one; None where the model takes no prompts, or
    there is no recogniser."""
    if config.data.source != "openmoji" or config.condition.kind == "none":
        return None
    if config.eval.recogniser:
        return load_recogniser(config.data.preset, config.eval.recogniser)
    judged = {"layout": ("demo", "demo_pairs"), "class": ("demo", "demo_objects"), "text": ("demo",)}
    if config.data.preset not in judged[config.condition.kind]:
        print(
            f"alignment is left out: no recogniser ships for preset {config.data.preset!r}; "
            "train one with configs/recogniser.py and name its export in --config.eval.recogniser"
        )
        return None
    return load_recogniser(config.data.preset)


def _unjudged(pipeline: Pipeline, seed: int) -> tuple[dict, dict, dict]:
    """Which records' conditions were asked for, pictures per second, and the pictures: no judge looks at them."""
    config, parts = pipeline.config, pipeline.task.parts
    split, source = data.held_out(config.data)
    shown = data.chosen(len(source), GRID, config.data.seed)
    asked = parts.prompts([source[i] for i in shown])
    takes, is_layout = parts.condition.takes_prompts, config.condition.kind == "layout"
    images, per_second = _timed_sample(pipeline, asked if takes else len(asked), seed)
    captions = parts.captions(asked) if takes else [f"{i}" for i in range(len(asked))]
    heading = "samples, asked for as held-out records are" + (", and the asked boxes" if is_layout else "")
    grids = {heading: (with_boxes(images, asked) if is_layout else images, captions)}
    return {"split": split, "n": len(shown), "of": len(source)}, {"as configured": per_second}, grids


def _timed_sample(pipeline: Pipeline, prompts: list[str] | int, seed: int) -> tuple[np.ndarray, float]:
    """Pictures and pictures per second, compilation apart."""
    pipeline.sample_arrays(prompts, key=seed)
    start = time.perf_counter()
    images = pipeline.sample_arrays(prompts, key=seed)
    return images, len(images) / (time.perf_counter() - start)


def spread(combinations: Sequence, count: int) -> list:
    """`count` of the combinations: evenly spaced where there are more, all of them in turn where there are fewer."""
    if len(combinations) >= count:
        return [combinations[i] for i in np.linspace(0, len(combinations) - 1, count).astype(int)]
    return list(itertools.islice(itertools.cycle(combinations), count))


def _alignment(pipeline: Pipeline, judge: Recogniser, seed: int) -> tuple[dict, dict, dict, dict]:
    """Rows of the alignment table, pictures per second and grids, for seen and unseen combinations; and all pictures of
    each setting of the adapter."""
    config = pipeline.config
    words = data.vocabulary(config.data.preset)
    pairs = {"seen": words.seen, "unseen": tuple(sorted(words.unseen))}
    settings = {"adapter on": {}, "adapter off": {"adapter": False}} if pipeline.task.adapter is not None else {"": {}}
    rows, speed, grids, drawn = {}, {}, {}, {}
    for label, options in settings.items():
        for group, combinations in pairs.items():
            asked = np.array(spread(combinations, config.eval.num_samples))
            captions = [words.caption(int(o), int(b)) for o, b in asked]
            name = f"{group} combinations" + (f", {label}" if label else "")
            start = time.perf_counter()
            images = pipeline.sample_arrays(captions, key=seed, **options)
            # The first group compiles; the speed that stays is that of the second.
            speed[label or "plain"] = len(captions) / (time.perf_counter() - start)
            rows[name] = {"split": f"{group} combinations"} | alignment(images, asked[:, 0], asked[:, 1], judge)
            drawn.setdefault(label or "samples", []).append(images)
            if not options:
                shown = np.linspace(0, len(asked) - 1, min(GRID, len(asked))).astype(int)
                correct = hits(images[shown], asked[shown, 0], asked[shown, 1], judge)["both"]
                grids[name] = (images[shown], [captions[i] for i in shown], correct)
    for group, split in {"seen": "test", "unseen": "unseen"}.items():
        real = ceiling(data.source(config.data, split), judge, config.eval.num_samples)
        rows[f"ceiling: real renders, {group}"] = {"split": split} | real
    rows["chance"] = chance(len(words.objects), len(words.backgrounds))
    return rows, speed, grids, {label: np.concatenate(images) for label, images in drawn.items()}


def _fidelity(config: ConfigDict, judge: Recogniser, drawn: dict[str, np.ndarray]) -> dict[str, dict]:
    """Rows of distances to held-out renders, half of seen and half of unseen combinations as the pictures are, with as
    many other renders as the floor."""
    sources, count = [data.source(config.data, split) for split in ("test", "unseen")], 2 * config.eval.num_samples
    reference = judge.features(renders(sources, REFERENCE, first=count))
    rows = {label: fidelity(images, reference, judge) for label, images in drawn.items()}
    return rows | {"floor: other real renders": fidelity(renders(sources, count), reference, judge)}


def _bits_per_dim(pipeline: Pipeline, seed: int) -> dict[str, dict]:
    """The full bound (Eq. 4) on held-out images, of the trained process and with the adapter switched off."""
    task, config = pipeline.task, pipeline.config
    split, source = data.held_out(config.data)
    count = min(config.eval.bpd_images, len(source))
    batches = data.build(
        config.data,
        split,
        batch_size=min(config.sample.batch_size, count),
        seed=seed,
        process_index=0,
        process_count=1,
        from_records=task.parts.condition.from_records,
        shuffle=False,
        records=source,
        indices=data.chosen(len(source), count, config.data.seed),
    )
    # Whole batches only: one compilation, and no image twice.
    batches = list(itertools.islice(batches, max(1, count // config.sample.batch_size)))

    num_t, levels, dequantize = config.eval.bpd_timesteps or None, task.parts.levels, config.eval.bpd_dequantize

    def bound(params: Params, frozen: Params, batch: dict, key: jax.Array, with_adapter: bool):
        context, key = task.encode(params, frozen, batch), jax.random.wrap_key_data(key)
        f = task.denoiser(params, context)
        b = task.shift(params, frozen, context) if with_adapter else None
        s, how = task.schedule_of(params), dict(num_t=num_t, bins=levels, dequantize=dequantize)
        return bits_per_dim(f, b, s, batch["image"], key, variance=task.variance_of(params), **how)

    rows = {}
    for label, with_adapter in {"adapter on": True, "adapter off": False}.items():
        if with_adapter and task.adapter is None:
            continue
        run = jax.jit(partial(bound, with_adapter=with_adapter))
        keys = jax.random.split(jax.random.key(seed), len(batches))
        parts = [
            jax.tree.map(gather, run(pipeline.params, pipeline.frozen, pipeline.put(batch), np.asarray(key)))
            for batch, key in zip(batches, jax.random.key_data(keys), strict=True)
        ]
        joined = join(parts)
        terms = ("mean", "stderr", "prior", "reconstruction", "diffusion")
        rows[label] = {name: float(getattr(joined, name)) for name in terms}
        rows[label] |= {"split": split, "images": len(joined.per_image)}
    return rows


def _print(figures: dict[str, Any]) -> None:
    """The table, for a terminal."""
    for name, row in figures.get("alignment", {}).items():
        cells = "  ".join(f"{m} {100 * row[m]:5.1f} %" for m in (*MEASURES, "iou") if m in row)
        count = f"  (n = {row['n']})" if "n" in row else ""
        print(f"{name:40s} {cells}{count}")
    for name, row in figures.get("judge_features", {}).items():
        shares = f"precision {row['precision']:.2f}  recall {row['recall']:.2f}  (n = {row['n']})"
        print(f"{'judge Frechet distance, ' + name:40s} {row['frechet']:.3g}  {shares}")
    for name, row in figures.get("bits_per_dim", {}).items():
        measured = f"{row['mean']:.3f} +- {row['stderr']:.3f}  ({row['images']} of {row['split']})"
        print(f"{'bits per dimension, ' + name:40s} {measured}")
    for name, value in figures["samples_per_second"].items():
        print(f"{'samples per second, ' + name:40s} {value:.1f}")
