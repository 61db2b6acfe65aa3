"""Line charts as inline SVG, in the colours of the page's style: light, dark, and told apart without colours as well.

From the fifth line on the four colours come again under other dashes, and from the ninth with marks on the line.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from contextdiff_jax.evaluate.pages.html import text

WIDTH, HEIGHT = 340, 196
LEFT, RIGHT, TOP, BOTTOM = 46, 16, 8, 30  # margins
COLOURS, DASHES = 4, 8  # of the page's style
MARKS = {  # outlines around (0, 0)
    "circle": "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0z",
    "square": "M-3 -3h6v6h-6z",
    "diamond": "M0 -4.5L4.5 0L0 4.5L-4.5 0z",
    "triangle": "M0 -4.2L4 3.2H-4z",
}
MARKED = 6  # places of a line that has marks
POINTS = 300  # of a curve; more are averaged


class Curve(NamedTuple):
    """A line, with a band around it where there are errors.

    Attributes:
        x, y: [N].
        low, high: of the band, [N]; None for none.
    """

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def chart(title: str, curves: Mapping[str, Curve], x_label: str, log: bool = False) -> str:
    """A figure with its title, the curves and, where there are several, a legend.

    Args:
        title: of the figure, a text.
        curves: by name; values that are not finite are left out.
        x_label: under the horizontal axis.
        log: logarithmic vertical axis, where all values are positive.

    Returns:
        Markup; "" where there is nothing to draw.
    """
    curves = {name: c for name, c in ((n, _thinned(c)) for n, c in curves.items()) if len(c.x)}
    if not curves:
        return ""
    values = np.concatenate(
        [np.concatenate([c.y, *(b for b in (c.low, c.high) if b is not None)]) for c in curves.values()]
    )
    log = log and values.min() > 0
    across = _Axis(np.concatenate([c.x for c in curves.values()]), LEFT, WIDTH - RIGHT, False, count=5)
    up = _Axis(values, HEIGHT - BOTTOM, TOP, log, count=4)
    parts = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(v):.1f}" y2="{up(v):.1f}"/>'
        f'<text x="{LEFT - 5}" y="{up(v) + 4:.1f}" text-anchor="end">{_tick(v)}</text>'
        for v in up.ticks
    ]
    parts += [
        f'<text x="{across(v):.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{_tick(v)}</text>'
        for v in across.ticks
    ]
    parts.append(f'<text x="{(LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - 2}" text-anchor="middle">{text(x_label)}</text>')
    for i, curve in enumerate(curves.values()):
        parts.append(_drawn(curve, across, up, i))
    said = "; ".join(f"{name}: from {_tick(c.y[0])} to {_tick(c.y[-1])}" for name, c in curves.items())
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(f"{title} by {x_label}. {said}")}">'
        f"{''.join(parts)}</svg>"
    )
    last = "" if len(curves) > 1 else f" <span>last {_tick(next(iter(curves.values())).y[-1])}</span>"
    return f"<figure><figcaption>{text(title)}{last}</figcaption>{svg}{_legend(curves)}</figure>"


def _legend(curves: Mapping[str, Curve]) -> str:
    if len(curves) < 2:
        return ""
    items = "".join(
        f'<li><svg viewBox="0 0 26 10" aria-hidden="true">{_sample(i, len(curve.x))}</svg>{text(name)}</li>'
        for i, (name, curve) in enumerate(curves.items())
    )
    return f'<ul class="legend">{items}</ul>'


def _sample(i: int, points: int) -> str:
    """What line i looks like; a single value has its mark alone."""
    if points == 1:
        return _mark(i, i, 13, 5)
    mark = _mark(i, i // DASHES - 1, 13, 5) if i >= DASHES else ""
    return f'<line class="{_series(i)}" x1="0" x2="26" y1="5" y2="5"/>{mark}'


def _colour(i: int) -> int:
    """Number of line i's colour: another one each time that the dashes come again."""
    return (i + i // DASHES) % COLOURS


def _series(i: int) -> str:
    """Classes of line i in the page's style."""
    return f"series c{_colour(i)} d{i % DASHES}"


def _mark(i: int, shape: int, x: float, y: float) -> str:
    """A mark in the colour of line i; the shapes come again hollow."""
    outline = list(MARKS.values())[shape % len(MARKS)]
    kind = f"mark c{_colour(i)}" if shape // len(MARKS) % 2 else f"f{_colour(i)}"
    return f'<path class="{kind}" d="{outline}" transform="translate({x:.1f} {y:.1f})"/>'


def _drawn(curve: Curve, across: "_Axis", up: "_Axis", i: int) -> str:
    """The band and the line of curve i; a single value is a mark."""
    points = lambda ys: [f"{across(x):.1f},{up(y):.1f}" for x, y in zip(curve.x, ys, strict=True)]
    band = ""
    if curve.low is not None and curve.high is not None:
        outline = points(curve.low) + points(curve.high)[::-1]
        band = f'<polygon class="band f{_colour(i)}" points="{" ".join(outline)}"/>'
    if len(curve.x) == 1:
        return band + _mark(i, i, across(curve.x[0]), up(curve.y[0]))
    line = f'<polyline class="{_series(i)}" points="{" ".join(points(curve.y))}"/>'
    if i >= DASHES:
        places = np.unique(np.linspace(0, len(curve.x) - 1, MARKED).astype(int))
        line += "".join(_mark(i, i // DASHES - 1, across(curve.x[p]), up(curve.y[p])) for p in places)
    return band + line


class _Axis:
    """Values to pixels, with round values to write beside it."""

    def __init__(self, values: np.ndarray, start: float, end: float, log: bool, count: int):
        self._start, self._end, self._scale = start, end, np.log10 if log else float
        low, high = float(values.min()), float(values.max())
        if low == high:
            low, high = (low / 2, high * 2) if log else (low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2)
        self.ticks = _decades(low, high) if log else _round_values(low, high, count)
        self._low, self._high = self._scale(min(low, *self.ticks)), self._scale(max(high, *self.ticks))

    def __call__(self, value: float) -> float:
        share = (self._scale(value) - self._low) / (self._high - self._low)
        return self._start + share * (self._end - self._start)


def _round_values(low: float, high: float, count: int) -> list[float]:
    """1, 2, 5 times a power of ten apart, from the last below to the first above."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    return [i * step for i in range(math.floor(low / step), math.ceil(high / step) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Powers of ten, or 1, 2, 5 times them where there are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    if last - first > 2:
        every = -(-(last - first) // 5)
        return [10.0**e for e in range(first, last + 1, every)]
    fine = [m * 10.0**e for e in range(first, last + 1) for m in (1, 2, 5)]
    inside = [v for v in fine if low <= v <= high]
    return inside if len(inside) >= 3 else [v for v in _round_values(low, high, 3) if v > 0]


def _tick(value: float) -> str:
    """Short: 1.5k, 0.02, 3e-5."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k"
    if size and size < 1e-3:
        return f"{value:.1e}".replace("e-0", "e-")
    return f"{value:.4g}"


def _thinned(curve: Curve) -> Curve:
    """Finite values, at most `POINTS`: neighbours are averaged."""
    columns = [np.asarray(v, np.float64) for v in curve if v is not None]
    keep = np.isfinite(columns).all(axis=0)
    columns = [v[keep] for v in columns]
    if len(columns[0]) > POINTS:
        pieces = np.array_split(np.arange(len(columns[0])), POINTS)
        columns = [np.array([v[piece].mean() for piece in pieces]) for v in columns]
    return Curve(*columns)
