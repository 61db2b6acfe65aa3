"""Tables of figures, for the report of a run and for comparisons."""

from collections.abc import Mapping
from typing import Any

from contextdiff_jax.evaluate.alignment import counted
from contextdiff_jax.evaluate.metrics.base import shown
from contextdiff_jax.evaluate.pages.html import cell, details, facts, number, table, text
from contextdiff_jax.evaluate.pages.protocols import of_space

SHARES = ("object", "background", "both", "iou", "precision", "recall")
BOUNDS = ("ceiling", "chance", "floor")


def kind_of(name: str) -> str:
    """Attributes of a table's row: which arm it belongs to decides the colour."""
    if name.startswith(BOUNDS):
        return ' class="bound"'
    return ' class="off"' if name.endswith("adapter off") else ""


def share_cell(row: Mapping[str, Any], measure: str) -> str:
    """A share in per cent over a bar of its length."""
    if row.get(measure) is None:
        return cell("-")
    value = number(row[measure], row.get(f"{measure}_stderr"), percent=True)
    return cell(
        f'{text(value)}<span class="bar" aria-hidden="true"><i style="width:{100 * row[measure]:.1f}%"></i></span>'
    )


def alignment(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Did the judge find what was asked for?"""
    measures = [m for m in SHARES if any(m in row for row in rows.values())]
    body = [
        (kind_of(name), [text(name), *(share_cell(row, m) for m in measures), cell(text(counted(row)) or "-")])
        for name, row in rows.items()
    ]
    header = ["pictures", *({"iou": "overlap of boxes"}.get(m, m) for m in measures), "n"]
    return table("Recognised by the judge (mean ± standard error)", header, body)


def distance(row: Mapping[str, Any]) -> str:
    """A Frechet distance in the judge's features, and whether it rests on too few pictures."""
    return number(row.get("frechet")) + " (too few pictures)" * ("too_few" in row)


def distances(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Distances in the judge's features."""
    body = [
        (
            kind_of(name),
            [
                text(name),
                cell(distance(row)),
                share_cell(row, "precision"),
                share_cell(row, "recall"),
                cell(number(row.get("n"))),
                cell(text(row.get("against", ""))),
            ],
        )
        for name, row in rows.items()
    ]
    return table(
        "Do they look like renders? In the judge's own features",
        ("pictures", "Frechet distance", "precision", "recall", "n", "against"),
        body,
    )


def bits(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Bits per dimension with the terms of the bound."""
    terms = ("prior", "reconstruction", "diffusion")
    body = [
        (
            kind_of(name),
            [
                text(name),
                cell(text(number(row["mean"], row.get("stderr")))),
                *(cell(number(row.get(term))) for term in terms),
                cell(f"{number(row.get('images'))} of {text(row.get('split', ''))}"),
            ],
        )
        for name, row in rows.items()
    ]
    return table("Bits per dimension, the full bound (Eq. 4)", ("process", "bits", *terms, "images"), body)


def settings_in(space: Mapping[str, Any]) -> list[str]:
    """The settings under which samples were measured in a feature space."""
    return [name for name, value in space.items() if isinstance(value, Mapping) and "figures" in value]


def spaces(found: Mapping[str, Mapping[str, Any]]) -> str:
    """A table for each feature space, its protocol in the caption and below."""
    parts = []
    for name, space in found.items():
        body = []
        for setting in settings_in(space):
            for metric, figures in space[setting]["figures"].items():
                for key, (value, stderr) in shown(metric, figures).items():
                    cells = cell(text(number(value, stderr))), cell(number(figures["n"]))
                    body.append((kind_of(setting), [text(f"{key}, {setting}"), *cells]))
            for metric, why in space[setting]["refused"].items():
                body.append(
                    (kind_of(setting), [text(f"{metric}, {setting}"), cell(f"refused: {text(why)}", "text"), cell()])
                )
        reference = space["reference"]
        against = f"against {reference['n']} pictures of {reference.get('split', 'the held-out set')}"
        protocol = f"{name}: digest {space['digest']}, resized {space['resize']}, {against}"
        parts.append(table(protocol, ("figure", "value", "n"), body))
        parts.append(details(f"All of the protocol of {name}", facts("features and reference", of_space(space))))
    return "".join(parts)


def speeds(rows: Mapping[str, float]) -> str:
    """Pictures per second."""
    body = [(kind_of(name), [text(name), cell(number(value))]) for name, value in rows.items()]
    return table("Sampling speed", ("setting", "pictures per second"), body)
