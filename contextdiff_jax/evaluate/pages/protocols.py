"""How the figures of a run were made, from its eval.json; and what of that is not the same in several runs."""

from collections.abc import Mapping, Sequence
from typing import Any

from contextdiff_jax.evaluate.pages.run import Run

SPEED_ALONE = "hardware"
# What pictures and their marks do not depend on, nor whether a figure that two runs have can be compared.
WITHOUT_INFLUENCE = (SPEED_ALONE, "sample.batch_size", "eval.features", "eval.after_training", "eval.bpd_always")
OF_THE_JUDGE = ("eval.recogniser", "eval.judge_steps")  # which its digest says better
OF_FIGURES = {  # what the names that begin so are counts of
    "eval.bpd_": ("bits_per_dim",),
    "eval.reference": ("spaces",),
    "eval.num_samples": ("alignment", "judge_features", "spaces"),
}
SECTIONS = {  # of eval.json, and what a line about them begins with
    "judge": "judge.",
    "sample": "sample.",
    "eval": "eval.",
    "judge_features_of": "judge's features: ",
}


def of_run(run: Run) -> dict[str, Any]:
    """{name: value} of all that the figures depend on, beside the model; {} before an evaluation."""
    found = of_evaluation(run)
    for name, space in run.figures.get("spaces", {}).items():
        found |= {f"{name}: {key}": value for key, value in of_space(space).items()}
    return found


def of_evaluation(run: Run) -> dict[str, Any]:
    """The same without the feature spaces."""
    figures = run.figures
    if not figures:
        return {}
    found = {"step": figures.get("step"), "seed": figures.get("seed", run.seed), SPEED_ALONE: figures.get("hardware")}
    for section, before in SECTIONS.items():
        found |= {f"{before}{key}": value for key, value in figures.get(section, {}).items()}
    for row in list(figures.get("judge_features", {}).values())[:1]:
        found["judge's features: against"] = row.get("against")
    for row in list(figures.get("bits_per_dim", {}).values())[:1]:
        found |= {f"bound.{key}": value for key, value in row.get("protocol", {}).items()}
    return {name: value for name, value in found.items() if value is not None}


def of_space(space: Mapping[str, Any]) -> dict[str, Any]:
    """{name: value} of a feature space, its reference pictures and its estimators, from an entry of "spaces"."""
    reference = space.get("reference") or {}
    how = next((value["how"] for value in space.values() if isinstance(value, Mapping) and "how" in value), {})
    named = {key: value for key, value in space.items() if not isinstance(value, Mapping)}
    named |= {f"reference: {key}": value for key, value in reference.items() if not isinstance(value, Mapping)}
    named |= {f"{metric}: {key}": value for metric, rules in how.items() for key, value in rules.items()}
    return {key: " x ".join(map(str, v)) if isinstance(v, list) else v for key, v in named.items()}


def differing(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """{name: value of each run} of what is not the same in all; "-" where a run has none of it.

    Runs without an evaluation say nothing.
    """
    found = [of_run(run) for run in runs]
    evaluated = [protocol for protocol in found if protocol]
    names = dict.fromkeys(name for protocol in evaluated for name in protocol)
    return {
        name: [protocol.get(name, "-") for protocol in found]
        for name in names
        if len({repr(protocol.get(name, "-")) for protocol in evaluated}) > 1
    }


def warning(runs: Sequence[Run]) -> str:
    """What keeps figures of these runs from being compared as they are, in one sentence; "" where nothing does.

    What only some of the evaluations say, as those of earlier versions say less, is no reason.
    """
    evaluated = [run for run in runs if run.figures]
    found = [(name, _said(name, evaluated)) for name in differing(evaluated)]
    judged = all("digest" in run.figures.get("judge", {}) for run in evaluated)
    idle = (*WITHOUT_INFLUENCE, *OF_THE_JUDGE * judged)
    names = [name for name, values in found if len(values) > 1 and name not in idle]
    if not names:
        return ""
    return f"these runs were not measured alike ({', '.join(names)}): a difference between them may come from that"


def _said(name: str, runs: Sequence[Run]) -> set[str]:
    """The values that evaluations say, of a figure's counts those of the ones that have it."""
    of = next((figures for start, figures in OF_FIGURES.items() if name.startswith(start)), None)
    having = [of_run(run) for run in runs if of is None or any(run.figures.get(figure) for figure in of)]
    return {repr(protocol[name]) for protocol in having if name in protocol}


def other_judge(first: Run, other: Run) -> str:
    """Why the marks of two runs cannot be paired: "" where one judge gave both, or where one run does not say whose."""
    judges = [run.figures["judge"] for run in (first, other) if run.figures.get("judge")]
    if len(judges) < 2 or judges[0]["digest"] == judges[1]["digest"]:
        return ""
    said = [f"{judge['name']} {judge['digest']}" for judge in judges]
    return (
        f"the judges differ: {said[0]} of {first.name}, {said[1]} of {other.name}; evaluate both with one "
        "(--config.eval.recogniser)"
    )
