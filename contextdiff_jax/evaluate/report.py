"""One picture that tells how a run came out: the figures on top, the samples below."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageDraw, ImageFont

from contextdiff_jax.evaluate.alignment import MEASURES, counted
from contextdiff_jax.evaluate.figures import as_written
from contextdiff_jax.files import atomic
from contextdiff_jax.pictures import FRAME, INK, PAD, PAPER, draw_grid

FAINT = "#6b7280"
BARS = {"object": "#cfe3f7", "background": "#fbe3c8", "both": "#cdebd6", "iou": "#e6dbf5"}
TERMS = ("prior", "reconstruction", "diffusion")  # of the bound
DPI = 100
MIN_WIDTH = 1000  # pixels, so that the table stays legible over a narrow grid
ROW, FACT_ROW = 0.30, 0.26  # inches
VALUES = 4.1  # inches from the left, where figures begin behind their names


def write_report(figures: Mapping[str, Any], grids: Mapping[str, Sequence], path: str | Path) -> None:
    """Writes the report of an evaluation as one PNG, atomically.

    Args:
        figures: what `eval.json` holds. Known entries, all optional:
            "title": the headline;
            "alignment": {row name: result of `alignment` or `chance`}, one table row each, in order;
            "bits_per_dim": {row name: {"mean", "stderr", and the bound's terms "prior", "reconstruction",
                "diffusion"}}, one line each;
            "judge_features": {row name: result of `fidelity`}, one line each;
            "eval", "judge_features_of": options and protocol, which the page about the run shows;
            every other number or text becomes a line "name  value" (underscores become spaces), and every
            other mapping of them one line each, "name, key  value".
        grids: {heading: (images [N, H, W, 3], captions) or (images, captions, correct)}, drawn in order.
        path: where the PNG goes.
    """
    blocks = []
    for heading, (images, captions, *correct) in grids.items():
        grid = draw_grid(images, captions, correct=correct[0] if correct else None)
        blocks += [_heading(heading, "green: recognised, red: not" if correct else "", grid.width), grid]
    width = max([MIN_WIDTH, *(block.width for block in blocks)])
    blocks = [_draw_figures(figures, width), *blocks]
    sheet = Image.new("RGB", (width, sum(block.height for block in blocks) + PAD), PAPER)
    top = 0
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height
    with atomic(path) as temporary:
        sheet.save(temporary, format="PNG")


def _heading(text: str, legend: str, width: int) -> Image.Image:
    """A line of text over a grid, its legend at the right end."""
    strip = Image.new("RGB", (width, 36), PAPER)
    draw = ImageDraw.Draw(strip)
    draw.text((PAD, 30), text, INK, ImageFont.load_default(size=18), anchor="ls")
    draw.text((width - PAD, 30), legend, FAINT, ImageFont.load_default(size=14), anchor="rs")
    return strip


def _draw_figures(figures: Mapping[str, Any], width: int) -> Image.Image:
    """The table of alignment with the other figures under it, `width` pixels wide."""
    rows = figures.get("alignment", {})
    facts = _facts(figures)
    table_height = ROW * (len(rows) + 1) + 0.2 if rows else 0.0
    height = 0.6 + table_height + FACT_ROW * len(facts) + 0.15
    figure = Figure(figsize=(width / DPI, height), dpi=DPI, facecolor=PAPER)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width / DPI), ylim=(height, 0))  # inches from the upper left corner
    axes.axis("off")
    axes.text(
        0.12, 0.32, figures.get("title", "Evaluation"), fontsize=15, weight="bold", color=INK, va="center"
    )
    if rows:
        _draw_table(axes, rows, 0.6 + ROW / 2, width / DPI)
    for i, (name, value) in enumerate(facts):
        y = 0.6 + table_height + FACT_ROW * (i + 0.5)
        axes.text(0.12, y, name, fontsize=10.5, color=FAINT, va="center")
        axes.text(VALUES, y, value, fontsize=10.5, color=INK, va="center")
    as_written(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])


def _draw_table(axes: Any, rows: Mapping[str, Mapping], y: float, width: float) -> None:
    """Alignment, one row per group; the tint behind a figure is as long as the figure is large."""
    measures = columns_of(rows)
    lefts = np.linspace(VALUES, width - 1.1, len(measures) + 1)
    cell = lefts[1] - lefts[0] - 0.15
    axes.text(0.12, y, "recognised", fontsize=10.5, color=FAINT, va="center")
    for left, measure in zip(lefts, measures, strict=False):
        axes.text(left, y, measure, fontsize=10.5, color=FAINT, va="center")
    axes.text(width - 0.15, y, "images", fontsize=10.5, color=FAINT, va="center", ha="right")
    for name, row in rows.items():
        y += ROW
        axes.plot((0.12, width - 0.12), (y - ROW / 2, y - ROW / 2), color=FRAME, linewidth=0.8)
        axes.text(0.12, y, name, fontsize=10.5, color=INK, va="center")
        for left, measure in zip(lefts, measures, strict=False):
            if measure in row:
                bar = Rectangle((left, y - 0.11), cell * row[measure], 0.22, color=BARS[measure], linewidth=0)
                axes.add_patch(bar)
            axes.text(left + 0.05, y, _share(row, measure), fontsize=10.5, color=INK, va="center")
        axes.text(width - 0.15, y, counted(row), fontsize=10.5, color=INK, va="center", ha="right")


def columns_of(rows: Mapping[str, Mapping]) -> tuple[str, ...]:
    """What the rows measure: MEASURES, or some of them, and how well boxes are kept; MEASURES where they are empty."""
    return tuple(m for m in BARS if any(m in row for row in rows.values())) or MEASURES


def _share(row: Mapping[str, float], measure: str) -> str:
    """ "62.5 ± 4.3 %"."""
    if measure not in row:
        return "-"
    error = row.get(f"{measure}_stderr")
    return (
        f"{100 * row[measure]:.1f} %" if error is None else f"{100 * row[measure]:.1f} ± {100 * error:.1f} %"
    )


def _facts(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every figure that is not in the table, as (name, text)."""
    facts = []
    for name, bound in figures.get("bits_per_dim", {}).items():
        terms = ", ".join(f"{term} {bound[term]:.4g}" for term in TERMS if term in bound)
        error = bound.get("stderr", np.nan)  # of a single image it is not a number
        text = f"{bound['mean']:.3f}" + (f" ± {error:.3f}" if np.isfinite(error) else "")
        facts.append((f"bits per dim, {name}", text + (f"   ({terms})" if terms else "")))
    for name, row in figures.get("judge_features", {}).items():
        shares = f"   (precision {row['precision']:.2f}, recall {row['recall']:.2f}, {row['n']} images)"
        few = " (too few pictures)" * ("too_few" in row)
        facts.append((f"judge Frechet distance, {name}", f"{row['frechet']:.3g}{few}{shares}"))
    for name, value in figures.items():
        if name in ("title", "alignment", "bits_per_dim", "judge_features", "judge_features_of", "eval"):
            continue
        entries = value if isinstance(value, Mapping) else {"": value}
        for key, entry in entries.items():
            if isinstance(entry, str | int | float | np.number):
                facts.append((name.replace("_", " ") + (f", {key}" if key else ""), _number(entry)))
    return facts


def _number(value: str | int | float) -> str:
    """ "7.123", "3,800,000" or the text itself."""
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
