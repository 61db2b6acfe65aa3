"""The paper's figures as functions on arrays: guidance (Fig. 10), convergence (Figs. 11, 12), cost (Table 5).

Every figure has one line for each arm, the mean over seeds, in a band from the lowest to the highest seed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from contextdiff_jax.errors import UserError
from contextdiff_jax.files import atomic

COLOURS = ("#2563c9", "#c2620c", "#0b7d6c", "#8a3fae")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))


def lines(panels: Mapping[str, Mapping[str, tuple[Any, Any]]], x_labels: Mapping[str, str], path: str | Path) -> None:
    """Panels side by side, in each a line with its band for every arm.

    Args:
        panels: {title: {arm: (x [K] or [S, K], y [S, K])}}, S seeds.
        x_labels: {title: under its horizontal axis}.
        path: of the PNG.

    Raises:
        UserError: arrays that do not fit each other.
    """
    figure = Figure(figsize=(3.6 * len(panels), 3.1), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, arms) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for i, (arm, (x, y)) in enumerate(arms.items()):
            x, y = np.asarray(x, np.float64), np.atleast_2d(np.asarray(y, np.float64))
            x = x.mean(axis=0) if x.ndim == 2 else x
            if x.shape != y.shape[1:]:
                raise UserError(f"{title}, {arm}: {x.shape} places for values {y.shape}; give [K] and [seeds, K]")
            colour = COLOURS[i % len(COLOURS)]
            axes.fill_between(x, y.min(axis=0), y.max(axis=0), color=colour, alpha=0.15, linewidth=0)
            axes.plot(x, y.mean(axis=0), color=colour, linestyle=DASHES[i % len(DASHES)], label=arm, marker="o", ms=3)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(x_labels[title], fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    axes.legend(fontsize=8, frameon=False)
    as_written(figure)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def as_written(figure: Figure) -> None:
    """Takes every text of a figure as it is: a "$" in the name of a folder or an arm begins no formula."""
    for drawn in figure.findobj(Text):
        drawn.set_parse_math(False)


def guidance(weights: Sequence[float], arms: Mapping[str, Mapping[str, Any]], path: str | Path) -> None:
    """Guidance against distance and alignment, and the one against the other (Fig. 10).

    Args:
        weights: of guidance, [W].
        arms: {arm: {"frechet", "aligned" (the share that a judge recognises), "clip" (CLIPScore): [S, W]}}.
        path: of the PNG.
    """
    by_weight = {"Frechet distance (lower is better)": "frechet", "recognised": "aligned", "CLIPScore": "clip"}
    panels = {title: {arm: (weights, v[name]) for arm, v in arms.items()} for title, name in by_weight.items()}
    panels["distance against CLIPScore"] = {a: (np.mean(v["clip"], axis=0), v["frechet"]) for a, v in arms.items()}
    labels = (*["guidance weight"] * len(by_weight), "CLIPScore")
    lines(panels, dict(zip(panels, labels, strict=True)), path)


def convergence(
    steps: Sequence[int],
    seconds: Mapping[str, Any],
    arms: Mapping[str, Mapping[str, Any]],
    path: str | Path,
) -> None:
    """Held-out figures by training steps and by wall time (Figs. 11, 12).

    Args:
        steps: at which was evaluated, [K].
        seconds: {arm: of training until then, [S, K]}.
        arms: {arm: {figure: [S, K]}}.
        path: of the PNG.
    """
    names = list(next(iter(arms.values())))
    panels = {name: {arm: (steps, v[name]) for arm, v in arms.items()} for name in names}
    panels |= {f"{names[0]} by time": {arm: (seconds[arm], v[names[0]]) for arm, v in arms.items()}}
    lines(panels, {name: "seconds of training" if name.endswith("by time") else "step" for name in panels}, path)


def spread(values: Any) -> str:
    """ "0.83 (0.81 to 0.86)": the mean over seeds and their range."""
    values = np.asarray(values, np.float64).ravel()
    return f"{values.mean():.3g} ({values.min():.3g} to {values.max():.3g})"


def differences(a: Any, b: Any) -> tuple[np.ndarray, np.ndarray]:
    """The mean over seeds of b - a and its standard error, [S, K] and [S, K] -> [K], [K]; NaN for one seed."""
    d = np.atleast_2d(np.asarray(b, np.float64)) - np.atleast_2d(np.asarray(a, np.float64))
    error = d.std(axis=0, ddof=1) / np.sqrt(len(d)) if len(d) > 1 else np.full(d.shape[1], np.nan)
    return d.mean(axis=0), error


def cost_table(rows: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    """Table 5 as Markdown.

    Args:
        rows: {recipe: {arm: {"trained", "frozen": parameters, "seconds", "processor": an image, by the clock and of all
            cores together, "gigabytes": peak}}}.
    """
    found = [
        "| recipe | arm | trained, M | frozen, M | s / image | processor s / image | peak memory, GB |",
        "|-|-|-|-|-|-|-|",
    ]
    for recipe, arms in rows.items():
        for arm, row in arms.items():
            counts = " | ".join(f"{row[name] / 1e6:.2f}" for name in ("trained", "frozen"))
            measured = " | ".join(f"{row[name]:.3g}" for name in ("seconds", "processor", "gigabytes"))
            found.append(f"| {recipe} | {arm} | {counts} | {measured} |")
    return found
