"""Writes the table of docs/video/results into docs/RESULTS.md, between its two markers.

    python -m docs.video.table
"""

import json
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
BOUNDS = {AUTOENCODER: "autoencoder alone", INVERSION: "inversion alone"}
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
    """Mean and standard deviation over clips and seeds (a clip's kinds of edit are averaged first)."""
    if not values:
        return "-"
    values = factor * np.asarray(values)
    spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{spread}"


def lines(runs: list[dict[str, Any]]) -> list[str]:
    """The table: a row for each method with and without the adapter, and the two that bound them all."""
    groups: dict[tuple[str, bool], list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        groups[run["method"], run["adapter"]].append(run)
    table = ["| method | adapter | runs (clips, seeds) | " + " | ".join(c[0] for c in COLUMNS) + " |"]
    table.append("|-" * (len(COLUMNS) + 3) + "|")
    for name in METHODS:
        for adapter in (True, False):
            if found := groups.get((name, adapter)):
                cells = [cell(_values(found, kinds, figure), *how) for _, kinds, figure, *how in COLUMNS]
                clips, seeds = ({run[key] for run in found} for key in ("clip", "seed"))
                count = f"{len(found)} ({len(clips)}, {len(seeds)})"
                table.append(f"| {name} | {'with' if adapter else 'without'} | {count} | {' | '.join(cells)} |")
    for name, words in BOUNDS.items():
        cells = [cell(_values(runs, (name,), figure), *how) for _, _, figure, *how in COLUMNS]
        table.append(f"| {words} | | | {' | '.join(cells)} |")
    return table


def _values(runs: list[dict[str, Any]], kinds: tuple[str, ...], figure: str) -> list[float]:
    """One value of each run: the mean over the kinds of edit that have the figure."""
    found = ([run["rows"][kind][figure] for kind in kinds if figure in run["rows"].get(kind, {})] for run in runs)
    return [float(np.mean(values)) for values in found if values]


def write(page: Path = PAGE, results: Path = RESULTS) -> None:
    """Puts the table between the page's markers."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    text = before + BEGIN + "\n" + "\n".join(lines(stored(results))) + "\n\n" + END + after
    with atomic(page) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
