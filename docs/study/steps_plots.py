"""Tables and plots of the second part of docs/study.md, from the stored results.

    python -m docs.study.steps_plots
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from docs.study.plots import CLASS_COLOURS, PAGE, figure, plot_strips, replace_table, write
from docs.study.run import RESULTS, load
from docs.study.steps import ARMS, MANY, OWN, RATE, SETS, USERS, Arm, Training, stored_in

SAMPLERS = {"dpmpp_2m": "DPM-Solver++(2M)", "ddim": "DDIM", "ddpm": "DDPM"}
STYLES = {"dpmpp_2m": "--", "ddim": ":"}  # all of ddpm's steps are no point of a plot of few
MANY_ARMS = {"plain": ("plain, Eq. 4, T = 1000", "black")}  # then whatever else has been run at T = 1000
MANY_ARMS |= {arm: (f"{of.label}, T = 1000", of.colour) for arm, of in (USERS | ARMS).items() if arm != "plain"}
DRAW, MEAN = "decoder's draw", "decoder's mean"
PICTURES = ("fashion", "emoji32")  # sets whose samples are shown
ASKED = (2, 4, 8, 16, 64, MANY)  # T of `runs_table`
# Of each set, its trainings as they are called, and what is shown of them
TRAININGS = {
    "digits": {f"{n} steps": OWN if n == 600 else Training(n) for n in (150, 300, 400, 600, 1200)},
    "fashion14": {"800 steps": OWN, "1600 steps": Training(1600), "800 steps, process x 100": Training(rate=100.0)},
}
OF_TRAININGS = ((4, "plain_wide"), (4, "free"), (4, "scale"), (8, "free"))  # T, and an arm beside the plain one


def few(stored: dict[str, Any]) -> list[int]:
    """The T that were run, without the many-step model."""
    return sorted(int(T) for T in stored["runs"] if int(T) < MANY)


def values(stored: dict[str, Any], T: int, arm: str, get: Any) -> np.ndarray:
    """A figure of each seed; NaN where sampling diverged, which is stored as null."""
    runs = stored["runs"].get(str(T), {}).get(arm, {})
    return np.array([get(runs[seed]) for seed in sorted(runs)], float)


def spread(v: np.ndarray, digits: int) -> str:
    """Mean (least to largest seed)."""
    return f"{v.mean():.{digits}f} ({v.min():.{digits}f} to {v.max():.{digits}f})"


def difference(stored: dict[str, Any], T: int, arm: str, plain_T: int = 0) -> tuple[float, float, int]:
    """Mean difference to the plain arm, its error over seeds and blocks of points or images together, and the seeds.

    Both have the same seeds, test points and, at equal T, noise; the points are the same for every seed, so that only
    the spread of the seeds shrinks with their number. `plain_T` takes the plain arm of another T.
    """
    runs, plain = stored["runs"][str(T)][arm], stored["runs"][str(plain_T or T)]["plain"]
    per = "blocks" if "blocks" in next(iter(runs.values())) else "per_image"
    gaps = np.array([np.subtract(runs[s][per], plain[s][per]) for s in runs if s in plain])
    over_points = gaps.mean(0).var(ddof=1) / gaps.shape[1]
    over_seeds = gaps.mean(1).var(ddof=1) / len(gaps) if len(gaps) > 1 else 0.0
    return float(gaps.mean()), float(np.sqrt(over_points + over_seeds)), len(gaps)


def paired(stored: dict[str, Any], T: int, arm: str, plain_T: int = 0) -> str:
    """`difference` as text."""
    mean, error, seeds = difference(stored, T, arm, plain_T)
    return f"{mean:+.3f} ± {error:.3f}{' (images alone)' if seeds == 1 else ''}"


def table(name: str, stored: dict[str, Any]) -> str:
    """A row for each T and arm."""
    toy = name in RATE
    bound = "nats above exact" if toy else "bits per dimension"
    head = ["T", "arm", "parameters", "seeds", bound, "minus plain"]
    of_points = ["energy distance x 1000", "without the last noise", "rms r"]
    head += of_points if toy else ["recognised, %", "Frechet distance", "of the bound: t = 1"]
    rows = [head]
    for T in few(stored):
        for arm in ARMS:
            if runs := stored["runs"][str(T)].get(arm):
                rows.append(_row(stored, T, arm, runs, toy))
    rows += [row for arm in MANY_ARMS for row in _rows_of_many(stored, arm, toy)]
    if not toy and "floor" in stored["reference"]:
        real = stored["reference"]["floor"]
        cells = ["", "*real test images*", "", "", "", "", f"{100 * real['accuracy']:.1f}", f"{real['frechet']:.2f}"]
        rows.append([*cells, ""])
    if toy:
        floor = stored["reference"]
        rows.append(["", "*held-out data*", "", "", "", "", f"{1000 * floor['energy']:.1f}", "", ""])
    rows.insert(1, ["-"] * len(rows[0]))
    return _lines(rows)


def _lines(rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _rows_of_many(stored: dict[str, Any], arm: str, toy: bool) -> list[list[str]]:
    """An arm of T = 1000: a row for each sampler and number of steps."""
    rows, of = [], lambda get: values(stored, MANY, arm, get)
    for sampler, steps in _ways(stored, arm):
        way, label = f"{sampler} {steps}", f"{MANY_ARMS[arm][0]}, {SAMPLERS[sampler]}"
        cells = [f"{steps} of {MANY}", label, *_bound_cells(stored, MANY, arm, toy)]
        if toy:
            cells[4] = f"{of(lambda run: run['above']).mean():.3f} ± {_error_of_points(stored, arm):.3f}"
            cells += ["-", spread(1000 * of(lambda run, way=way: run["energy"][way]), 1), "-"]
        else:
            cells += _picture_cells(of, lambda run, way=way: run["drawn"][way])
        rows.append(cells)
    return rows


def _ways(stored: dict[str, Any], arm: str) -> list[tuple[str, int]]:
    """(sampler, number of steps) in which an arm of T = 1000 was drawn, under every seed."""
    runs = stored["runs"].get(str(MANY), {}).get(arm, {}).values()
    drawn = [set(run.get("energy") or run.get("drawn", {})) for run in runs]
    found = [key.split() for key in set.intersection(*drawn)] if drawn else []
    return sorted(((name, int(steps)) for name, steps in found), key=lambda way: (list(SAMPLERS).index(way[0]), way[1]))


def _error_of_points(stored: dict[str, Any], arm: str) -> float:
    """Of the bound of an arm of T = 1000: its few points are the same for every seed, whose mean leaves their error."""
    blocks = np.mean([run["blocks"] for run in stored["runs"][str(MANY)][arm].values()], axis=0)
    return float(blocks.std(ddof=1) / np.sqrt(len(blocks)))


def _row(stored: dict[str, Any], T: int, arm: str, runs: dict[str, Any], toy: bool) -> list[str]:
    first, of = next(iter(runs.values())), lambda get: values(stored, T, arm, get)
    cells = [str(T), ARMS[arm].label, *_bound_cells(stored, T, arm, toy)]
    if toy:
        size = max(np.mean([run["r_rms"] for run in runs.values()], axis=0)) if "r_rms" in first else None
        cells += [spread(1000 * of(lambda run, way=way: run["energy"][way]), 1) for way in (DRAW, MEAN)]
        cells += ["-" if size is None else f"{size:.2f}"]
    else:
        cells += _picture_cells(of, lambda run: run["quality"])
    return cells


def _bound_cells(stored: dict[str, Any], T: int, arm: str, toy: bool) -> list[str]:
    """Parameters, seeds, the bound, and how much of it is not plain diffusion's."""
    runs = stored["runs"][str(T)][arm]
    bound = values(stored, T, arm, lambda run: run["above" if toy else "bound"])
    cells = [f"{next(iter(runs.values()))['parameters'] / 1000:.0f} k", str(len(runs)), spread(bound, 3)]
    return [*cells, "0" if arm == "plain" or "plain" not in stored["runs"][str(T)] else paired(stored, T, arm)]


def _picture_cells(of: Any, quality: Any) -> list[str]:
    """How good the pictures are, of each run its `quality`, and the bound's step at t = 1."""
    recognised, distance = (of(lambda run, key=key: quality(run)[key]) for key in ("accuracy", "frechet"))
    return [spread(100 * recognised, 1), spread(distance, 2), f"{of(lambda run: run['terms'][1]).mean():.3f}"]


def trainings_table(name: str, results: Path) -> str:
    """A set after several trainings: what the gain over plain diffusion does. An arm of one is left out."""
    head = ["T", "arm", "training", "plain, bits", "arm, bits", "minus plain"]
    head += ["recognised, %: plain, arm", "Frechet distance: plain, arm"]
    rows = [head, ["-"] * len(head)]
    for T, arm in OF_TRAININGS:
        found = {label: load(stored_in(results, name, training)) for label, training in TRAININGS[name].items()}
        found = {label: v for label, v in found.items() if {"plain", arm} <= set(v["runs"].get(str(T), {}))}
        if len(found) > 1:
            rows += [_row_of_training(stored, T, arm, label) for label, stored in found.items()]
    return _lines(rows)


def _row_of_training(stored: dict[str, Any], T: int, arm: str, label: str) -> list[str]:
    means = lambda get: [values(stored, T, of, get).mean() for of in ("plain", arm)]
    bits, recognised = means(lambda run: run["bound"]), means(lambda run: run["quality"]["accuracy"])
    cells = [str(T), ARMS[arm].label, label, *(f"{v:.3f}" for v in bits), paired(stored, T, arm)]
    cells += [", ".join(f"{100 * v:.1f}" for v in recognised)]
    return [*cells, ", ".join(f"{v:.2f}" for v in means(lambda run: run["quality"]["frechet"]))]


def against_more_steps(stored: dict[str, Any]) -> str:
    """The scale against plain diffusion of more steps: the same bound, or a better one, in fewer?"""
    head = ["with a scale, T", "above exact", "plain, T", "above exact", "difference"]
    rows = [head, ["-"] * len(head)]
    above = lambda T, arm: f"{values(stored, T, arm, lambda run: run['above']).mean():.3f}"
    plain = [T for T in few(stored) if "plain" in stored["runs"][str(T)]]
    for T in few(stored):
        if "scale" in stored["runs"][str(T)]:
            for more in (m for m in plain if T < m <= 4 * T):
                cells = [str(T), above(T, "scale"), str(more), above(more, "plain")]
                rows.append([*cells, paired(stored, T, "scale", more)])
    return _lines(rows)


def gains_table(sets: dict[str, dict[str, Any]]) -> str:
    """What each arm takes off the bound of plain diffusion, and how much there is to take; bold beyond two errors.

    On points that is plain diffusion's distance from the exact value, on pictures, of which the exact value is not
    known, at the least its distance from its own best bound in more steps.
    """
    others = [arm for arm in ARMS if arm != "plain"]
    rows = [["set", "T", "plain", "to gain", *(ARMS[arm].label for arm in others)]]
    rows.append(["-"] * len(rows[0]))
    for name, stored in sets.items():
        of = "above" if name in RATE else "bound"
        times = [T for T in few(stored) if "plain" in stored["runs"][str(T)]]
        plain = {T: values(stored, T, "plain", itemgetter(of)).mean() for T in times}
        for T in (T for T in times if set(others) & set(stored["runs"][str(T)])):
            best = 0.0 if name in RATE else min((v for M, v in plain.items() if M > T), default=np.nan)
            gap = "?" if np.isnan(best) else f"{plain[T] - best:.3f}"
            rows.append([name, str(T), f"{plain[T]:.3f}", gap, *(_gain(stored, T, arm) for arm in others)])
    return _lines(rows)


def _gain(stored: dict[str, Any], T: int, arm: str) -> str:
    if arm not in stored["runs"][str(T)]:
        return "-"
    mean, error, _ = difference(stored, T, arm)
    text = paired(stored, T, arm)
    return f"**{text}**" if abs(mean) > 2 * error else text


def distances_table(sets: dict[str, dict[str, Any]]) -> str:
    """Frechet distances of pictures drawn in T evaluations by each arm, mean of the seeds; bold where every seed of an
    arm lies below the plain one of the same seed."""
    rows = [["set", "T", *(of.label for of in ARMS.values())]]
    rows.append(["-"] * len(rows[0]))
    for name, stored in sets.items():
        of = lambda T, arm, stored=stored: values(stored, T, arm, lambda run: run["quality"]["frechet"])
        for T in (T for T in few(stored) if len(stored["runs"][str(T)]) > 1):
            found, plain = {arm: of(T, arm) for arm in ARMS}, of(T, "plain")
            better = {arm: len(v) == len(plain) > 1 and (v < plain).all() for arm, v in found.items()}
            text = lambda arm, found=found: f"{found[arm].mean():.2f}" if len(found[arm]) else "-"
            rows.append([name, str(T), *(f"**{text(arm)}**" if better[arm] else text(arm) for arm in ARMS)])
    return _lines(rows)


def runs_table(sets: dict[str, dict[str, Any]]) -> str:
    """The arms that have been run of each set at each T that the study asks about."""
    rows = [["set", *(f"T = {T}" for T in ASKED)], ["-"] * (len(ASKED) + 1)]
    for name, stored in sets.items():
        found = ([arm for arm in ARMS | USERS if stored["runs"].get(str(T), {}).get(arm)] for T in ASKED)
        rows.append([name, *(", ".join(arms) or "-" for arms in found)])
    return _lines(rows)


@dataclass(frozen=True)
class Curves:
    """A set's three measures over T.

    Attributes:
        bound, samples: titles of the first and the last.
        of_bound, of_samples: a run's figure of each.
        of_way: of a model of T = 1000, its samples by a way of drawing.
    """

    bound: str
    samples: str
    of_bound: Callable[[dict[str, Any]], float]
    of_samples: Callable[[dict[str, Any]], float]
    of_way: Callable[[dict[str, Any], str], float]


CURVES = {
    "mixture": Curves(
        bound="bound above exact, nats",
        samples="energy distance x 1000, without last noise",  # as solvers end, beside which they stand
        of_bound=lambda run: run["above"],
        of_samples=lambda run: 1000 * np.float64(run["energy"][MEAN]),
        of_way=lambda run, way: 1000 * np.float64(run["energy"][way]),
    ),
}
CURVES |= dict.fromkeys(
    ("digits", "fashion14"),
    Curves(
        bound="bound, bits per dimension",
        samples="Frechet distance",
        of_bound=lambda run: run["bound"],
        of_samples=lambda run: run["quality"]["frechet"],
        of_way=lambda run, way: run["drawn"][way]["frechet"],
    ),
)


def plot_curves(sets: dict[str, dict[str, Any]], path: Path) -> None:
    """A row for each set over T: bound, gain over plain, samples at T evaluations; bands from least to largest seed."""
    fig, axes = figure(11, 3.0 * len(sets) + 0.6, len(sets), 3)
    for row, (name, stored) in zip(axes, sets.items(), strict=True):
        of = CURVES[name]
        titles = (f"{name}: {of.bound}", "gain in the bound over plain", of.samples)
        gets = (of.of_bound, None, of.of_samples)
        for ax, title, get in zip(row, titles, gets, strict=True):
            for i, (arm, facts) in enumerate(ARMS.items()):
                line = {T: _curve(stored, T, arm, get, of.of_bound) for T in few(stored)}
                _plot_arm(ax, line, facts, aside=2 ** (0.07 * (i - 2)))
            ax.set_xscale("log", base=2)
            ax.set_xlim(1.8, 72)
            ax.xaxis.set_major_formatter("{x:g}")
            ax.set_title(title, fontsize=9)
            ax.set_xlabel("T, the number of network evaluations", fontsize=8)
        for arm, (label, colour) in MANY_ARMS.items():
            for sampler, style in STYLES.items():
                if steps := [n for used, n in _ways(stored, arm) if used == sampler]:
                    ways = [partial(of.of_way, way=f"{sampler} {n}") for n in steps]
                    means = [values(stored, MANY, arm, way).mean() for way in ways]
                    row[2].plot(steps, means, style, color=colour, label=f"{label}, {SAMPLERS[sampler]}")
        row[1].axhline(0, color="#9aa5b1", linewidth=0.8)
        if name in RATE:
            row[0].set_ylim(bottom=0)
            row[2].set_yscale("symlog", linthresh=1)  # held-out points are at 0, give or take
            row[2].yaxis.set_major_formatter("{x:g}")
    lines = [line for ax in axes.flat for line in ax.lines if not line.get_label().startswith("_")]
    handles = {line.get_label(): line for line in lines}
    fig.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=7.5, frameon=False)
    write(fig, path)


def _plot_arm(ax: Any, line: dict[int, np.ndarray | None], facts: Arm, aside: float) -> None:
    """{T: a figure of each seed, where it was run}: the mean, and a band around it; of a single T a bar, `aside` of
    those of other arms."""
    line = {T: v for T, v in line.items() if v is not None and len(v)}
    if line:
        means, at = [v.mean() for v in line.values()], list(line) if len(line) > 1 else [aside * T for T in line]
        ax.plot(at, means, color=facts.colour, label=facts.label, marker="o", markersize=3)
        low, high = ([f(v) for v in line.values()] for f in (np.min, np.max))
        if len(line) > 1:
            ax.fill_between(at, low, high, color=facts.colour, alpha=0.15, linewidth=0)
        else:
            ax.vlines(at, low, high, color=facts.colour)


def _curve(stored: dict[str, Any], T: int, arm: str, get: Any, bound: Any) -> np.ndarray | None:
    """A figure of each seed; without `get` the gain in the bound over the plain arm of the same seed."""
    if get is not None:
        return values(stored, T, arm, get)
    plain, own = (values(stored, T, name, bound) for name in ("plain", arm))
    return plain - own if arm != "plain" and len(plain) == len(own) else None


def plot_arrows(run: dict[str, Any], path: Path) -> None:
    """Where the shift moves the eight components of the mixture at each t: the mean of x_t without it, and with it."""
    fig, axes = figure(2.7 * len(run["arrows"]), 3.0, 1, len(run["arrows"]))
    for t, (ax, rows) in enumerate(zip(axes[0], run["arrows"], strict=True), start=1):
        rows = np.array(rows)
        for i, (x, y, dx, dy) in enumerate(rows):
            colour = CLASS_COLOURS[i * len(CLASS_COLOURS) // len(rows)]
            ax.scatter([x], [y], s=18, facecolors="white", edgecolors=colour)
            ax.annotate("", (x + dx, y + dy), (x, y), arrowprops={"arrowstyle": "->", "color": colour})
        limit = 1.1 * np.abs(np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:]])).max()
        ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
        ax.set_title(f"t = {t}, log SNR {run['process']['log_snr'][t - 1]:.1f}", fontsize=8)
    write(fig, path)


def plot_pictures(stored: dict[str, Any], path: Path) -> None:
    """Samples of seed 0 of the plain and the contextual models, a row each, under real images."""
    rows = {"real": stored["reference"]["picture"]}
    for T in few(stored):
        for arm in ("plain", "free", "scale"):
            if run := stored["runs"][str(T)].get(arm, {}).get("0"):
                rows[f"T = {T}, {ARMS[arm].label}"] = run["picture"]
    plot_strips(rows, path)


def main(results: Path = RESULTS, folder: Path = Path(__file__).parent, page: Path = PAGE) -> None:
    """Draws and fills in whatever there are results for."""
    sets = {name: load(results / f"steps-{name}.json") for name in SETS}
    for name, stored in sets.items():
        if stored["runs"] and page.is_file():
            replace_table(page, f"steps-{name}", table(name, stored))
    for name in PICTURES:
        if sets[name]["runs"]:
            plot_pictures(sets[name], folder / f"steps-{name}.png")
    mixture = sets["mixture"]
    for name in TRAININGS:
        if page.is_file() and sets[name]["runs"]:
            replace_table(page, f"steps-{name}-trainings", trainings_table(name, results))
    if page.is_file() and any(stored["runs"] for stored in sets.values()):
        shown = {name: stored for name, stored in sets.items() if name not in RATE or name == "mixture"}
        replace_table(page, "steps-gains", gains_table(shown))
        replace_table(page, "steps-distances", distances_table({k: v for k, v in shown.items() if k not in RATE}))
        replace_table(page, "steps-runs", runs_table(shown))
    if mixture["runs"] and page.is_file():
        replace_table(page, "steps-more", against_more_steps(mixture))
    if mixture["runs"]:
        plot_curves({name: sets[name] for name in CURVES if sets[name]["runs"]}, folder / "steps.png")
        runs = mixture["runs"].get("4", {}).get("free", {}).values()
        if shown := [run for run in runs if "arrows" in run]:
            plot_arrows(shown[0], folder / "steps-arrows.png")


if __name__ == "__main__":
    main()
