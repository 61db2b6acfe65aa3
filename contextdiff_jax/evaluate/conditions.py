"""Classes and layouts: was drawn what was asked for? Rows of the table of alignment."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from contextdiff_jax import data
from contextdiff_jax.conditions.layout import in_words
from contextdiff_jax.evaluate.alignment import hits
from contextdiff_jax.evaluate.class_judge import ClassJudge, as_float
from contextdiff_jax.evaluate.layouts import layout_figures
from contextdiff_jax.models.recogniser import Recogniser
from contextdiff_jax.pipeline import Pipeline

GRID = 32  # pictures of each setting shown in the report
Rows = dict[str, dict[str, Any]]
Named = Callable[[np.ndarray, np.ndarray], np.ndarray]


def settings_of(pipeline: Pipeline) -> dict[str, dict[str, bool]]:
    """The trained process, and the same model with its adapter switched off."""
    return {"adapter on": {}, "adapter off": {"adapter": False}} if pipeline.task.adapter is not None else {"": {}}


def class_rows(
    pipeline: Pipeline, named: Named, seed: int, real: tuple[str, int]
) -> tuple[Rows, dict[str, float], dict]:
    """How often the judge names the class that was asked for.

    Args:
        pipeline: the trained model.
        named: (images, labels) -> whether the judge names the class, [N]; see `by_recogniser` and `by_classifier`.
        seed: of the samples.
        real: what held-out images are called, and how many of them are judged at the most.

    Returns:
        rows {"object", "object_stderr", "n"}, pictures per second, grids as `write_report` takes them.
    """
    config, names = pipeline.config, pipeline.task.parts.condition.names
    asked = np.arange(config.eval.num_samples) % len(names)
    rows, speed, grids = {}, {}, {}
    for label, options in settings_of(pipeline).items():
        images, speed[label or "plain"] = _timed(pipeline, [names[i] for i in asked], seed, options)
        right = named(images, asked)
        rows[f"classes{', ' * bool(label)}{label}"] = share(right)
        if not options:
            grids["classes"] = (images[:GRID], [names[i] for i in asked[:GRID]], right[:GRID])
    what, limit = real
    source = data.held_out(config.data)[1]
    records = [source[i] for i in data.chosen(len(source), limit, config.data.seed)]
    images, labels = as_float(np.stack([r["image"] for r in records]), source.levels), [r["label"] for r in records]
    rows[f"ceiling: real {what}"] = share(named(images, np.array(labels)))
    rows["chance"] = {"object": 1 / len(names)}
    return rows, speed, grids


def by_recogniser(judge: Recogniser) -> Named:
    """Whether the judge of the embedded scenes names the object; the background is left open."""
    return lambda images, labels: hits(images, labels, np.zeros(len(labels), int), judge)["object"]


def by_classifier(judge: ClassJudge) -> Named:
    """Whether a classifier of the data's own classes names the class."""
    return lambda images, labels: judge.predict(images) == labels


def layout_rows(pipeline: Pipeline, judge: Recogniser, seed: int) -> tuple[Rows, dict[str, float], dict]:
    """How often the judge names the asked object in its box, and how well the box is kept.

    The layouts are those of held-out renders, whose own score is the ceiling; the floor is these renders judged by one
    another's layouts.

    Returns:
        rows of `layout_figures`, pictures per second, grids as `write_report` takes them.
    """
    config, parts = pipeline.config, pipeline.task.parts
    source = data.source(config.data, "test")
    records = [source[i] for i in range(min(config.eval.num_samples, len(source)))]
    asked = parts.prompts(records)
    ids = [[(parts.condition.names.index(name), box) for name, box in layout] for layout in asked]
    rows, speed, grids = {}, {}, {}
    for label, options in settings_of(pipeline).items():
        images, speed[label or "plain"] = _timed(pipeline, asked, seed, options)
        rows[f"layouts{', ' * bool(label)}{label}"] = layout_figures(images, ids, judge)
        if not options:
            grids["layouts, boxes as asked for"] = (
                with_boxes(images[:GRID], ids[:GRID]),
                [in_words(layout) for layout in asked[:GRID]],
            )
    renders = np.stack([record["image"] for record in records])
    rows["ceiling: real renders"] = layout_figures(renders, ids, judge)
    rows["floor: renders of other layouts"] = layout_figures(renders, ids[1:] + ids[:1], judge)
    return rows, speed, grids


def with_boxes(images: np.ndarray, layouts: list) -> np.ndarray:
    """Pictures [N, H, W, 3] in [-1, 1] beside themselves with the asked boxes drawn, [N, H, 2 W, 3]."""
    drawn = np.array(images)
    height, width = drawn.shape[1:3]
    for picture, layout in zip(drawn, layouts, strict=True):
        for _, box in layout:
            x0, y0, x1, y1 = (np.array(box) * [width, height, width, height] - [0, 0, 1, 1]).round().astype(int)
            picture[[y0, y1], x0 : x1 + 1] = picture[y0 : y1 + 1, [x0, x1]] = (1.0, -1.0, 1.0)
    return np.concatenate([images, drawn], axis=2)


def share(right: np.ndarray) -> dict[str, float | int]:
    """The share of hits with its binomial standard error."""
    p = float(np.mean(right))
    return {"object": p, "object_stderr": float(np.sqrt(p * (1 - p) / len(right))), "n": len(right)}


def _timed(pipeline: Pipeline, asked: list, seed: int, options: dict[str, bool]) -> tuple[np.ndarray, float]:
    """Pictures and pictures per second, compilation included."""
    start = time.perf_counter()
    images = pipeline.sample_arrays(asked, key=seed, **options)
    return images, len(asked) / (time.perf_counter() - start)
