"""Random crops and mirror images of whole records: whatever a record says of places follows its image.

Fields that follow: `boxes` [N, 4] (xyxy in 0..1 of the sides, zero where none is), the ids beside them (`objects`,
`labels`, [N], -1 where none is), and `mask` [H, W] or [H, W, K].
"""

import dataclasses
import hashlib
import struct
from typing import Any

import numpy as np
import PIL.Image

_BESIDE_BOXES = ("objects", "labels")
_LEAST_VISIBLE = 0.25  # share of a box's area that a crop must keep for the object to count as shown


@dataclasses.dataclass(frozen=True)
class Window:
    """The square of an image that is kept, in pixels (fractions are allowed)."""

    left: float
    top: float
    side: float


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What training does to its records at random; evaluation and previews never do.

    Attributes:
        crop: smallest share of the shorter side that a square crop may keep; 0 for no crop.
        mirror: whether half of the images are mirrored.
        image_size: side of the crops in pixels.
    """

    crop: float
    mirror: bool
    image_size: int

    def __bool__(self) -> bool:
        return self.crop > 0 or self.mirror

    def __call__(self, record: dict[str, Any], seed: int, example: int) -> dict[str, Any]:
        """The record as example number `example` of the stream shows it, whoever reads it and in whatever batch."""
        digest = hashlib.blake2b(f"augment/{seed}/{example}".encode(), digest_size=32).digest()
        coin, *uniform = (word / 2**64 for word in struct.unpack("<4Q", digest))
        if self.crop:
            height, width = record["image"].shape[:2]
            record = cropped(record, _random_window(height, width, self.crop, *uniform), self.image_size)
        return mirrored(record) if self.mirror and coin < 0.5 else record


def _random_window(height: int, width: int, smallest: float, u_side: float, u_left: float, u_top: float) -> Window:
    side = (smallest + (1.0 - smallest) * u_side) * min(height, width)
    return Window(u_left * (width - side), u_top * (height - side), side)


def central_window(height: int, width: int) -> Window:
    """The largest square in the middle."""
    side = min(height, width)
    return Window((width - side) / 2, (height - side) / 2, side)


def cropped(record: dict[str, Any], window: Window, size: int) -> dict[str, Any]:
    """The record of what the window shows, its image resized (Lanczos) to [size, size, C]."""
    height, width = record["image"].shape[:2]
    result = record | {"image": _resized(record["image"], window, size, PIL.Image.Resampling.LANCZOS)}
    if "mask" in record:
        result["mask"] = _resized(record["mask"], window, size, PIL.Image.Resampling.NEAREST)
    if "boxes" in record:
        boxes, shown = boxes_in(record["boxes"] * np.float32([width, height, width, height]), window)
        result["boxes"] = boxes
        result |= {name: np.where(shown, record[name], -1) for name in _BESIDE_BOXES if name in record}
    return result


def boxes_in(boxes: np.ndarray, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [N, 4] in pixels as shares of the window's sides, and which of them [N] are still shown.

    A box that loses more than three quarters of its area is not: its row becomes zero.
    """
    place = np.array([window.left, window.top] * 2)
    inside = np.clip(boxes - place, 0.0, window.side)
    area = lambda b: (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    shown = (area(boxes) > 0) & (area(inside) >= _LEAST_VISIBLE * area(boxes))
    return np.where(shown[:, None], inside / window.side, 0.0).astype(np.float32), shown


def mirrored(record: dict[str, Any]) -> dict[str, Any]:
    """The record of the mirror image: left and right change places."""
    result = record | {name: record[name][:, ::-1] for name in ("image", "mask") if name in record}
    if "boxes" in record:
        boxes = record["boxes"]
        there = (boxes != 0).any(axis=1, keepdims=True)
        flipped = np.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], axis=1)
        result["boxes"] = np.where(there, flipped, 0).astype(np.float32)
    return result


def _resized(pixels: np.ndarray, window: Window, size: int, how: PIL.Image.Resampling) -> np.ndarray:
    """A window of [H, W] or [H, W, C] uint8 as [size, size] or [size, size, C], channel by channel where C is odd."""
    box = (window.left, window.top, window.left + window.side, window.top + window.side)
    resize = lambda plane: np.asarray(PIL.Image.fromarray(plane).resize((size, size), how, box=box))
    if pixels.ndim == 2 or pixels.shape[2] == 3:
        return resize(pixels)
    return np.stack([resize(np.ascontiguousarray(pixels[..., i])) for i in range(pixels.shape[2])], axis=-1)
