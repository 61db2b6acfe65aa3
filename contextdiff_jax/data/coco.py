"""COCO's pictures with their objects in boxes, from the annotation files themselves.

    <path>/train2017/*.jpg  <path>/val2017/*.jpg
    <path>/annotations/instances_train2017.json  stuff_train2017.json  and the same for val2017

The usual choice for layouts: objects whose boxes cover more than 2 % of their picture, pictures with 3 to 8 of them,
the middle square. Stuff (sky, grass) counts as an object; its collective class "other" and crowds do not.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from contextdiff_jax.data import checks, images
from contextdiff_jax.data.augment import boxes_in, central_window
from contextdiff_jax.data.base import Description, ImageSource, digest
from contextdiff_jax.data.listing import differing, left_out, listed
from contextdiff_jax.data.scan import Seen, scan
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import composed, persistently, read_json, user_path

SPLITS = ("train", "val")
MAX_OBJECTS = 8
_MIN_OBJECTS = 3
_MIN_AREA = 0.02  # share of the picture that the box of an object covers
_YEAR = "2017"
_OTHER = "other"
_KINDS = ("instances", "stuff")
_AGAIN = "download the annotations again"


class CocoSource(ImageSource):
    """Random-access pictures with layouts: image uint8 [H, W, 3], boxes, objects, caption (the objects' names), index.

    Args:
        path: folder of the pictures' folders and of annotations.
        split: train or val.
        image_size: side in pixels, 8 at least.
        max_bad_fraction: share of pictures that are missing, cannot be read or have other sides than annotated, and of
            wrong annotations, from which on to stop.
        class_names: the classes that a run knows, whose numbers they give; () takes those of val.

    Raises:
        UserError: unknown split, missing or damaged annotation files, other classes than those known, too many bad
            pictures or wrong annotations.
    """

    def __init__(
        self,
        path: str,
        split: str,
        image_size: int,
        *,
        max_bad_fraction: float = 0.01,
        class_names: Sequence[str] = (),
    ):
        self.split = checks.split(split, SPLITS, "coco")
        self.image_size = checks.image_size(image_size)
        self.path = _existing(path)
        tables = [_table(self.path, kind, split) for kind in _KINDS]
        classes = _classes(tables, self.path)
        known = tuple(class_names) or (object_names_of(path) if split != "val" else tuple(classes.values()))
        self.description = describe(known)
        pictures = {p["id"]: p for table in tables for p in table["images"]}
        numbers = self._numbers(classes, "data.class_names" if class_names else "val")
        objects, wrong = _objects(tables, pictures, numbers)
        total = sum(len(table["annotations"]) for table in tables)
        left_out(wrong, total, f"annotations of {self.path} are wrong", max_bad_fraction, _AGAIN)
        names = {key: pictures[key]["file_name"] for key in sorted(objects)}
        kept = {key: own for key, own in objects.items() if _MIN_OBJECTS <= len(own) <= MAX_OBJECTS}
        seen = self._seen({names[key]: kept[key][0] for key in sorted(kept)}, max_bad_fraction)
        self._records = [(names[key], kept[key]) for key in sorted(kept) if names[key] in seen]
        self._digest = digest((name, seen[name].size, own) for name, own in self._records)
        if not self._records:
            few = f"no picture of {split} has {_MIN_OBJECTS} to {MAX_OBJECTS} objects"
            raise UserError(f"data.path: {self.path}: {few} that cover more than {_MIN_AREA:.0%}; {_AGAIN}")

    def _numbers(self, classes: dict[int, str], whose: str) -> dict[int, int]:
        """{category: its number among the known classes}, by the name."""
        number = {composed(name): i for i, name in enumerate(self.description.object_names)}
        if problem := differing(self.description.object_names, tuple(classes.values())):
            place = f"{self.split} of {self.path}"
            raise UserError(f"data.path: {place} has other classes than {whose} ({problem}); {_AGAIN}")
        return {key: number[composed(name)] for key, name in classes.items()}

    def _seen(self, annotated: dict[str, dict[str, Any]], max_bad_fraction: float) -> dict[str, Seen]:
        """What is known of the files of pictures, from {name: one of its objects}; those that cannot be read, or have
        other sides than annotated, are named and left out."""
        folder = self.path / f"{self.split}{_YEAR}"
        seen, bad = scan(folder, list(annotated), sides=True), {}
        for name, now in seen.items():
            (width, height), own = now.sides, annotated[name]
            # A picture made smaller has rounded sides.
            if not now.reason and abs(width * own["height"] - height * own["width"]) > max(own["width"], own["height"]):
                bad[name] = f"is {width} x {height}, annotated as {own['width']} x {own['height']}"
            elif now.reason:
                bad[name] = now.reason
        reasons = [f"{name} ({why})" for name, why in sorted(bad.items())]
        left_out(reasons, len(seen), f"pictures in {folder} are missing or wrong", max_bad_fraction, _AGAIN)
        return {name: now for name, now in seen.items() if name not in bad}

    def __len__(self) -> int:
        return len(self._records)

    def __repr__(self) -> str:
        return f"CocoSource({str(self.path)!r}, {self.split!r}, {self.image_size})"

    @property
    def identity(self) -> str:
        """Split, number, classes, and a digest of names, sizes in bytes and objects."""
        classes = len(self.description.object_names)
        return f"coco {self.split}: {len(self)} records of {classes} classes ({self._digest})"

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Record `index`.

        Returns:
            image uint8 [H, W, 3], the middle square; boxes float32 [8, 4] xyxy in 0..1 of its sides, zero where there
            is no object; objects int32 [8], -1 there; caption str; index int. Objects that the square cuts off are
            left out.

        Raises:
            UserError: the picture cannot be read.
        """
        name, own = self._record(index)
        record = {"image": self._read(name, images.read_image), "index": int(index)}
        return record | self._layout(own, *_in_the_square(own))

    def whole(self, index: int) -> dict[str, Any]:
        """Record `index` with its picture as it is, [H, W, 3], and the boxes in shares of its sides."""
        name, own = self._record(index)
        sides = np.float32([own[0]["width"], own[0]["height"]] * 2)
        boxes = np.array([o["box"] for o in own], np.float32) / sides
        record = {"image": self._read(name, images.read_whole), "index": int(index)}
        return record | self._layout(own, boxes, np.ones(len(own), bool))

    def captions(self) -> list[str]:
        """The different captions of all squares, and of the whole pictures, of which random crops are taken; no picture
        is read for them."""
        squares = {self._layout(own, *_in_the_square(own))["caption"] for _, own in self._records}
        return sorted(squares | {self._caption([o["label"] for o in own]) for _, own in self._records})

    def _record(self, index: int) -> tuple[str, list[dict[str, Any]]]:
        self.check_index(index)
        return self._records[index]

    def _layout(self, own: list[dict[str, Any]], boxes: np.ndarray, shown: np.ndarray) -> dict[str, Any]:
        kept, count = [o["label"] for o, there in zip(own, shown, strict=True) if there], int(shown.sum())
        all_boxes, objects = np.zeros((MAX_OBJECTS, 4), np.float32), np.full(MAX_OBJECTS, -1, np.int32)
        all_boxes[:count], objects[:count] = boxes[shown], kept
        return {"boxes": all_boxes, "objects": objects, "caption": self._caption(kept)}

    def _caption(self, labels: list[int]) -> str:
        return ", ".join(self.description.object_names[label] for label in labels)

    def _read(self, name: str, read: Any) -> np.ndarray:
        path = self.path / f"{self.split}{_YEAR}" / name
        try:
            # Boxes count the pixels as they are stored.
            return persistently(lambda: read(path, self.image_size, turned=False))
        except Exception as error:
            raise UserError(f"{path}: cannot be read: {images.reason(error)}; download it again") from error


def _in_the_square(own: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of a picture's objects in its middle square, and which of them are shown there."""
    window = central_window(own[0]["height"], own[0]["width"])
    return boxes_in(np.array([o["box"] for o in own], np.float32), window)


def _existing(path: str) -> pathlib.Path:
    folder = user_path(path)
    if not str(path) or not folder.is_dir():
        raise UserError(f"data.path: {str(path)!r} is no folder; give COCO's, which holds annotations/")
    return folder


def _table(folder: pathlib.Path, kind: str, split: str) -> dict[str, Any]:
    """One annotation file, its parts checked."""
    path = folder / "annotations" / f"{kind}_{split}{_YEAR}.json"
    if not path.is_file():
        raise UserError(f"data.path: {path} is missing; get it from https://cocodataset.org/#download")
    table = read_json(path, _AGAIN, object_hook=_without_outline)
    for part in ("images", "annotations", "categories"):
        if not isinstance(table, dict) or not isinstance(table.get(part), list):
            raise UserError(f"data.path: {path} has no list of {part}; {_AGAIN}")
    number = int | float
    keys = {
        "images": {"id": int, "file_name": str, "height": number, "width": number},
        "categories": {"id": int, "name": str},
    }
    for part, needed in keys.items():
        fits = lambda entry, needed=needed: all(isinstance(entry.get(key), kind) for key, kind in needed.items())
        if not all(isinstance(entry, dict) and fits(entry) for entry in table[part]):
            named = ", ".join(needed)
            raise UserError(f"data.path: {path} has an entry of {part} without {named}, or of wrong kinds; {_AGAIN}")
    return table


def _without_outline(entry: dict[str, Any]) -> dict[str, Any]:
    """Outlines are most of a file, and would be most of the memory."""
    entry.pop("segmentation", None)
    return entry


def _classes(tables: list[dict[str, Any]], folder: pathlib.Path) -> dict[int, str]:
    """{category: name} of things and stuff in the order of their numbers."""
    found = {c["id"]: c["name"] for table in tables for c in table["categories"] if c["name"] != _OTHER}
    names = [composed(name) for name in found.values()]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"data.path: the annotations of {folder} have two categories called {listed(twice)}; {_AGAIN}")
    return {key: found[key] for key in sorted(found)}


def _objects(
    tables: list[dict[str, Any]], pictures: dict[int, dict], ids: dict[int, int]
) -> tuple[dict[int, list[dict[str, Any]]], list[str]]:
    """({picture: its objects that are large enough}, what is wrong with annotations)."""
    other = {c["id"] for table in tables for c in table["categories"]} - set(ids)
    objects: dict[int, list[dict[str, Any]]] = {}
    wrong = []
    for table in tables:
        for entry in table["annotations"]:
            problem, found = _object(entry, pictures, ids, other)
            if problem:
                wrong.append(problem)
            elif found:
                objects.setdefault(entry["image_id"], []).append(found)
    return objects, wrong


def _object(entry: Any, pictures: dict, ids: dict, other: set) -> tuple[str, dict[str, Any] | None]:
    """(what is wrong, the object); neither where it is a crowd, too small, or of the collective class."""
    try:
        picture, category = pictures.get(entry["image_id"]), entry["category_id"]
        collective, known = category in other, category in ids
        x, y, w, h = (float(v) for v in entry["bbox"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return "an entry without image_id, category_id and four numbers in bbox", None
    if picture is None:
        return f"image {entry['image_id']}, which is not listed", None
    if collective or entry.get("iscrowd"):
        return "", None
    if not known:
        return f"category {category}, which is not listed", None
    height, width = picture["height"], picture["width"]
    if not (w > 0 and h > 0 and x >= -1 and y >= -1 and x + w <= width + 1 and y + h <= height + 1):
        return f"box {entry['bbox']} outside its image {entry['image_id']}", None
    if w * h <= _MIN_AREA * width * height:
        return "", None
    return "", {"box": (x, y, x + w, y + h), "label": ids[category], "height": height, "width": width}


def describe(names: tuple[str, ...]) -> Description:
    """What the pictures are, whose objects have these classes. A picture as a whole has none."""
    return Description(object_names=names, max_objects=MAX_OBJECTS)


def object_names_of(path: str) -> tuple[str, ...]:
    """The classes that the annotation files of val list: the same as train's, and smaller files.

    Raises:
        UserError: as the source.
    """
    folder = _existing(path)
    return tuple(_classes([_table(folder, kind, "val") for kind in _KINDS], folder).values())
