"""What a user study says: preference rates with intervals that know that one person answers many questions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from contextdiff_jax.data.listing import listed
from contextdiff_jax.evaluate.paired import holm
from contextdiff_jax.evaluate.study_files import Answer

Z = 1.959963984540054  # of a 95 % interval
DRAWS = 10_000  # of the bootstrap and of the sign flips
FEWEST = 10  # subjects of a bootstrap: of one it has no width, of a few too little


def wilson(wins: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of wins out of n; all of [0, 1] for n = 0."""
    if not n:
        return 0.0, 1.0
    p, z2 = wins / n, Z * Z
    centre, half = p + z2 / (2 * n), Z * (p * (1 - p) / n + z2 / (4 * n * n)) ** 0.5
    return (centre - half) / (1 + z2 / n), (centre + half) / (1 + z2 / n)


def preference(answers: Sequence[Answer], seed: int = 0) -> dict[str, Any]:
    """How often ours is preferred in the trials of one question against one baseline.

    Returns:
        "rate" (wins over wins and losses) with Wilson's interval, which takes answers for independent; "bootstrap": the
        interval from drawing whole subjects, too narrow below `FEWEST` of them; "p": of flipping the sign of whole
        subjects' net votes; the counts.
    """
    values = np.array([answer.value for answer in answers])
    wins, losses, ties = (int((values == v).sum()) for v in (1, -1, 0))
    subjects = sorted({answer.subject for answer in answers})
    by_subject = np.zeros((len(subjects), 2))  # wins, losses
    for answer, value in zip(answers, values, strict=True):
        if value:
            by_subject[subjects.index(answer.subject), int(value < 0)] += 1
    rng = np.random.default_rng(seed)
    drawn = by_subject[rng.integers(0, len(subjects), (DRAWS, len(subjects)))].sum(axis=1)
    decided = drawn.sum(axis=1) > 0
    rates = drawn[decided, 0] / drawn[decided].sum(axis=1)
    net = by_subject[:, 0] - by_subject[:, 1]
    flipped = np.abs(rng.choice((-1.0, 1.0), (DRAWS, len(subjects))) @ net)
    return {
        "rate": wins / (wins + losses) if wins + losses else None,
        "wilson": list(wilson(wins, wins + losses)),
        "bootstrap": [float(q) for q in np.quantile(rates, (0.025, 0.975))] if len(rates) else [0.0, 1.0],
        "p": float((1 + (flipped >= abs(net.sum()) - 1e-9).sum()) / (1 + DRAWS)),
        "wins": wins,
        "losses": losses,
        "ties": ties,
        "subjects": len(subjects),
    }


def statistics(answers: Sequence[Answer], seed: int = 0) -> dict[str, Any]:
    """The study's result. Nobody is left out: who fails catches is named, and the figures without them stand beside.

    Returns:
        {"everyone", "without_flagged": {question: {baseline: `preference` with "p_holm"}}, "subjects": {name: answers
        of how many, share of repeats answered alike and of catches answered "tie"}, "flagged": names, "unfinished":
        {name: what is missing}, "of_unknown": who answered on a page that did not say how many trials there are,
        "repeats_alone": repeats without their first showing, which "repeats" leaves out, "repeats", "catches": over
        all}.
    """
    subjects, unfinished = {}, {}
    for name in sorted({answer.subject for answer in answers}):
        own = [answer for answer in answers if answer.subject == name]
        of = own[0].of
        subjects[name] = {"answers": len(own), "of": of, "repeats": _consistency(own), "catches": _caught(own)}
        if missing := _missing(own):
            unfinished[name] = missing
    low = lambda about: about["catches"] is not None and about["catches"] < 0.5
    flagged = [name for name, about in subjects.items() if low(about)]
    return {
        "study": answers[0].study,
        "everyone": _by_question(answers, seed),
        "without_flagged": _by_question([a for a in answers if a.subject not in flagged], seed),
        "subjects": subjects,
        "flagged": flagged,
        "unfinished": unfinished,
        "of_unknown": [name for name, about in subjects.items() if about["of"] is None],
        "repeats_alone": [f"{a.subject}: {a.item} ({a.question}, {a.baseline})" for a in _pairs_of_repeats(answers)[1]],
        "repeats": _consistency(answers),
        "catches": _caught(answers),
    }


def _by_question(answers: Sequence[Answer], seed: int) -> dict[str, dict[str, dict]]:
    found: dict[str, dict[str, dict]] = {}
    trials = [answer for answer in answers if answer.kind == "trial"]
    for question in sorted({answer.question for answer in trials}):
        asked = [answer for answer in trials if answer.question == question]
        rows = {b: preference([a for a in asked if a.baseline == b], seed) for b in sorted({a.baseline for a in asked})}
        adjusted = holm({baseline: row["p"] for baseline, row in rows.items()})
        found[question] = {baseline: row | {"p_holm": adjusted[baseline]} for baseline, row in rows.items()}
    return found


def _missing(own: Sequence[Answer]) -> str:
    """What a subject's trials lack, "" for nothing: the page asks them in order, so that a gap is a lost line."""
    numbers, of = {answer.trial for answer in own}, own[0].of
    last = max(numbers)
    lost, parts = sorted(set(range(last)) - numbers), []
    if lost:
        parts.append(f"{len(lost)} lines are lost, of trials {listed([str(n) for n in lost])}")
    if of is not None and last + 1 < of:
        parts.append(f"ends after trial {last}, the last being {of - 1}")
    return "; ".join(parts)


def _pairs_of_repeats(answers: Sequence[Answer]) -> tuple[list[tuple[Answer, Answer]], list[Answer]]:
    """(first showing, repeat), and repeats whose first showing is not there."""
    key = lambda a: (a.subject, a.item, a.question, a.baseline)
    first = {key(a): a for a in answers if a.kind == "trial"}
    repeats = [a for a in answers if a.kind == "repeat"]
    return [(first[key(a)], a) for a in repeats if key(a) in first], [a for a in repeats if key(a) not in first]


def _consistency(answers: Sequence[Answer]) -> float | None:
    """Share of repeats that say what their first showing said; None without repeats."""
    same = [first.value == again.value for first, again in _pairs_of_repeats(answers)[0]]
    return float(np.mean(same)) if same else None


def _caught(answers: Sequence[Answer]) -> float | None:
    """Share of identical pairs that are called alike; None without any."""
    catches = [answer.answer == "tie" for answer in answers if answer.kind == "catch"]
    return float(np.mean(catches)) if catches else None


def report(result: Mapping[str, Any]) -> None:
    """Prints the result for a terminal."""
    for question, rows in result["everyone"].items():
        for baseline, row in rows.items():
            rate = "no decided answer" if row["rate"] is None else f"{100 * row['rate']:.1f} %"
            drawn = f"subjects drawn{', too few of them' if row['subjects'] < FEWEST else ''}"
            spans = {"Wilson": row["wilson"], drawn: row["bootstrap"]}
            spans = "; ".join(f"{name} [{100 * low:.1f}, {100 * high:.1f}]" for name, (low, high) in spans.items())
            counts = f"{row['wins']} : {row['losses']}, {row['ties']} ties, {row['subjects']} subjects"
            print(f"{question}, against {baseline}: {rate} ({spans}), p {row['p_holm']:.3g}  ({counts})")
    share = lambda value: "none asked" if value is None else f"{100 * value:.0f} %"
    print(f"repeats answered alike: {share(result['repeats'])}; catches seen: {share(result['catches'])}")
    if result["flagged"]:
        print(f"failed most catches, and counted all the same: {', '.join(result['flagged'])}")
    for name, missing in result["unfinished"].items():
        print(f"unfinished, and counted all the same: {name}: {missing}")
    if result["of_unknown"]:
        print(f"of an older page, which does not say how many trials there are: {listed(result['of_unknown'])}")
    if result["repeats_alone"]:
        print(f"repeats that count for nothing, as their first showing is lost: {listed(result['repeats_alone'])}")
