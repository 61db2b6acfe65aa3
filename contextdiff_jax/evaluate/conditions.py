"""What is asked of a model in its evaluation, by kind of condition, and who judges the answers."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from contextdiff_jax import data
from contextdiff_jax.conditions.layout import in_words
from contextdiff_jax.data.base import ImageSource
from contextdiff_jax.data.vocabulary import captions_of_one, labels_are_captions
from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate import class_judge
from contextdiff_jax.evaluate.alignment import MEASURES, ceiling, chance, hits
from contextdiff_jax.evaluate.groups import SHOWN, Group, Judging
from contextdiff_jax.evaluate.layouts import layout_figures, layout_marks
from contextdiff_jax.models.recogniser import Recogniser, load_recogniser
from contextdiff_jax.pipeline import Pipeline
from contextdiff_jax.tasks.records import held_out, same_held_out
from contextdiff_jax.training import distributed

REAL_IMAGES = 10_000  # of the held-out ones, judged at the most: the ceiling of a classifier
Named = Callable[[np.ndarray, np.ndarray], np.ndarray]  # images, labels -> whether each is right, [N]


def judge_of(config: ConfigDict) -> Recogniser | None:
    """The recogniser of an openmoji preset, the one named or the shipped one; None where the model takes no prompts, or
    there is no recogniser.

    Raises:
        UserError: one is named that cannot be read, or whose kind of scene the model is not asked for.
    """
    preset, kind = config.data.preset, config.condition.kind
    if config.data.source != "openmoji" or kind == "none":
        return None
    alone = captions_of_one(preset)
    if config.eval.recogniser and not _by_own_classifier(config):
        if kind == "text" and not alone:
            raise UserError(
                f"config.eval.recogniser={config.eval.recogniser!r} cannot act: all captions of "
                f"config.data.preset={preset!r} name two objects, and a recogniser names one; leave it empty"
            )
        return load_recogniser(preset, config.eval.recogniser)
    # The shipped one knows the demo's objects; of a picture of two it names one only where boxes say which.
    if kind == "text" and not alone:
        print(f"alignment is left out: all captions of preset {preset!r} name two objects, and a recogniser names one")
        return None
    if preset not in data.OF_THE_DEMO or (kind != "layout" and not alone):
        print(
            f"alignment is left out: no recogniser ships for preset {preset!r}; "
            "train one with configs/recogniser.py and name its export in --config.eval.recogniser"
        )
        return None
    return load_recogniser(preset)


def check_judge(config: ConfigDict) -> None:
    """Reads the judge that `eval.recogniser` names, if it does.

    Raises:
        UserError: it is not there, damaged, or of other classes or images.
    """
    if not config.eval.recogniser:
        return
    if _by_own_classifier(config):
        class_judge.judge_of(config, Path(config.eval.recogniser))
    else:
        judge_of(config)


def check_pictures(config: ConfigDict) -> None:
    """Opens the held-out pictures of `data`, as the evaluation will; stored latents do without, if nothing is measured
    against pictures.

    Raises:
        UserError: they are not there, or cannot be read.
    """
    if _stored(config) and not config.eval.features and not _by_own_classifier(config):
        return
    try:
        data.held_out(config.data)
    except UserError as error:
        raise UserError(
            f"the held-out pictures, which the evaluation needs, cannot be had: {error}; or train without the "
            "evaluation, by --config.eval.after_training=False"
        ) from error


def _stored(config: ConfigDict) -> bool:
    """Whether the model is trained on stored latents, for which no pictures need to be there."""
    return config.space.kind == "latents" and config.space.precomputed


def _asked_for(pipeline: Pipeline) -> tuple[str, ImageSource]:
    """(split, records) of the held-out prompts: of the pictures, or where those are gone of the latents made of them.

    Raises:
        UserError: there are neither.
    """
    config, parts = pipeline.config, pipeline.task.parts
    try:
        return same_held_out(config.data)
    except UserError as error:
        if not _stored(config):
            raise
        try:
            latents = distributed.the_same(lambda: held_out(config, parts), lambda found: found[1].identity)
        except UserError:
            raise error from None
        if distributed.is_primary():
            print(f"the prompts are those of {config.space.latents}, without the pictures: {error}")
        return latents


def _by_own_classifier(config: ConfigDict) -> bool:
    """Whether a classifier of the data's own classes judges, see `class_judge`."""
    return config.condition.kind == "class" and bool(config.eval.judge_steps)


def asks_combinations(config: ConfigDict, judge: Recogniser | None) -> bool:
    """Whether objects on backgrounds are asked for, those seen in training and those not: by texts, and by classes that
    say both."""
    if judge is None or _by_own_classifier(config):
        return False
    kind = config.condition.kind
    return kind == "text" or (kind == "class" and labels_are_captions(config.data.preset))


def judging_of(pipeline: Pipeline, judge: Recogniser | None, out: Path) -> Judging:
    """Groups of prompts and their judge, for the kind of condition that the model has.

    Args:
        pipeline: the model.
        judge: from `judge_of`.
        out: where a classifier of the data's own classes is kept, or trained to, where the config asks for one.
    """
    config = pipeline.config
    if _by_own_classifier(config):
        judge = class_judge.judge_of(config, out / "judge")
        judging = classes(pipeline, by_classifier(judge), ("images", REAL_IMAGES))
    elif judge is None:
        return unjudged(pipeline)
    elif config.condition.kind == "layout":
        judging = layouts(pipeline, judge)
    elif asks_combinations(config, judge):
        judging = combinations(pipeline, judge)
    else:
        judging = classes(pipeline, by_recogniser(judge), ("renders", config.eval.num_samples))
    return dataclasses.replace(judging, judged_by=judge.about())


def by_recogniser(judge: Recogniser) -> Named:
    """Whether the judge of the embedded scenes names the object; the background is left open."""
    return lambda images, labels: hits(images, labels, np.zeros(len(labels), int), judge)["object"]


def by_classifier(judge: class_judge.ClassJudge) -> Named:
    """Whether a classifier of the data's own classes names the class."""
    return lambda images, labels: judge.predict(images) == labels


def spread(combinations: Sequence, count: int) -> list:
    """`count` of the combinations: evenly spaced where there are more, all of them in turn where there are fewer."""
    if len(combinations) >= count:
        return [combinations[i] for i in np.linspace(0, len(combinations) - 1, count).astype(int)]
    return list(itertools.islice(itertools.cycle(combinations), count))


def combinations(pipeline: Pipeline, judge: Recogniser) -> Judging:
    """Objects on backgrounds: the combinations that were seen in training, and those that were not."""
    config, words = pipeline.config, data.vocabulary(pipeline.config.data.preset)
    groups, bounds = [], {}
    for group, pairs in {"seen": words.seen, "unseen": tuple(sorted(words.unseen))}.items():
        asked = np.array(spread(pairs, config.eval.num_samples))
        captions = [words.caption(int(o), int(b)) for o, b in asked]
        ids = dict(object=asked[:, 0].tolist(), background=asked[:, 1].tolist())
        groups.append(Group.of(f"{group} combinations", captions, captions, **ids))
        split = {"seen": "test", "unseen": "unseen"}[group]
        real = ceiling(data.source(config.data, split), judge, config.eval.num_samples)
        bounds[f"ceiling: real renders, {group}"] = {"split": split} | real
    bounds["chance"] = chance(len(words.objects), len(words.backgrounds))
    ids_of = lambda records: ([r["object"] for r in records], [r["background"] for r in records])
    return Judging(groups, lambda images, records: hits(images, *ids_of(records), judge), MEASURES, bounds)


def classes(pipeline: Pipeline, named: Named, real: tuple[str, int]) -> Judging:
    """Whether the judge names the class that was asked for.

    Args:
        pipeline: the model.
        named: (images, labels) -> whether the judge names the class, [N]; see `by_recogniser` and `by_classifier`.
        real: what held-out images are called, and how many of them are judged at the most.
    """
    config, names = pipeline.config, pipeline.task.parts.condition.names
    asked = np.array(spread(range(len(names)), config.eval.num_samples))
    words = [names[i] for i in asked]
    what, limit = real
    split, source = same_held_out(config.data)
    rows, right = data.chosen(len(source), limit, config.data.seed), []
    for start in range(0, len(rows), class_judge.CHUNK):  # large pictures do not fit into memory all at once
        records = [source[i] for i in rows[start : start + class_judge.CHUNK]]
        images = class_judge.as_float(np.stack([r["image"] for r in records]), source.levels)
        right.append(named(images, np.array([r["label"] for r in records])))
    right = np.concatenate(right)
    return Judging(
        [Group.of("classes", words, words, object=asked.tolist())],
        lambda images, records: {"object": named(images, np.array([r["object"] for r in records]))},
        ("object",),
        {f"ceiling: real {what}": {"split": split} | share(right), "chance": {"object": 1 / len(names)}},
    )


def layouts(pipeline: Pipeline, judge: Recogniser) -> Judging:
    """Whether the judge names the asked object in its box, and how well the box is kept.

    The layouts are those of held-out renders, whose own score is the ceiling; the floor is these renders judged by one
    another's layouts.
    """
    config, parts = pipeline.config, pipeline.task.parts
    of_split = {"split": "test"}
    source = data.source(config.data, of_split["split"])
    records = [source[i] for i in range(min(config.eval.num_samples, len(source)))]
    asked = parts.prompts(records)
    ids = [[(parts.condition.names.index(name), box) for name, box in layout] for layout in asked]
    renders = np.stack([record["image"] for record in records])
    return Judging(
        [Group.of("layouts", asked, [in_words(layout) for layout in asked], layout=ids)],
        lambda images, records: layout_marks(images, [r["layout"] for r in records], judge),
        ("object", "iou"),
        {
            "ceiling: real renders": of_split | layout_figures(renders, ids, judge),
            "floor: renders of other layouts": of_split | layout_figures(renders, ids[1:] + ids[:1], judge),
        },
        counts=lambda group: {"objects": sum(len(record["layout"]) for record in group.records)},
        shown=lambda images, places: with_boxes(images, [ids[i] for i in places]),
    )


def unjudged(pipeline: Pipeline) -> Judging:
    """Held-out prompts that nobody judges, as many as feature spaces ask for or reports show."""
    parts, config = pipeline.task.parts, pipeline.config
    count = config.eval.num_samples if config.eval.features else min(SHOWN, config.eval.num_samples)
    split, source = _asked_for(pipeline)
    indices = data.chosen(len(source), count, config.data.seed)
    asked_for = {"split": split, "n": len(indices), "of": len(source)}
    if not parts.condition.takes_prompts:
        return Judging([Group.of("samples", count, [f"{i}" for i in range(count)])], asked_for=asked_for | {"n": count})
    asked = parts.prompts([source[i] for i in indices])
    is_layout = config.condition.kind == "layout"
    boxed = lambda images, places: with_boxes(images, [asked[i] for i in places])
    groups = [Group.of("held-out prompts", asked, parts.captions(asked))]
    return Judging(groups, asked_for=asked_for) if not is_layout else Judging(groups, shown=boxed, asked_for=asked_for)


def with_boxes(images: np.ndarray, layouts: list) -> np.ndarray:
    """Pictures uint8 [N, H, W, 3] beside themselves with the asked boxes drawn, [N, H, 2 W, 3]."""
    drawn = np.array(images)
    height, width = drawn.shape[1:3]
    for picture, layout in zip(drawn, layouts, strict=True):
        for _, box in layout:
            corners = (np.array(box) * [width, height, width, height] - [0, 0, 1, 1]).round().astype(int)
            x0, y0, x1, y1 = np.clip(corners, 0, [width - 1, height - 1] * 2)
            x1, y1 = max(x0, x1), max(y0, y1)  # a box of less than a pixel
            picture[[y0, y1], x0 : x1 + 1] = picture[y0 : y1 + 1, [x0, x1]] = (255, 0, 255)
    return np.concatenate([images, drawn], axis=2)


def share(right: np.ndarray) -> dict[str, float | int]:
    """The share of hits with its binomial standard error."""
    p = float(np.mean(right))
    return {"object": p, "object_stderr": float(np.sqrt(p * (1 - p) / len(right))), "n": len(right)}
