"""report.html: what a run was, how it went and what came out, in one file that needs no network."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from contextdiff_jax.editing.result import NO_EDITS
from contextdiff_jax.evaluate.groups import Seen
from contextdiff_jax.evaluate.pages import tables
from contextdiff_jax.evaluate.pages.charts import Curve, chart
from contextdiff_jax.evaluate.pages.gallery import gallery
from contextdiff_jax.evaluate.pages.html import (
    cell,
    details,
    facts,
    number,
    page,
    picture,
    table,
    text,
    tiles,
    video,
)
from contextdiff_jax.evaluate.pages.protocols import of_evaluation
from contextdiff_jax.evaluate.pages.run import Run
from contextdiff_jax.files import atomic, read_object

FILE = "report.html"
FIRST_CURVES = ("loss", "validation_loss", "images_per_second")
CONFIGURED = ("data.source", "data.preset", "data.image_size", "data.batch_size", "train.num_steps", "loss.objective")


def write_report_page(workdir: str | Path) -> Path:
    """Writes report.html into the folder of a run, from what lies there.

    Args:
        workdir: of a training, an evaluation or both.

    Returns:
        The page's path.

    Raises:
        UserError: no run there, or damaged files.
    """
    run = Run.read(workdir)
    sections = [
        ("results", "Results", results(run)),
        ("pictures", "Pictures", pictures(run.seen)),
        ("heatmaps", "Where words look", heatmaps(run.folder)),
        ("clips", "Edited clips", clips(run)),
        ("training", "Training", training(run)),
        ("protocol", "Protocol", protocol(run)),
        ("run", "What was trained", made_of(run)),
    ]
    with atomic(run.folder / FILE) as temporary:
        temporary.write_text(page(run.name, head(run), sections, foot(run)), encoding="utf-8")
    return run.folder / FILE


def head(run: Run) -> str:
    """One line of what it is, and the main figures."""
    config = run.flat_config()
    what = [f"{config['task']} run" if "task" in config else "evaluation"]
    if "data.source" in config:
        what.append(f"{config['data.source']} {config.get('data.preset', '')}".strip())
        what.append(f"{config['data.image_size']} x {config['data.image_size']} pixels")
    if run.figures.get("step") is not None:
        what.append(f"judged at step {run.figures['step']:,}")
    return f'<p class="soft">{text(" · ".join(what))}</p>{tiles(main_figures(run))}'


def main_figures(run: Run) -> dict[str, tuple[str, str]]:
    """At most four figures, each with what the same says with the adapter off."""
    found: dict[str, tuple[str, str]] = {}
    alignment = run.figures.get("alignment", {})
    trained = [name for name in alignment if not name.startswith(tables.BOUNDS) and not name.endswith("adapter off")]
    for name in trained[:2]:
        measure = next((m for m in ("both", "object") if m in alignment[name]), None)
        if measure:
            group = name.removesuffix(", adapter on")
            other = alignment.get(f"{group}, adapter off", {})
            shown = number(alignment[name][measure], alignment[name].get(f"{measure}_stderr"), percent=True)
            under = (
                f"adapter off {number(other[measure], other.get(f'{measure}_stderr'), percent=True)}"
                if measure in other
                else ""
            )
            found[f"recognised, {group}"] = (shown, under)
    rows = run.figures.get("judge_features", {})
    for name in [n for n in ("adapter on", "samples") if n in rows][:1]:
        under = ", ".join(f"{n} {tables.distance(rows[n])}" for n in rows if n != name)
        found["judge Frechet distance"] = (tables.distance(rows[name]), under)
    rows = run.figures.get("bits_per_dim", {})
    for name, row in list(rows.items())[:1]:
        under = ", ".join(f"{n} {number(r['mean'], r.get('stderr'))}" for n, r in rows.items() if n != name)
        found["bits per dimension"] = (number(row["mean"], row.get("stderr")), under)
    for space, row in list(run.figures.get("spaces", {}).items())[: 0 if found else 1]:
        found |= _of_space(space, row)
    if not found and "loss" in run.curves:
        steps, values = run.curves["loss"]
        found["training loss"] = (number(float(values[-1])), f"at step {int(steps[-1]):,}; no result")
    return found


def _of_space(space: str, row: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The first figure in a feature space; {} where all are refused."""
    found = [
        (setting, key, number(*figure))
        for setting in tables.settings_in(row)
        for metric, figures in list(row[setting]["figures"].items())[:1]
        for key, figure in list(tables.shown(metric, figures).items())[:1]
    ]
    if not found:
        return {}
    _, key, value = found[0]
    under = ", ".join(f"{setting} {other}" for setting, k, other in found[1:] if k == key)
    return {f"{space}: {key.replace('_', ' ')}": (value, under)}


def results(run: Run) -> str:
    """Every figure with its error."""
    figures, parts = run.figures, []
    if not figures:
        return "<p>This run has not been evaluated: <code>--mode=eval</code> does so.</p>"
    if "alignment" in figures:
        parts.append(
            "<p>The judge is a network that the model never saw. Adapter off is the same trained model, from the same "
            "noise, with the shift of the process switched off.</p>" + tables.alignment(figures["alignment"])
        )
    if "judge_features" in figures:
        parts.append(tables.distances(figures["judge_features"]))
    for name, why in figures.get("judge_features_refused", {}).items():
        parts.append(f'<p class="small soft">{text(f"{name}: refused: {why}")}.</p>')
    if "spaces" in figures:
        parts.append(tables.spaces(figures["spaces"]))
    if "bits_per_dim" in figures:
        parts.append(tables.bits(figures["bits_per_dim"]))
    if "samples_per_second" in figures:
        parts.append(tables.speeds(figures["samples_per_second"]))
    if run.bench:
        ratio = {k: number(v) for k, v in run.bench.items() if isinstance(v, int | float)}
        parts.append(facts("What the adapter costs in training (--mode=bench)", ratio))
    return "".join(parts)


def pictures(seen: Sequence[Seen]) -> str:
    """The kept pictures of each group, with and without the adapter side by side."""
    parts = []
    for group in dict.fromkeys(kept.group for kept in seen):
        arms = [(kept.setting, kept) for kept in seen if kept.group == group]
        parts.append(gallery(group.capitalize(), arms))
    same = "<p>Pictures of a card start from the same noise.</p>" if any(kept.setting for kept in seen) else ""
    return same + "".join(parts) if parts else ""


def heatmaps(folder: Path) -> str:
    """The pictures that --mode=heatmaps left, with the shares of heat in the object's mask."""
    parts = []
    for file in sorted(folder.glob("heatmaps*/heatmaps.json")):
        about = read_object(file, "draw the heatmaps again")
        for drawn in about["pictures"]:
            with Image.open(file.parent / drawn["file"]) as image:
                alt = f"attention of each word for {drawn['prompt']!r}, with one colour scale for all maps"
                shown = picture(np.asarray(image.convert("RGB")), alt, largest=1100)
            parts.append(f'<figure>{shown}<figcaption class="small soft">{text(drawn["prompt"])}</figcaption></figure>')
        if about.get("shares"):
            rows = [
                ("", [text(name), *(cell(text(number(v))) for v in row.values())])
                for name, row in about["shares"].items()
            ]
            header = ["words", *next(iter(about["shares"].values()))]
            parts.append(table("Share of a word's heat inside the mask, of held-out renders", header, rows))
    intro = (
        "<p>Text-image cross-attention over steps, layers and heads; brighter is more. Of a prompt it is that of the "
        "process that draws the picture, of rows with the prompt alone where there is guidance. Of a clip, and in the "
        "table of shares, it is that of given pictures on their way into noise: DDIM inversion, without guidance.</p>"
    )
    return intro + "".join(parts) if parts else ""


def clips(run: Run) -> str:
    """Every edit of a clip: the videos and the table of figures."""
    parts = []
    for folder in run.edits():
        about = read_object(folder / "edit.json", "edit again")
        targets = [name for name in about["rows"] if name not in NO_EDITS]
        parts.append(f"<h3>{text(folder.name)}: {text(about['source_prompt'])}</h3>")
        if (folder / "edit.mp4").is_file():
            shown = "source, reconstruction, then " + ", ".join(targets)
            parts.append(video(folder / "edit.mp4", shown) + f'<p class="small soft">Side by side: {text(shown)}.</p>')
        names = list(dict.fromkeys(name for row in about["rows"].values() for name in row))
        rows = [("", [text(k), *(cell(text(number(row.get(n)))) for n in names)]) for k, row in about["rows"].items()]
        parts.append(table(f"Figures of {folder.name}", ("clip", *names), rows))
        left_out = "".join(f"<li>{text(line)}</li>" for line in about.get("left_out", ()))
        parts.append(f"<ul>{left_out}</ul>" if left_out else "")
    return "".join(parts)


def training(run: Run) -> str:
    """Curves, the loss first, and the last preview."""
    drawn = {
        name: chart(_words(name), {name: Curve(*c)}, "step", log=name.endswith("loss"))
        for name, c in run.curves.items()
    }
    first = "".join(drawn.get(name, "") for name in FIRST_CURVES)
    rest = "".join(svg for name, svg in drawn.items() if name not in FIRST_CURVES)
    parts = [f'<div class="charts">{first}</div>' if first else ""]
    if first:
        parts.insert(0, "<p>A training loss is no result: the adapter can lower it without better pictures.</p>")
    if rest:
        parts.append(details("All other curves", f'<div class="charts">{rest}</div>'))
    for path in run.previews()[-1:]:
        with Image.open(path) as image:
            shown = picture(np.asarray(image.convert("RGB")), f"grid of samples, {path.stem}", largest=900)
        parts.append(details(f"Preview during training, {path.stem}", f'<p class="media">{shown}</p>'))
    return "".join(parts)


def protocol(run: Run) -> str:
    """How the figures came about."""
    if not run.figures:
        return ""
    about = {
        "checkpoint": f"step {run.figures.get('step', '-')}, exponential moving average of the parameters",
        "noise": f"seed {run.figures.get('seed', 0)}; picture i starts from the same noise in every group and setting",
        "errors": "standard errors over pictures of one trained model; they know nothing of other training seeds",
        "hardware of the evaluation": run.figures.get("hardware", "-"),
    }
    plain = {
        k: v
        for k, v in run.figures.items()
        if isinstance(v, str | int | float) and k not in ("title", "hardware", "step", "seed")
    }
    rest = {k: v for k, v in of_evaluation(run).items() if k not in ("hardware", "step", "seed")}
    return facts("How the figures were made", about | rest | {k: number(v) for k, v in plain.items()})


def made_of(run: Run) -> str:
    """Config, commit, data and hardware."""
    config = run.flat_config()
    about: dict[str, object] = {k: config[k] for k in CONFIGURED if k in config}
    if run.records:
        about["records"] = run.records
        about["digest of the records' identity"] = hashlib.sha256(run.records.encode()).hexdigest()[:16]
    for name, network in run.frozen.items():
        about[f"frozen: {name}"] = f"{network.get('digest', '-')} ({network.get('path', '-')})"
    parts = [facts("In short", about)] if about else []
    rows = []
    for start in run.starts:
        columns = [str(start.get(key) or "-") for key in ("time", "hardware", "commit")]
        columns.append(", ".join(f"{name} {version}" for name, version in start.get("versions", {}).items()))
        rows.append(("", [number(start["step"]), *(cell(text(column), "text") for column in columns)]))
    if rows:
        header = ("from step", "time (UTC)", "hardware", "commit", "versions")
        parts.append(table("Starts of the training", header, rows))
    if config:
        parts.append(details("The whole config", facts("config", {k: v for k, v in sorted(config.items())})))
    return "".join(parts)


def foot(run: Run) -> str:
    """Where the page comes from."""
    where = f"<code>{text(run.folder)}</code>"
    return f"<p>Written by contextdiff_jax from {where}. Nothing on this page is loaded from elsewhere.</p>"


def _words(name: str) -> str:
    return name.replace("_", " ")
