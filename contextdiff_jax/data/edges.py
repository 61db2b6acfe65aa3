"""Edges of a picture, what a ControlNet is shown."""

import numpy as np
import PIL.Image
import PIL.ImageFilter

from contextdiff_jax.errors import UserError


def edges(image: PIL.Image.Image, low: float = 100.0, high: float = 200.0, blur: float = 1.0) -> np.ndarray:
    """Canny's edges of a picture (Canny 1986): thin, and connected from strong ones into weak ones.

    Args:
        image: any size.
        low: gradient from which a pixel beside an edge is one as well, in grey levels of 0..255 by Sobel's masks.
        high: gradient from which a pixel is an edge by itself.
        blur: standard deviation of the Gaussian before, pixels.

    Returns:
        float32 [H, W, 3], 1 on edges and 0 elsewhere.

    Raises:
        UserError: thresholds that are no thresholds.
    """
    if not 0 < low <= high:
        raise UserError(f"edge thresholds low={low}, high={high}; they must be 0 < low <= high, e.g. 100 and 200")
    grey = np.asarray(image.convert("L").filter(PIL.ImageFilter.GaussianBlur(blur)), np.float32)
    p = np.pad(grey, 1, mode="edge")
    smooth = lambda a, b, c: a + 2 * b + c
    dx = smooth(p[:-2, 2:], p[1:-1, 2:], p[2:, 2:]) - smooth(p[:-2, :-2], p[1:-1, :-2], p[2:, :-2])
    dy = smooth(p[2:, :-2], p[2:, 1:-1], p[2:, 2:]) - smooth(p[:-2, :-2], p[:-2, 1:-1], p[:-2, 2:])
    strength = np.hypot(dx, dy)
    ridge = strength * _on_ridge(strength, dx, dy)
    found, weak = ridge >= high, ridge >= low
    while True:
        grown = weak & _dilated(found)
        if (grown == found).all():
            return np.repeat(found[..., None].astype(np.float32), 3, axis=-1)
        found = grown


def edges_of(frames: np.ndarray) -> np.ndarray:
    """The edges of each frame of a clip, uint8 [F, H, W, 3]: float32 [F, H, W, 3]."""
    return np.stack([edges(PIL.Image.fromarray(frame)) for frame in frames])


def _on_ridge(strength: np.ndarray, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Whether a pixel is stronger than its two neighbours in the direction of the gradient, rounded to 45 degrees; of
    equal ones the first is, [H, W]."""
    height, width = strength.shape
    octant = np.rint(np.arctan2(dy, dx) / (np.pi / 4)).astype(int) % 4
    p, result = np.pad(strength, 1), np.zeros_like(strength, bool)
    for i, (down, right) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        at = lambda y, x: p[1 + y : 1 + y + height, 1 + x : 1 + x + width]
        result |= (octant == i) & (strength > at(-down, -right)) & (strength >= at(down, right))
    return result


def _dilated(mask: np.ndarray) -> np.ndarray:
    """True where a pixel or one of its eight neighbours is, [H, W]."""
    p, (height, width) = np.pad(mask, 1), mask.shape
    return np.any([p[y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0)
