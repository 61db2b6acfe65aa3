"""Do the objects stand where they were asked for? Looked up in the asked boxes by the judge."""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from PIL import Image

from contextdiff_jax.models.recogniser import Recogniser
from contextdiff_jax.pictures import to_uint8

MARGIN = 0.2  # shown around a box, as a share of its longer side: about as the judge saw objects when it was trained
_SHIFTS = np.linspace(-0.3, 0.3, 7)  # of a box that is slid, as shares of the picture's sides
Box = tuple[float, ...]
Layout = Sequence[tuple[int, Box]]


def namer(judge: Recogniser, chunk: int = 128) -> Callable[[np.ndarray], np.ndarray]:
    """From crops uint8 [N, size, size, 3] to the probability of each object, [N, K], by the judge."""
    net = judge.config.net()
    run = jax.jit(lambda params, images: jax.nn.softmax(net.apply({"params": params}, images / 127.5 - 1.0)[0]))

    def probabilities(crops: np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, len(crops), chunk):
            part = crops[start : start + chunk].astype(np.float32)
            # Always whole chunks: one compilation for every N.
            padding = np.zeros((chunk - len(part), *part.shape[1:]), part.dtype)
            parts.append(np.asarray(run(judge.params, np.concatenate([part, padding])))[: len(part)])
        return np.concatenate(parts)

    return probabilities


def layout_marks(images: np.ndarray, layouts: Sequence[Layout], judge: Recogniser) -> dict[str, np.ndarray]:
    """How far each picture keeps to its layout.

    Args:
        images: [N, H, W, 3], float in [-1, 1] or uint8.
        layouts: N sets of (object id, box as fractions of the sides).
        judge: names what a crop shows.

    Returns:
        object: share of the asked objects that the judge names in their box;
        iou: mean overlap of the asked box with the place where, of all boxes of its size slid over the picture, the
        judge is surest of the object; both [N], NaN where nothing was asked for.
    """
    marks = {name: np.full(len(layouts), np.nan) for name in ("object", "iou")}
    name, size = namer(judge), judge.config.image_size
    for i, (image, layout) in enumerate(zip(to_uint8(np.asarray(images)), layouts, strict=True)):
        if layout:
            named, found = _judged(Image.fromarray(image), layout, name, size)
            marks["object"][i] = np.mean(named)
            marks["iou"][i] = np.mean([iou(place, box) for place, (_, box) in zip(found, layout, strict=True)])
    return marks


def layout_figures(images: np.ndarray, layouts: Sequence[Layout], judge: Recogniser) -> dict[str, float | int]:
    """The means of `layout_marks` over pictures with their "*_stderr"; n: objects."""
    figures = {}
    for name, column in layout_marks(images, layouts, judge).items():
        counted = column[~np.isnan(column)]
        figures[name] = float(np.mean(counted))
        figures[f"{name}_stderr"] = float(np.std(counted) / np.sqrt(max(1, len(counted))))
    return figures | {"n": sum(len(layout) for layout in layouts)}


def _judged(image: Image.Image, layout: Layout, name: Callable, size: int) -> tuple[list[bool], list[Box]]:
    """Whether each object is named in its own box, and where the judge is surest of it."""
    places = [slid(box) for _, box in layout]
    crops = np.stack([crop(image, place, size) for boxes in places for place in boxes])
    chances = np.split(name(crops), np.cumsum([len(boxes) for boxes in places])[:-1])
    named = [bool(c[0].argmax() == o) for c, (o, _) in zip(chances, layout, strict=True)]
    found = [boxes[int(c[:, o].argmax())] for boxes, c, (o, _) in zip(places, chances, layout, strict=True)]
    return named, found


def slid(box: Box) -> list[Box]:
    """The box itself, first, and where it can be slid to within the picture."""
    x0, y0, x1, y1 = box
    moves = [(dx, dy) for dx in _SHIFTS for dy in _SHIFTS if (dx, dy) != (0, 0)]
    inside = [(dx, dy) for dx, dy in moves if x0 + dx >= 0 and x1 + dx <= 1 and y0 + dy >= 0 and y1 + dy <= 1]
    return [box] + [(x0 + dx, y0 + dy, x1 + dx, y1 + dy) for dx, dy in inside]


def crop(image: Image.Image, box: Box, size: int) -> np.ndarray:
    """A square around a box with a margin, uint8 [size, size, 3]; beyond the picture its edge goes on."""
    width, height = image.size
    x0, y0, x1, y1 = box[0] * width, box[1] * height, box[2] * width, box[3] * height
    half = (0.5 + MARGIN) * max(x1 - x0, y1 - y0)
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    around = int(np.ceil(2 * half))
    padded = Image.fromarray(np.pad(np.asarray(image), ((around, around), (around, around), (0, 0)), mode="edge"))
    corners = (x - half + around, y - half + around, x + half + around, y + half + around)
    return np.asarray(padded.resize((size, size), Image.Resampling.BILINEAR, box=corners))


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    area = lambda box: (box[2] - box[0]) * (box[3] - box[1])
    return shared / (area(a) + area(b) - shared)
