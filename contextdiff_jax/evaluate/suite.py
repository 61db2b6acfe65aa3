"""The evaluation of a trained run: alignment, distances, bits per dimension and speed, into eval.json and reports."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from contextdiff_jax import __version__, data
from contextdiff_jax.evaluate.alignment import MEASURES, counted
from contextdiff_jax.evaluate.bpd import BitsPerDim, bits_per_dim, first, join
from contextdiff_jax.evaluate.conditions import judge_of, judging_of
from contextdiff_jax.evaluate.distances import Measured, say_what_will_be_refused
from contextdiff_jax.evaluate.feature_spaces import open_space
from contextdiff_jax.evaluate.groups import Judging, Seen, draw, settings_of
from contextdiff_jax.evaluate.kept import write_kept
from contextdiff_jax.evaluate.measure import check_names, cut_captions
from contextdiff_jax.evaluate.metrics.base import shown
from contextdiff_jax.evaluate.report import write_report
from contextdiff_jax.evaluate.unfinished import Batches, Journal
from contextdiff_jax.files import write_json
from contextdiff_jax.pipeline import Pipeline
from contextdiff_jax.progress import Progress
from contextdiff_jax.runtime import here
from contextdiff_jax.tasks.records import same_held_out
from contextdiff_jax.training.distributed import is_primary
from contextdiff_jax.training.integrity import fingerprints
from contextdiff_jax.training.sharding import gather
from contextdiff_jax.types import Array, Batch, Params

KEPT = "eval"  # folder of pictures and marks, beside eval.json
UNFINISHED = "unfinished.npz"  # in that folder, of an evaluation that is under way or was cut off


def evaluate_run(pipeline: Pipeline, out: Path, seed: int = 0) -> dict[str, Any]:
    """Evaluates the model and writes eval.json and report.png into `out`, and pictures and marks into its `eval`.

    Every picture is drawn once, and each metric takes in the stream. What stays in memory is the few pictures that
    reports show, and of each of the others its marks and, once for all metrics of a space, its features. An evaluation
    that was cut off goes on where it was, and gives the same figures.

    Args:
        pipeline: the trained model; its config says how much to evaluate.
        out: folder for the files.
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
        "sample": config.sample.to_dict(),
        "eval": config.eval.to_dict(),
        "hardware": hardware(),
    }
    judge = judge_of(config)
    judging = judging_of(pipeline, judge, out)
    spaces = [open_space(spec) for spec in config.eval.features]
    check_names(spaces)
    measured = Measured(config, judge, spaces)
    if judging.judged_by:
        figures["judge"] = dict(judging.judged_by)
    if judging.asked_for:
        figures["asked_for"] = dict(judging.asked_for)
    count = sum(len(group.records) for group in judging.groups)
    if is_primary():
        say_what_will_be_refused(spaces, measured.references, count)
    bounded = bool(config.eval.bpd_images and config.space.kind == "pixels") and (
        config.loss.objective in ("nelbo", "posterior") or config.eval.bpd_always
    )
    journal = _journal(pipeline, judging, measured, out, seed, bounded)
    seen: list[Seen] = []
    rows, figures["samples_per_second"] = {}, {}
    for setting, options in settings_of(pipeline).items():
        metrics = measured.start(setting or "samples", count)
        found, speed = draw(pipeline, judging, setting, options, seed, metrics, journal)
        figures["samples_per_second"][setting or "samples"] = speed
        seen += [kept for kept, _ in found]
        rows |= {kept.name: row for kept, row in found if row is not None}
    if rows:
        figures["alignment"] = rows | dict(judging.bounds)
    figures |= measured.figures()
    per_image: dict[str, np.ndarray] = {}
    if bounded:
        figures["bits_per_dim"], per_image = _bits_per_dim(pipeline, seed, journal)
    if is_primary():
        _print(figures)
        keep(out / "eval.json", partial(write_json, figures))
        keep(out / KEPT, partial(write_kept, seen, per_image, pipeline.step, seed))
        keep(out / "report.png", partial(write_report, figures, _grids(seen)))
    journal.end()
    return figures


def _journal(
    pipeline: Pipeline, judging: Judging, measured: Measured, out: Path, seed: int, bounded: bool
) -> Journal:
    """What an evaluation of the same model, settings, judge, records and machine has left in `out`, if it was cut
    off."""
    about = {
        "version": __version__,
        "step": pipeline.step,
        "seed": seed,
        "hardware": hardware(),
        "config": pipeline.config.to_dict(),
        "parameters": fingerprints({"trained": pipeline.params, "frozen": pipeline.frozen}),
        "asked": [group.records for group in judging.groups],
        "judge": [judging.judged_by, judging.asked_for, judging.bounds],
        "compared_with": measured.compared_with,
        "bound_of": same_held_out(pipeline.config.data)[1].identity if bounded else "",
    }
    about = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()
    journal = Journal(out / KEPT / UNFINISHED, about)
    if journal.found and is_primary():
        print(f"going on with the evaluation that was cut off: {out / KEPT / UNFINISHED}")
    return journal


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


def _grids(seen: Sequence[Seen]) -> dict[str, tuple]:
    """The pictures as trained, as `write_report` takes them."""
    grids = {}
    for kept in seen:
        if kept.setting in ("", "adapter on"):
            verdicts = kept.verdicts
            grids[kept.name] = (kept.images, kept.captions) + (() if verdicts is None else (verdicts,))
    return grids


def _bits_per_dim(pipeline: Pipeline, seed: int, journal: Journal) -> tuple[dict[str, dict], dict[str, np.ndarray]]:
    """The full bound (Eq. 4) on held-out images, of the trained process and with the adapter switched off; rows, and
    the bits of each image."""
    task, config = pipeline.task, pipeline.config
    split, source = same_held_out(config.data)
    count = min(config.eval.bpd_images, len(source))
    batch_size = min(config.sample.batch_size, count)  # each batch has a key of its own
    chosen = data.chosen(len(source), count, config.data.seed)
    batches = data.build(
        config.data,
        split,
        batch_size=batch_size,
        seed=seed,
        process_index=0,
        process_count=1,
        from_records=task.parts.condition.from_records,
        repeat=False,
        shuffle=False,
        records=source,
        # Whole batches, for one compilation: what fills the last one up is not counted.
        indices=[*chosen, *chosen[: -count % batch_size]],
    )
    batches = list(batches)

    num_t, dequantize = config.eval.bpd_timesteps or None, config.eval.bpd_dequantize
    protocol = {"chosen": count, "batch_size": batch_size, "timesteps": num_t or "all", "dequantize": dequantize}

    rows, per_image = {}, {}
    for label, with_adapter in {"adapter on": True, "adapter off": False}.items():
        if with_adapter and task.adapter is None:
            continue
        run, measured = _bound(pipeline, with_adapter, num_t, dequantize), Batches()
        keys = jax.random.key_data(jax.random.split(jax.random.key(seed), len(batches)))
        journal.follow(f"bits per dimension/{label}", measured)
        done = len(measured.kept)
        with Progress(f"bits per dimension, {label}", len(batches), "batch", done, before="compiling") as progress:
            for batch, key in list(zip(batches, keys, strict=True))[done:]:
                bits = jax.tree.map(gather, run(pipeline.params, pipeline.frozen, pipeline.put(batch), np.asarray(key)))
                bits = first(bits, count - batch_size * len(measured.kept))
                measured.kept.append({name: np.asarray(v) for name, v in vars(bits).items() if v is not None})
                progress.update()
                journal.tick()
        joined = join([BitsPerDim(**{"monte_carlo": None, **part}) for part in measured.kept])
        terms = ("mean", "stderr", "prior", "reconstruction", "diffusion")
        rows[label] = {name: float(getattr(joined, name)) for name in terms}
        rows[label] |= {"split": split, "images": len(joined.per_image), "protocol": protocol}
        per_image[label] = np.asarray(joined.per_image)
    return rows, per_image


@lru_cache(maxsize=2)  # of one pipeline, with its adapter and without: evaluated again it is not compiled again
def _bound(pipeline: Pipeline, with_adapter: bool, num_t: int | None, dequantize: bool) -> Callable[..., BitsPerDim]:
    """The jitted (params, frozen, batch, key data) -> bits per dimension of the batch's images."""
    task = pipeline.task

    def bound(params: Params, frozen: Params, batch: Batch, key: Array) -> BitsPerDim:
        context, key = task.encode(params, frozen, batch), jax.random.wrap_key_data(key)
        f = task.denoiser(params, context)
        b = task.shift(params, frozen, context) if with_adapter else None
        s, how = task.schedule_of(params), dict(num_t=num_t, bins=task.parts.levels, dequantize=dequantize)
        return bits_per_dim(f, b, s, batch["image"], key, variance=task.variance_of(params), **how)

    return jax.jit(bound)


def _print(figures: Mapping[str, Any]) -> None:
    """The table, for a terminal."""
    for name, row in figures.get("alignment", {}).items():
        cells = "  ".join(f"{m} {100 * row[m]:5.1f} %" for m in (*MEASURES, "iou") if m in row)
        count = f"  (n = {counted(row)})" if "n" in row else ""
        print(f"{name:40s} {cells}{count}")
    for name, row in figures.get("judge_features", {}).items():
        shares = f"precision {row['precision']:.2f}  recall {row['recall']:.2f}"
        counts = f"(n = {row['n']}, against {row['against']})"
        few = f"  TOO FEW: {row['too_few']}" if "too_few" in row else ""
        print(f"{'judge Frechet distance, ' + name:40s} {row['frechet']:.3g}  {shares}  {counts}{few}")
    for name, why in figures.get("judge_features_refused", {}).items():
        print(f"judge Frechet distance, {name} refused: {why}")
    for name, space in figures.get("spaces", {}).items():
        for setting in figures["samples_per_second"].keys() & space.keys():
            for metric, why in space[setting]["refused"].items():
                print(f"{name}, {setting}, {metric} refused: {why}")
            if cut := cut_captions(space[setting]["how"]):
                print(f"{name}, {setting}: {cut}")
            for metric, row in space[setting]["figures"].items():
                cells = "  ".join(f"{k} {v:.4g}" for k, (v, _) in shown(metric, row).items())
                print(f"{name + ', ' + setting:40s} {cells}  (n = {row['n']})")
    for name, row in figures.get("bits_per_dim", {}).items():
        measured = f"{row['mean']:.3f} +- {row['stderr']:.3f}  ({row['images']} of {row['split']})"
        print(f"{'bits per dimension, ' + name:40s} {measured}")
    for name, value in figures["samples_per_second"].items():
        print(f"{'samples per second, ' + name:40s} {value:.1f}")
