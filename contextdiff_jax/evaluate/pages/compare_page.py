"""One page of several runs: their figures side by side, and differences on the same prompts from the same noise."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate.groups import Seen
from contextdiff_jax.evaluate.pages import tables
from contextdiff_jax.evaluate.pages.charts import Curve, chart
from contextdiff_jax.evaluate.pages.gallery import gallery
from contextdiff_jax.evaluate.pages.html import cell, number, page, table, text
from contextdiff_jax.evaluate.pages.run import Run
from contextdiff_jax.evaluate.paired import Difference, paired
from contextdiff_jax.files import atomic, check_file

FILE = "compare.html"
CURVES = ("validation_loss", "loss", "images_per_second")
TABLES = {
    "alignment": tables.alignment,
    "judge_features": tables.distances,
    "spaces": tables.spaces,
    "bits_per_dim": tables.bits,
    "samples_per_second": tables.speeds,
}
SAME_IMAGES = ("data.source", "data.preset", "data.seed", "data.image_size")  # keys that say which held-out images
BOUND = ("chosen", "batch_size", "timesteps", "dequantize")  # and what of them was measured how


def compare_on_command(runs: Sequence[str], out: str) -> None:
    """`--mode=compare`: writes the page and prints the differences.

    Raises:
        UserError: fewer than two runs, one twice, or a folder that holds none.
    """
    path, found = _page(out or FILE), _read(runs)
    for line in differences_in_words(found):
        print(line)
    print(f"written: {write_compare(runs, path)}")


def write_compare(folders: Sequence[str | Path], path: str | Path) -> Path:
    """Writes the page.

    Args:
        folders: of the runs; the first is what the others are compared with.
        path: of the page; a folder gets compare.html.

    Raises:
        UserError: fewer than two runs, one twice, or a folder that holds none.
    """
    runs, path = _read(folders), _page(path)
    names = names_of(runs)
    sections = [
        ("differences", "Paired differences", differences(runs)),
        ("figures", "Figures", figures(runs)),
        ("pictures", "Pictures", pictures(runs)),
        ("training", "Training", curves(runs)),
        ("configs", "What differs", configs(runs)),
    ]
    head = f'<p class="soft">{text(names[0])} is what the others are compared with.</p>'
    foot = f"<p>{text('; '.join(str(run.folder) for run in runs))}. Nothing on this page is loaded from elsewhere.</p>"
    with atomic(path) as temporary:
        temporary.write_text(page(" / ".join(names), head, sections, foot), encoding="utf-8")
    return path


def _read(folders: Sequence[str | Path]) -> list[Run]:
    if len({Path(folder).resolve() for folder in folders}) < max(2, len(folders)):
        raise UserError(
            f"{len(folders)} runs ({', '.join(map(str, folders))}): --mode=compare needs two or more different ones"
        )
    return [Run.read(folder) for folder in folders]


def _page(path: str | Path) -> Path:
    """Where the page goes; it can be written there."""
    path = Path(path) / FILE if Path(path).is_dir() or not Path(path).suffix else Path(path)
    check_file(path)
    return path


def names_of(runs: Sequence[Run]) -> list[str]:
    """The folders' names; with as many of the folders above as tell them apart."""
    parts = [run.folder.resolve().parts for run in runs]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(of[-depth:]) for of in parts]
        if len(set(names)) == len(names):
            break
    return names


def same_questions(first: Run, other: Run) -> tuple[list[tuple[Seen, Seen]], list[str]]:
    """Pairs of groups with the same prompts from the same noise; and why others are no pairs."""
    if not first.seen or not other.seen:
        missing = first if not first.seen else other
        return [], [f"{missing.name} has no kept marks: evaluate it again with --mode=eval"]
    if first.seed != other.seed:
        return [], [_other_noise(first, other)]
    by_name = {kept.name: kept for kept in other.seen}
    for kept in other.seen:  # a run without an adapter has one setting, which is compared with the other's adapter on
        by_name.setdefault(f"{kept.group}, adapter on" if not kept.setting else kept.group, kept)
    alike, other_prompts = [], []
    for a, b in ((kept, by_name[kept.name]) for kept in first.seen if kept.name in by_name):
        if (a.captions, a.places) == (b.captions, b.places):
            alike.append((a, b))
        else:
            other_prompts.append(a.name)
    differ = f"{first.name} and {other.name} were not asked the same prompts"
    return alike, [f"{name}: {differ}" for name in other_prompts] if alike else [differ]


def _other_noise(first: Run, other: Run) -> str:
    return f"the noise differs: seed {first.seed} of {first.name}, {other.seed} of {other.name}"


def same_images(first: Run, other: Run) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], list[str]]:
    """{setting: bits of both runs} on the same held-out images; and why others are no pairs. A run without an adapter
    is compared with the other under both of its settings."""
    if not first.bits or not other.bits:
        return {}, []
    settings, flat = first.bits if len(first.bits) > 1 else other.bits, [run.flat_config() for run in (first, other)]
    differ = [key for key in SAME_IMAGES if flat[0].get(key) != flat[1].get(key)]
    asked = [next(iter(run.figures.get("bits_per_dim", {}).values()), {}).get("protocol", {}) for run in (first, other)]
    differ += [f"the bound's {key}" for key in BOUND if asked[0].get(key) != asked[1].get(key)]
    if first.records != other.records:
        differ.append("the records")
    if differ:
        return {}, [f"bits per dimension: the held-out images or the bound differ ({', '.join(differ)})"]
    if first.seed != other.seed:
        return {}, [f"bits per dimension: {_other_noise(first, other)}"]
    of = lambda run, setting: next(iter(run.bits.values())) if len(run.bits) == 1 else run.bits.get(setting, ())
    pairs = {setting: (of(first, setting), of(other, setting)) for setting in settings}
    alike = {setting: (a, b) for setting, (a, b) in pairs.items() if len(a) == len(b)}
    why = [
        f"bits per dimension, {setting}: {len(a)} images against {len(b)}"
        for setting, (a, b) in pairs.items()
        if setting not in alike
    ]
    return alike, why


def measured(first: Run, other: Run) -> tuple[list[tuple[str, str, Difference]], list[str]]:
    """[(pictures, measure, Difference)] of what can be paired, and why the rest cannot."""
    rows: list[tuple[str, str, Difference]] = []
    pairs, left_out = same_questions(first, other)
    for a, b in pairs:
        for measure in (m for m in a.marks if m in b.marks):
            if len(a.marks[measure]) != len(b.marks[measure]):
                left_out.append(f"{a.name}: {len(a.marks[measure])} pictures against {len(b.marks[measure])}")
                continue
            rows.append((a.name, measure, paired(a.marks[measure], b.marks[measure])))
    bits, why = same_images(first, other)
    for setting, (a, b) in bits.items():
        rows.append((f"held-out images, {setting}", "bits per dimension", paired(a, b)))
    return rows, left_out + why


def differences(runs: Sequence[Run]) -> str:
    """A table for each run against the first."""
    parts = [
        "<p>Each difference is the mean over the same prompts from the same noise, with their standard error.",
        " Within two errors of zero no difference was found. None of these errors knows of other training seeds.</p>",
    ]
    names = names_of(runs)
    for name, run in zip(names[1:], runs[1:], strict=True):
        rows, left_out = measured(runs[0], run)
        body = [("", [text(f"{shown}: {measure}"), *_cells(measure, d)]) for shown, measure, d in rows]
        if body:
            parts.append(table(f"{name} minus {names[0]}", ("what", "difference", "beyond two errors", "pairs"), body))
        parts.append("".join(f'<p class="small soft">Not paired: {text(line)}.</p>' for line in left_out))
    return "".join(parts)


def _cells(measure: str, d: Difference) -> list[str]:
    """The difference, whether it lies beyond its error, and the number of pairs."""
    higher_is_better = measure in tables.SHARES
    factor, unit = (100.0, " %") if higher_is_better else (1.0, "")
    error = "" if np.isnan(d.stderr) else f" ± {factor * d.stderr:.2g}"
    better = "better" if (d.mean > 0) == higher_is_better else "worse"
    verdict = "one pair" if d.n == 1 else better if abs(d.mean) > 2 * d.stderr else "none found"
    return [cell(text(f"{factor * d.mean:+.3g}{error}{unit}")), cell(text(verdict)), cell(number(d.n))]


def differences_in_words(runs: Sequence[Run]) -> list[str]:
    """The same for a terminal."""
    names, lines = names_of(runs), []
    for name, run in zip(names[1:], runs[1:], strict=True):
        rows, left_out = measured(runs[0], run)
        lines += [f"{name} - {names[0]}  {p}, {m}: {d.mean:+.4g} +- {d.stderr:.2g}  (n = {d.n})" for p, m, d in rows]
        lines += [f"{name} - {names[0]}  not paired: {line}" for line in left_out]
    return lines


def figures(runs: Sequence[Run]) -> str:
    """The tables of all runs, a row for each run and setting."""
    merged: dict[str, dict] = {kind: {} for kind in TABLES}
    for name, run in zip(names_of(runs), runs, strict=True):
        for kind, rows in merged.items():
            for row, value in run.figures.get(kind, {}).items():
                everywhere = [other.figures.get(kind, {}).get(row, value) == value for other in runs]
                shared = row.startswith(tables.BOUNDS) and all(everywhere)
                rows[row if shared else f"{name}: {row}"] = value
    return "".join(TABLES[kind](rows) for kind, rows in merged.items() if rows)


def pictures(runs: Sequence[Run]) -> str:
    """The kept pictures of every run under the same prompt, from the same noise."""
    parts, names = [], names_of(runs)
    for kept in runs[0].seen:
        if kept.setting == "adapter off":
            continue
        arms = [(names[0], kept)]
        for name, run in zip(names[1:], runs[1:], strict=True):
            arms += [(name, b) for a, b in same_questions(runs[0], run)[0] if a is kept]
        if len(arms) < 2:
            continue
        parts.append(gallery(kept.group.capitalize(), arms))
    return "".join(parts)


def curves(runs: Sequence[Run]) -> str:
    """Curves of all runs in one chart each."""
    names, parts = names_of(runs), []
    for metric in CURVES:
        found = {
            name: Curve(*run.curves[metric]) for name, run in zip(names, runs, strict=True) if metric in run.curves
        }
        parts.append(chart(metric.replace("_", " "), found, "step", log=metric.endswith("loss")))
    return f'<div class="charts">{"".join(parts)}</div>' if any(parts) else ""


def configs(runs: Sequence[Run]) -> str:
    """Every key whose value is not the same in all runs."""
    flat = [run.flat_config() for run in runs]
    keys = sorted(set().union(*flat))
    rows = [
        ("", [f"<code>{text(key)}</code>", *(cell(text(c.get(key, "-")), "text") for c in flat)])
        for key in keys
        if len({repr(c.get(key)) for c in flat}) > 1
    ]
    return (
        table("Keys of the configs that differ", ("key", *names_of(runs)), rows)
        if rows
        else "<p>The configs are the same.</p>"
    )
