"""Plots and tables of docs/study.md from the stored results.

    python -m docs.study.plots

Nothing is trained here.
"""

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from contextdiff_jax.files import atomic
from contextdiff_jax.process import schedule
from docs.study import linear
from docs.study.run import RESULTS, SETS, load
from docs.study.variants import REFERENCE, VARIANTS

PAGE = Path(__file__).parents[1] / "study.md"
TITLES = {
    "gaussian": "2-D Gaussian",
    "mixture": "2-D mixture",
    "digits": "digits, 8 x 8",
    "emoji16": "emoji, 16 x 16",
}
QUALITY = {  # key -> heading and format
    "energy": ("energy distance x 1000", lambda v: f"{1000 * v:.1f}"),
    "accuracy": ("recognised, %", lambda v: f"{100 * v:.1f}"),
    "frechet": ("Frechet distance", lambda v: f"{v:.2f}"),
}
LEAST = 1e-3  # below it a curve over t leaves its plot
CLASS_COLOURS = ("#2e86ab", "#ee964b", "#2e9e5b", "#8e5ea2")


def mean_of(runs: dict[str, Any], get: Any) -> np.ndarray:
    """Mean over the seeds of a figure or a curve."""
    return np.mean([get(run) for run in runs.values()], axis=0)


def figure(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, np.ndarray]:
    """A figure and its axes, [rows, columns]."""
    fig = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(fig)
    axes = fig.subplots(rows, columns, squeeze=False, **options)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    return fig, axes


def write(fig: Figure, path: Path) -> None:
    """The figure as a PNG."""
    with atomic(path) as temporary:
        fig.savefig(temporary, metadata={"Software": None})


def above_exact(run: dict[str, Any], reference: dict[str, Any]) -> np.ndarray:
    """The bound of each image; where the exact likelihood is known, how far it lies above, [N].

    The best plain denoiser, measured under the same noise, is a control variate: what the noise does to both drops
    out, and the best denoiser's own distance is known from many repeats.
    """
    values = np.array(run["bound"]["per_image"])
    return values - np.array(reference["ideal"]) + reference["ideal_above_exact"] if "ideal" in reference else values


# Plots.


def plot_linear(path: Path) -> None:
    """Closed form: Eq. 6 and the bound against the slope a of a linear adapter."""
    s, m, v = schedule.cosine(1000), 0.3, 0.25
    slopes = np.concatenate([-np.geomspace(3, 0.03, 40), [0.0], np.geomspace(0.03, 100, 70)])
    values = np.array([linear.objective_and_bound(s, a, m, v) for a in slopes])
    fig, axes = figure(9, 3, 1, 2)
    for ax, y, label in zip(
        axes[0],
        (values[:, 0], values[:, 1] - linear.entropy(v)),
        ("Eq. 6 at its optimum (mean squared error)", "bound above the entropy, nats per dimension"),
        strict=True,
    ):
        ax.plot(slopes, y, color="#d1495b")
        ax.axvline(0, color="#9aa5b1", linewidth=0.8)
        ax.set_xscale("asinh", linear_width=0.5)
        ax.set_xticks([-1, 0, 1, 10, 100])
        ax.set_xlabel("slope a of the adapter r = a x0", fontsize=8)
        ax.set_title(label, fontsize=9)
    axes[0, 1].set_yscale("log")
    write(fig, path)


def plot_bounds(sets: dict[str, Any], path: Path) -> None:
    """What Eq. 6 minimises against the bound, one point a run."""
    fig, axes = figure(10, 3.1 * -(-len(sets) // 2) + 0.9, -(-len(sets) // 2), 2)
    for ax in axes.flat[len(sets) :]:
        ax.axis("off")
    for ax, (name, stored) in zip(axes.flat, sets.items(), strict=False):
        known, points = "ideal" in stored["reference"], []
        for key, variant in VARIANTS.items():
            runs = stored["runs"].get(key, {})
            x = [run["eq6"] for run in runs.values()]
            y = [above_exact(run, stored["reference"]).mean() for run in runs.values()]
            points += zip(x, y, strict=True)
            marker = "s" if key.startswith("plain") else ("^" if "free" in key else "o")
            label = variant.label if runs else None
            ax.scatter(x, y, s=30, marker=marker, color=variant.colour, label=label, alpha=0.85)
        # Logarithms only where values span more than a power of ten: their ticks crowd otherwise.
        for values, set_scale in zip(np.array(points).T, (ax.set_xscale, ax.set_yscale), strict=True):
            set_scale("log" if values.max() > 10 * values.min() else "linear")
        ax.set_title(TITLES[name], fontsize=9)
        ax.set_xlabel("mean squared error of x0_hat (Eq. 6)", fontsize=8)
        ax.set_ylabel("bound above the exact value, nats" if known else "bound, bits per dimension", fontsize=8)
    handles = {h.get_label(): h for ax in axes.flat for h in ax.collections if not h.get_label().startswith("_")}
    fig.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, fontsize=7.5, frameon=False)
    write(fig, path)


def plot_shifts(sets: dict[str, Any], path: Path) -> None:
    """Size of r, of the shift, and steepness of r over t: the mean of the seeds."""
    columns = {
        "rms of r per element": lambda run, k: np.array(run["r_rms"]),
        "rms of the shift k_t r": lambda run, k: np.array(run["r_rms"]) * k,
        "steepest slope of r (from below)": lambda run, k: np.array(run["lipschitz"]),
    }
    fig, axes = figure(11, 2.4 * len(sets) + 0.6, len(sets), len(columns), sharex=True)
    for row, (name, stored) in zip(axes, sets.items(), strict=True):
        times, k = stored["reference"]["times"], np.array(stored["reference"]["k"])
        for ax, (title, curve) in zip(row, columns.items(), strict=True):
            for key, variant in VARIANTS.items():
                runs = stored["runs"].get(key, {})
                if runs and not key.startswith("plain") and not variant.extra:
                    values = mean_of(runs, lambda run, curve=curve, k=k: curve(run, k))
                    ax.plot(times, values, color=variant.colour, label=variant.label, linewidth=1.5)
            ax.set_yscale("log")
            ax.set_ylim(bottom=max(ax.get_ylim()[0], LEAST))
            ax.set_title(f"{TITLES[name]}: {title}", fontsize=8.5)
    for ax in axes[-1]:
        ax.set_xlabel("t", fontsize=8)
    handles = {line.get_label(): line for line in axes[0, 0].lines}
    fig.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    write(fig, path)


def plot_points(stored: dict[str, Any], path: Path) -> None:
    """Samples of seed 0 on the 2-D mixture."""
    found = {key: stored["runs"][key]["0"]["points"] for key in VARIANTS if "0" in stored["runs"].get(key, {})}
    panels = {"real": stored["reference"]["points"]} | {VARIANTS[key].label: points for key, points in found.items()}
    rows = -(-len(panels) // 5)
    fig, axes = figure(11, 2.3 * rows, rows, 5)
    for ax in axes.flat:
        ax.axis("off")
    for ax, (title, points) in zip(axes.flat, panels.items(), strict=False):
        points = np.array(points, float)
        for i, of_class in enumerate(points):
            ax.scatter(*of_class.T, s=4, color=CLASS_COLOURS[i % len(CLASS_COLOURS)], linewidths=0)
        outside = np.mean(np.abs(points).max(-1) > 1.3)
        ax.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), aspect="equal")
        ax.set_title(title + (f"\n{100 * outside:.0f} % outside the frame" if outside else ""), fontsize=8)
    write(fig, path)


def plot_pictures(stored: dict[str, Any], path: Path) -> None:
    """Samples of seed 0, one row a variant, under the real ones."""
    rows = {"real": stored["reference"]["picture"]}
    found = {key: stored["runs"][key]["0"]["picture"] for key in VARIANTS if "0" in stored["runs"].get(key, {})}
    rows |= {VARIANTS[key].label: picture for key, picture in found.items()}
    plot_strips(rows, path)


def plot_strips(rows: dict[str, str], path: Path) -> None:
    """Pictures side by side, PNGs in base 64, a labelled row each."""
    fig, axes = figure(10, 0.62 * len(rows) + 0.1, len(rows), 1)
    for ax, (label, png) in zip(axes[:, 0], rows.items(), strict=True):
        ax.imshow(np.array(Image.open(io.BytesIO(base64.b64decode(png)))), cmap="gray", interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        ax.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
    write(fig, path)


# Tables.


def table(stored: dict[str, Any]) -> str:
    """One row a variant."""
    reference = stored["reference"]
    measures = [name for name in QUALITY if name in reference["floor"]]
    bound = "bound above exact, nats" if "ideal" in reference else "bound, bits per dimension"
    head = ["objective", "seeds", bound, "minus plain, Eq. 5", "Eq. 6"]
    head += [QUALITY[name][0] for name in measures] + ["rms r", "k r", "slope of r"]
    rows = [head, ["-"] * len(head)]
    for key, variant in VARIANTS.items():
        if runs := stored["runs"].get(key):
            rows.append(_row(key, variant.label, runs, stored, measures))
    floor = [QUALITY[name][1](reference["floor"][name]) for name in measures]
    floor = [
        f"{v} (sd {QUALITY[name][1](reference['floor'][f'{name}_std'])})" if f"{name}_std" in reference["floor"] else v
        for v, name in zip(floor, measures, strict=True)
    ]
    rows.append(["*held-out data*", "", "", "", "", *floor, "", "", ""])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _row(key: str, label: str, runs: dict[str, Any], stored: dict[str, Any], measures: list[str]) -> list[str]:
    images = {seed: above_exact(run, stored["reference"]) for seed, run in runs.items()}
    other = stored["runs"].get(REFERENCE, {})
    gaps = [v - above_exact(other[seed], stored["reference"]) for seed, v in images.items() if seed in other]
    k = np.array(stored["reference"]["k"])
    largest = lambda get: np.max(mean_of(runs, get))
    quality = []
    for name in measures:
        values = [run["quality"][name] for run in runs.values()]
        quality.append("diverged" if None in values else _spread([float(QUALITY[name][1](v)) + 0.0 for v in values]))
    adapter = ["-"] * 3
    if not key.startswith("plain"):
        curves = (lambda run: run["r_rms"], lambda run: np.array(run["r_rms"]) * k, lambda run: run["lipschitz"])
        adapter = [f"{largest(get):.2g}" for get in curves]
    return [
        label,
        str(len(runs)),
        _with_error(list(images.values())),
        "0" if key == REFERENCE else (_with_error(gaps, sign="+") if gaps else "-"),
        f"{mean_of(runs, lambda run: run['eq6']):.3g}",
        *quality,
        *adapter,
    ]


def _with_error(per_image: list[np.ndarray], sign: str = "") -> str:
    """Mean ± standard error over images and seeds together; of a single seed over the images alone.

    The images are the same for every seed, so only the spread of the seeds shrinks with their number.
    """
    means = [v.mean() for v in per_image]
    over_images = np.mean([v.var(ddof=1) / len(v) for v in per_image])
    over_seeds = np.var(means, ddof=1) / len(means) if len(means) > 1 else 0.0
    error = float(np.sqrt(over_images + over_seeds))
    digits = max(0, min(4, 1 - int(np.floor(np.log10(error)))))
    return f"{np.mean(means):{sign}.{digits}f} ± {error:.{digits}f}"


def _spread(values: list[float]) -> str:
    """Mean (least to largest seed)."""
    low, high = min(values), max(values)
    return f"{np.mean(values):.3g}" + (f" ({low:.3g} to {high:.3g})" if len(values) > 1 else "")


def write_tables(sets: dict[str, Any], page: Path) -> None:
    """Fills in every table of the page for which there are results."""
    for name, stored in sets.items():
        replace_table(page, name, table(stored))


def replace_table(page: Path, name: str, rows: str) -> None:
    """Replaces what stands between the page's marks, `<!-- table NAME -->` and `<!-- end -->`."""
    pattern = rf"(<!-- table {name} -->\n).*?(<!-- end -->)"
    text = page.read_text(encoding="utf-8")
    text = re.sub(pattern, lambda m: f"{m[1]}\n{rows}\n\n{m[2]}", text, flags=re.DOTALL)
    with atomic(page) as temporary:
        temporary.write_text(text, encoding="utf-8")


def main(results: Path = RESULTS, folder: Path = Path(__file__).parent, page: Path = PAGE) -> None:
    """Draws every plot and fills in every table for which there are results."""
    sets = {name: load(results / f"{name}.json") for name in SETS}
    sets = {name: stored for name, stored in sets.items() if stored["runs"]}
    plot_linear(folder / "linear.png")
    plot_bounds(sets, folder / "bounds.png")
    plot_shifts(sets, folder / "shifts.png")
    if "mixture" in sets:
        plot_points(sets["mixture"], folder / "samples-mixture.png")
    for name in sets.keys() & {"digits", "emoji16"}:
        plot_pictures(sets[name], folder / f"samples-{name}.png")
    if page.is_file():
        write_tables(sets, page)


if __name__ == "__main__":
    main()
