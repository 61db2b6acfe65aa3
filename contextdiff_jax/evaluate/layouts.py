"""Do the objects stand where they were asked for? Looked up in the asked boxes by the judge."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from contextdiff_jax.models.recogniser import Recogniser
from contextdiff_jax.pictures import to_uint8

MARGIN = 0.2  # shown around a box, as a share of its longer side: about as the judge saw objects when it was trained
_SHIFTS = np.linspace(-0.3, 0.3, 7)  # of a box that is slid, as shares of the picture's sides
_TOGETHER = 32  # pictures whose crops are judged at once: about a hundred each
Box = tuple[float, ...]
Layout = Sequence[tuple[int, Box]]


def layout_marks(images: np.ndarray, layouts: Sequence[Layout], judge: Recogniser) -> dict[str, np.ndarray]:
    """How far each picture keeps to its layout.

    Args:
        images: [N, H, W, 3], float in [-1, 1] or uint8.
        layouts: N sets of (object id, box as fractions of the sides).
        judge: names what a crop shows.

    Returns:
        object: share of the asked objects that the judge names in their box;
        iou: mean overlap of the asked box with the place where the judge is surest of the object, of those that `slid`
        gives: at most 0.3 of the sides away, the asked box itself where several are as sure. So an object that is
        elsewhere altogether has an overlap well above 0: compare with renders judged by other layouts;
        both [N], NaN where nothing was asked for.
    """
    marks = {name: np.full(len(layouts), np.nan) for name in ("object", "iou")}
    pictures, asked = to_uint8(np.asarray(images)), [i for i, layout in enumerate(layouts) if layout]
    for start in range(0, len(asked), _TOGETHER):
        rows = asked[start : start + _TOGETHER]
        found = _judged([pictures[i] for i in rows], [layouts[i] for i in rows], judge)
        for i, objects in zip(rows, found, strict=True):
            marks["object"][i], marks["iou"][i] = np.mean(objects, axis=0)
    return marks


def layout_figures(images: np.ndarray, layouts: Sequence[Layout], judge: Recogniser) -> dict[str, float | int]:
    """The means of `layout_marks` over pictures with their "*_stderr"; n: pictures that something was asked of;
    objects: how many in all."""
    figures: dict[str, float | int] = {}
    for name, column in layout_marks(images, layouts, judge).items():
        counted = column[~np.isnan(column)]
        figures[name] = float(np.mean(counted))
        figures[f"{name}_stderr"] = float(np.std(counted) / np.sqrt(max(1, len(counted))))
    return figures | {"n": sum(map(bool, layouts)), "objects": sum(len(layout) for layout in layouts)}


def _judged(
    pictures: Sequence[np.ndarray], layouts: Sequence[Layout], judge: Recogniser
) -> list[list[tuple[bool, float]]]:
    """For each object of each picture, whether it is named in its own box, and the overlap of that with the place where
    the judge is surest of it. All crops are judged together."""
    places = [[slid(box) for _, box in layout] for layout in layouts]
    shown = [
        crops(picture, [place for boxes in own for place in boxes], judge.config.image_size)
        for picture, own in zip(pictures, places, strict=True)
    ]
    chances, found, first = judge.chances(np.concatenate(shown)), [], 0
    for layout, own in zip(layouts, places, strict=True):
        found.append([])
        for (label, box), boxes in zip(layout, own, strict=True):
            of_object = chances[first : first + len(boxes)]
            surest = boxes[int(of_object[:, label].argmax())]
            found[-1].append((bool(of_object[0].argmax() == label), iou(surest, box)))
            first += len(boxes)
    return found


def slid(box: Box) -> list[Box]:
    """The box itself, first, and where a grid of 7 x 7 moves of up to 0.3 of the sides puts it within the picture."""
    x0, y0, x1, y1 = box
    moves = [(dx, dy) for dx in _SHIFTS for dy in _SHIFTS if (dx, dy) != (0, 0)]
    inside = [(dx, dy) for dx, dy in moves if x0 + dx >= 0 and x1 + dx <= 1 and y0 + dy >= 0 and y1 + dy <= 1]
    return [box] + [(x0 + dx, y0 + dy, x1 + dx, y1 + dy) for dx, dy in inside]


def crops(picture: np.ndarray, boxes: Sequence[Box], size: int) -> np.ndarray:
    """A square around each box with a margin, uint8 [N, size, size, 3]; beyond the picture its edge goes on.

    Args:
        picture: uint8 [H, W, 3].
        boxes: xyxy as fractions of the sides.
        size: of the crops, in pixels.
    """
    x0, y0, x1, y1 = (np.array(boxes) * np.tile(picture.shape[1::-1], 2)).T
    half, x, y = (0.5 + MARGIN) * np.maximum(x1 - x0, y1 - y0), (x0 + x1) / 2, (y0 + y1) / 2
    around = int(np.ceil(2 * half.max()))
    padded = Image.fromarray(np.pad(picture, ((around, around), (around, around), (0, 0)), mode="edge"))
    corners = np.stack([x - half, y - half, x + half, y + half], axis=1) + around
    cut = lambda box: np.asarray(padded.resize((size, size), Image.Resampling.BILINEAR, box=tuple(box)))
    return np.stack([cut(box) for box in corners.tolist()])


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    area = lambda box: (box[2] - box[0]) * (box[3] - box[1])
    return shared / (area(a) + area(b) - shared)
