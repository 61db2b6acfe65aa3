"""Does the picture show what the caption says? Counted by the recogniser."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from contextdiff_jax.data import chosen
from contextdiff_jax.errors import UserError

MEASURES = ("object", "background", "both")


class Judge(Protocol):
    """What alignment needs of a recogniser."""

    def predict(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...


def hits(images: np.ndarray, objects: Sequence[int], backgrounds: Sequence[int], recogniser: Judge) -> dict:
    """Per image, whether object, background and both are recognised: {measure: bool [N]}.

    Raises:
        UserError: the ids do not number as many as the images.
    """
    objects, backgrounds = np.asarray(objects), np.asarray(backgrounds)
    if not len(images) == len(objects) == len(backgrounds):
        raise UserError(
            f"{len(images)} images with {len(objects)} objects and {len(backgrounds)} backgrounds; "
            "give one of each per image"
        )
    found_objects, found_backgrounds = recogniser.predict(images)
    right_object, right_background = found_objects == objects, found_backgrounds == backgrounds
    return dict(object=right_object, background=right_background, both=right_object & right_background)


def counted(row: Mapping[str, Any]) -> str:
    """How many pictures a row of figures is of, and of which split where they are the data's own: "1,000 of test"."""
    if row.get("n") is None:
        return ""
    return f"{row['n']:,}" + (f" of {row['split']}" if "split" in row else "")


def summarise(hit: Mapping[str, np.ndarray]) -> dict[str, float | int]:
    """Shares of `hits` with binomial standard errors sqrt(p (1 - p) / n); an empty group has only n = 0."""
    n = len(hit["both"])
    figures: dict[str, float | int] = {"n": n}
    for name in MEASURES if n else ():
        p = float(np.mean(hit[name]))
        figures[name] = p
        figures[f"{name}_stderr"] = float(np.sqrt(p * (1.0 - p) / n))
    return figures


def alignment(
    images: np.ndarray, objects: Sequence[int], backgrounds: Sequence[int], recogniser: Judge
) -> dict:
    """Share of images on which the recogniser finds what was asked for.

    Args:
        images: [N, H, W, 3], float in [-1, 1] or uint8.
        objects: asked object ids [N].
        backgrounds: asked background ids [N].
        recogniser: the judge.

    Returns:
        {"object", "background", "both"} in 0..1, each with its "*_stderr", and "n".
    """
    return summarise(hits(images, objects, backgrounds, recogniser))


def alignment_by_group(
    images: np.ndarray,
    objects: Sequence[int],
    backgrounds: Sequence[int],
    recogniser: Judge,
    unseen: Collection[tuple[int, int]],
) -> dict[str, dict]:
    """`alignment` of the combinations seen in training and of the unseen ones: {"seen": ..., "unseen": ...}.

    Args:
        unseen: the (object id, background id) pairs that were never trained on (`Vocabulary.unseen`).
    """
    hit = hits(images, objects, backgrounds, recogniser)
    asked = zip(objects, backgrounds, strict=True)
    is_unseen = np.array([(int(o), int(b)) in unseen for o, b in asked], dtype=bool)
    groups = {"seen": ~is_unseen, "unseen": is_unseen}
    return {name: summarise({k: v[rows] for k, v in hit.items()}) for name, rows in groups.items()}


def ceiling(source: Sequence[dict], recogniser: Judge, count: int) -> dict:
    """`alignment` of `count` real renders, spread over a data source: a perfect generator's score."""
    records = [source[i] for i in chosen(len(source), count, seed=0)]
    images, objects, backgrounds = (
        np.stack([r[k] for r in records]) for k in ("image", "object", "background")
    )
    return alignment(images, objects, backgrounds, recogniser)


def chance(num_objects: int, num_backgrounds: int) -> dict:
    """What guessing scores when every combination is asked for equally often."""
    num_pairs = num_objects * num_backgrounds
    return dict(object=1 / num_objects, background=1 / num_backgrounds, both=1 / num_pairs)
