"""One page of several runs: their figures side by side, differences on the same prompts, and how all were measured."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate.pages import protocols, tables
from contextdiff_jax.evaluate.pages.charts import Curve, chart
from contextdiff_jax.evaluate.pages.gallery import gallery
from contextdiff_jax.evaluate.pages.html import cell, details, facts, number, page, table, text
from contextdiff_jax.evaluate.pages.pairs import compared, same_questions
from contextdiff_jax.evaluate.pages.run import Run
from contextdiff_jax.evaluate.paired import Difference
from contextdiff_jax.files import atomic, check_file

FILE = "compare.html"
LEVEL = 0.05  # of Holm's p-values, below which a difference is said to be found
CURVES = ("validation_loss", "loss", "images_per_second")
TABLES = {
    "alignment": tables.alignment,
    "judge_features": tables.distances,
    "spaces": tables.spaces,
    "bits_per_dim": tables.bits,
    "samples_per_second": tables.speeds,
}


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
        ("protocols", "How they were measured", measured_how(runs)),
        ("configs", "What differs in the configs", configs(runs)),
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


def differences(runs: Sequence[Run]) -> str:
    """A table for each run against the first, under a warning where they were not measured alike."""
    names = names_of(runs)
    found, count = compared(runs, names)
    warned = protocols.warning(runs)
    parts = [
        f'<p class="warning" role="note">{text(warned[0].upper() + warned[1:])}. See <a href="#protocols">how they '
        "were measured</a>.</p>"
        if warned
        else "",
        "<p>Each difference is the mean over the same prompts with its standard error, from the same noise where a "
        "line does not say otherwise. None of these errors knows of other training seeds.</p>",
    ]
    if count > 1:
        parts.append(
            f"<p>Of {count} differences some lie beyond two errors by chance. So the verdict follows Holm's p-values "
            f"over all {count}, and finds one where they are below {LEVEL:g}.</p>"
        )
    for run in found:
        body = [("", [text(f"{what}: {measure}"), *_cells(measure, d, p)]) for what, measure, d, p in run.rows]
        if body:
            header = ("what", "difference", "found", "p (Holm)", "pairs")
            parts.append(table(f"{run.name} minus {names[0]}", header, body))
        parts.append("".join(f'<p class="small soft">Not paired: {text(line)}.</p>' for line in run.left_out))
    return "".join(parts)


def _cells(measure: str, d: Difference, p: float) -> list[str]:
    """The difference, what its p-value says, that, and the number of pairs."""
    higher_is_better = measure in tables.SHARES
    factor, unit = (100.0, " %") if higher_is_better else (1.0, "")
    error = "" if np.isnan(d.stderr) else f" ± {factor * d.stderr:.2g}"
    better = "better" if (d.mean > 0) == higher_is_better else "worse"
    verdict = "one pair" if d.n == 1 else better if p < LEVEL else "none found"
    shown = (f"{factor * d.mean:+.3g}{error}{unit}", verdict, "-" if np.isnan(p) else f"{p:.2g}", number(d.n))
    return [cell(text(column)) for column in shown]


def differences_in_words(runs: Sequence[Run]) -> list[str]:
    """The same for a terminal."""
    names = names_of(runs)
    found, count = compared(runs, names)
    lines = [f"WARNING: {warned}"] if (warned := protocols.warning(runs)) else []
    for run in found:
        title = f"{run.name} - {names[0]}"
        lines += [
            f"{title}  {what}, {m}: {d.mean:+.4g} +- {d.stderr:.2g}  (n = {d.n}, p = {p:.2g} by Holm over {count})"
            for what, m, d, p in run.rows
        ]
        lines += [f"{title}  not paired: {line}" for line in run.left_out]
    return lines


def measured_how(runs: Sequence[Run]) -> str:
    """What of the evaluations is not the same, and on demand what is."""
    names, differ = names_of(runs), protocols.differing(runs)
    missing = [name for name, run in zip(names, runs, strict=True) if not run.figures]
    parts = [f'<p class="small soft">{text(name)} has not been evaluated.</p>' for name in missing]
    if differ:
        rows = [
            ("", [f"<code>{text(key)}</code>", *(cell(text(value), "text") for value in values)])
            for key, values in differ.items()
        ]
        parts.append(table("What differs in how the figures were made", ("name", *names), rows))
    elif len(missing) < len(runs) - 1:
        parts.append("<p>The figures were made in the same way, as far as the evaluations say.</p>")
    same = {k: v for run in runs for k, v in protocols.of_run(run).items() if k not in differ}
    return "".join(parts) + (details("What is the same", facts("of all runs", same)) if same else "")


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
    """The kept pictures of every run under the same prompt."""
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
