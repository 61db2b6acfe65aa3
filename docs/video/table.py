"""Writes the tables of docs/video/results into docs/RESULTS.md, between its two markers.

    python -m docs.video.table
"""

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from contextdiff_jax.editing.methods import METHODS
from contextdiff_jax.editing.result import AUTOENCODER, INVERSION
from contextdiff_jax.files import atomic
from docs.video.run import RESULTS

PAGE = Path(__file__).parents[1] / "RESULTS.md"
BEGIN, END = "<!-- video study: begin -->\n", "<!-- video study: end -->\n"
ADAPTER = {"adapter": "with", "plain": "without", "never": "never had one"}
BOUNDS = {AUTOENCODER: "autoencoder alone", INVERSION: "inversion alone"}
ADAPTER_HEADING = (
    "With the adapter minus without: mean ± standard error over clips, and in how many of the pairs of runs that "
    "differ the figure is higher with it."
)
# Heading, kinds of edit that count, figure, factor, digits. What an edit was to change is not compared with the source.
COLUMNS = (
    ("object named, %", ("object", "both"), "judge_object", 100, 0),
    ("background named, %", ("background", "both"), "judge_background", 100, 0),
    ("background PSNR, dB (object swap)", ("object",), "background_psnr", 1, 1),
    ("object PSNR, dB (background swap)", ("background",), "object_psnr", 1, 1),
    ("CLIP-text", ("object", "background", "both"), "clip_text", 1, 3),
    ("CLIP-temp", ("object", "background", "both"), "clip_temp", 1, 3),
    ("warp error x 1000", ("object", "background", "both"), "warp_error", 1000, 1),
)


def stored(results: Path = RESULTS) -> list[dict[str, Any]]:
    """All results, in the order of their names."""
    return [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]


def cell(values: list[float], factor: float, digits: int) -> str:
    """Mean and standard deviation over clips and seeds (what a clip and a seed have several of is averaged first)."""
    if not values:
        return "-"
    values = factor * np.asarray(values)
    spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{spread}"


def lines(runs: list[dict[str, Any]]) -> list[str]:
    """The table: a row for each method and arm, and the two that bound them all."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        groups[run["method"], run["arm"]].append(run)
    table = ["| method | adapter | runs (clips, seeds) | " + " | ".join(c[0] for c in COLUMNS) + " |"]
    table.append("|-" * (len(COLUMNS) + 3) + "|")
    for name in METHODS:
        for arm, words in ADAPTER.items():
            if found := groups.get((name, arm)):
                cells = [cell(_values(found, kinds, figure), *how) for _, kinds, figure, *how in COLUMNS]
                table.append(f"| {name} | {words} | {_count(found)} | {' | '.join(cells)} |")
    for name, words in BOUNDS.items():
        for which, found in _bounds(runs, name).items():
            cells = [cell(_per_clip(found, name, figure), *how) for _, _, figure, *how in COLUMNS]
            table.append(f"| {words} | {which} | {_count(found)} | {' | '.join(cells)} |")
    return table


def differences(runs: list[dict[str, Any]]) -> list[str]:
    """The table of what the adapter changes: with it minus each arm without, method by method, of the same clips and
    seeds.

    A cell has the mean, its standard error over clips (of whose seeds the mean is taken first), and in how many of the
    pairs of runs that differ the figure is higher with the adapter.
    """
    table = ["| method | against | pairs of runs (clips, seeds) | " + " | ".join(c[0] for c in COLUMNS) + " |"]
    table.append("|-" * (len(COLUMNS) + 3) + "|")
    for name in METHODS:
        for other in [arm for arm in ADAPTER if arm != "adapter"]:
            arms = _by_pair(runs, name, "adapter"), _by_pair(runs, name, other)
            both = sorted(arms[0].keys() & arms[1].keys())
            if len({clip for clip, _ in both}) > 1:
                cells = [_difference(both, arms, *column) for _, *column in COLUMNS]
                count = _count([arms[0][pair] for pair in both])
                table.append(f"| {name} | {ADAPTER[other]} | {count} | {' | '.join(cells)} |")
    return table


def _by_pair(runs: list[dict[str, Any]], method: str, arm: str) -> dict[tuple[int, int], dict[str, Any]]:
    """{(clip, seed): run} of a method in one arm."""
    return {(r["clip"], r["seed"]): r for r in runs if (r["method"], r["arm"]) == (method, arm)}


def _difference(
    pairs: list[tuple[int, int]],
    arms: tuple[dict[tuple[int, int], dict[str, Any]], ...],
    kinds: tuple[str, ...],
    figure: str,
    factor: float,
    digits: int,
) -> str:
    """A cell of `differences`."""
    with_, without = (np.asarray(_values([arm[pair] for pair in pairs], kinds, figure)) for arm in arms)
    if len(with_) != len(pairs) or len(without) != len(pairs):
        return "-"
    found = factor * (with_ - without)
    clips = np.asarray([clip for clip, _ in pairs])
    of_clips = np.asarray([found[clips == clip].mean() for clip in np.unique(clips)])
    error = of_clips.std(ddof=1) / np.sqrt(len(of_clips))
    return f"{of_clips.mean():+.{digits}f} ± {error:.{digits}f} ({(found > 0).sum()} of {(found != 0).sum()})"


def _count(runs: list[dict[str, Any]]) -> str:
    """How many pairs of a clip and a seed, of how many clips and seeds."""
    pairs = {(run["clip"], run["seed"]) for run in runs}
    return f"{len(pairs)} ({len({clip for clip, _ in pairs})}, {len({seed for _, seed in pairs})})"


def _bounds(runs: list[dict[str, Any]], name: str) -> dict[str, list[dict[str, Any]]]:
    """{arm in words: runs} of a row that bounds all methods; one group where the arms change nothing but roundings, as
    in the autoencoder."""
    arms = {words: [r for r in runs if r["arm"] == arm and name in r["rows"]] for arm, words in ADAPTER.items()}
    arms = {words: found for words, found in arms.items() if found}
    rows = [{(r["clip"], r["seed"], r["method"]): r["rows"][name] for r in found} for found in arms.values()]
    pairs = [(rows[0][key], other[key]) for other in rows[1:] for key in rows[0].keys() & other.keys()]
    alike = all(a.keys() == b.keys() and all(math.isclose(a[f], b[f]) for f in a) for a, b in pairs)
    return {"": [run for found in arms.values() for run in found]} if alike else arms


def _per_clip(runs: list[dict[str, Any]], name: str, figure: str) -> list[float]:
    """One value of each clip and seed: the mean over the runs that repeat the row."""
    found: dict[tuple[int, int], list[float]] = defaultdict(list)
    for run in runs:
        if figure in run["rows"].get(name, {}):
            found[run["clip"], run["seed"]].append(run["rows"][name][figure])
    return [float(np.mean(values)) for values in found.values()]


def _values(runs: list[dict[str, Any]], kinds: tuple[str, ...], figure: str) -> list[float]:
    """One value of each run: the mean over the kinds of edit that have the figure."""
    found = ([run["rows"][kind][figure] for kind in kinds if figure in run["rows"].get(kind, {})] for run in runs)
    return [float(np.mean(values)) for values in found if values]


def write(page: Path = PAGE, results: Path = RESULTS) -> None:
    """Puts the tables between the page's markers."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    runs = stored(results)
    tables = "\n".join(lines(runs)), ADAPTER_HEADING, "\n".join(differences(runs))
    text = before + BEGIN + "\n" + "\n\n".join(tables) + "\n\n" + END + after
    with atomic(page) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
