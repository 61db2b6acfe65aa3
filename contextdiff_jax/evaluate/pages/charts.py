"""Line charts as inline SVG, in the colours of the page's style: light, dark, and told apart by dashes as well."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from contextdiff_jax.evaluate.pages.html import text

WIDTH, HEIGHT = 340, 196
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 8, 30  # margins
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


def chart(title: str, curves: Mapping[str, Curve], x_label: str, log: bool = False, log_x: bool = False) -> str:
    """A figure with its title, the curves and, where there are several, a legend.

    Args:
        title: of the figure, a text.
        curves: by name; values that are not finite are left out.
        x_label: under the horizontal axis.
        log: logarithmic vertical axis, where all values are positive.
        log_x: logarithmic horizontal axis.

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
    across = _Axis(np.concatenate([c.x for c in curves.values()]), LEFT, WIDTH - RIGHT, log_x, count=5)
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
        parts.append(_drawn(curve, across, up, i % 4))
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
    line = (
        '<svg viewBox="0 0 26 8" aria-hidden="true"><line class="series c{0} d{0}" x1="0" x2="26" y1="4" y2="4"/></svg>'
    )
    items = "".join(f"<li>{line.format(i % 4)}{text(name)}</li>" for i, name in enumerate(curves))
    return f'<ul class="legend">{items}</ul>'


def _drawn(curve: Curve, across: "_Axis", up: "_Axis", colour: int) -> str:
    """The band and the line; a single value is a dot."""
    points = lambda ys: [f"{across(x):.1f},{up(y):.1f}" for x, y in zip(curve.x, ys, strict=True)]
    band = ""
    if curve.low is not None and curve.high is not None:
        outline = points(curve.low) + points(curve.high)[::-1]
        band = f'<polygon class="band f{colour}" points="{" ".join(outline)}"/>'
    if len(curve.x) == 1:
        return f'{band}<circle class="f{colour}" cx="{across(curve.x[0]):.1f}" cy="{up(curve.y[0]):.1f}" r="3"/>'
    return f'{band}<polyline class="series c{colour} d{colour}" points="{" ".join(points(curve.y))}"/>'


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
