"""What a user study says: preference rates with intervals that know that one person answers many questions."""

import collections
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate.paired import holm
from contextdiff_jax.files import read_text, text_lines

Z = 1.959963984540054  # of a 95 % interval
DRAWS = 10_000  # of the bootstrap and of the sign flips
FEWEST = 10  # subjects of a bootstrap: of one it has no width, of a few too little
FIELDS = ("study", "subject", "trial", "item", "question", "ours", "baseline", "left", "right", "kind", "answer")
KINDS, CHOICES = ("trial", "repeat", "catch"), ("left", "right", "tie")


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer of one subject.

    Attributes:
        study: digest of the study's plan.
        subject: who.
        trial: its number in the subject's order.
        item: which result.
        question: "text" or "temporal".
        ours, baseline: the two sets that are compared.
        left, right: which of them was on which side; the same twice in a catch.
        kind: "trial", "repeat" (seen before, sides exchanged) or "catch" (the same on both sides).
        answer: "left", "right" or "tie".
    """

    study: str
    subject: str
    trial: int
    item: str
    question: str
    ours: str
    baseline: str
    left: str
    right: str
    kind: str
    answer: str

    @property
    def value(self) -> int:
        """1 where ours was preferred, -1 where the baseline was, 0 for a tie."""
        return 0 if self.answer == "tie" else 1 if getattr(self, self.answer) == self.ours else -1


def read_answers(paths: Sequence[str | Path]) -> list[Answer]:
    """The answers of JSON lines files, or of all of them in folders.

    Raises:
        UserError: nothing there, a line that is damaged or cut short, two studies, one question answered twice.
    """
    files = []
    for path in map(Path, paths):
        files += sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if missing := [str(file) for file in files if not file.is_file()]:
        raise UserError(f"answers {missing[0]!r} do not exist; give the JSON lines files that the page saved")
    found = [_parse(line, f"{file} line {i}") for file in files for i, line in enumerate(_lines(file), 1)]
    if not found:
        raise UserError(f"no answers in {', '.join(map(str, paths))}; give the JSON lines files that the page saved")
    if len(studies := sorted({answer.study for answer in found})) > 1:
        raise UserError(f"answers to {len(studies)} studies ({', '.join(studies)}) in one; give those of one study")
    counts = collections.Counter((a.subject, a.trial, a.question) for a in found)
    if twice := [key for key, count in counts.items() if count > 1]:
        subject, trial, question = twice[0]
        raise UserError(f"subject {subject!r} answers trial {trial} ({question}) twice; leave one of the files out")
    return found


def _lines(file: Path) -> list[str]:
    text = read_text(file).rstrip()
    return text_lines(text) if text else []


def _parse(line: str, where: str) -> Answer:
    try:
        entry = json.loads(line)
        answer = Answer(**{name: entry[name] for name in FIELDS})
        for field in dataclasses.fields(Answer):
            if not isinstance(value := getattr(answer, field.name), field.type):
                raise TypeError(f"{field.name} is {value!r}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{where} is damaged or cut short ({error}); ask for the file again") from error
    if answer.kind not in KINDS or answer.answer not in CHOICES:
        raise UserError(f"{where}: kind {answer.kind!r}, answer {answer.answer!r}; accepted: {KINDS}, {CHOICES}")
    if not {answer.left, answer.right} <= {answer.ours, answer.baseline}:
        shown, compared = f"{answer.left!r} and {answer.right!r}", f"{answer.ours!r} and {answer.baseline!r}"
        raise UserError(f"{where}: {shown} were shown where {compared} are compared; ask for the file again")
    if answer.ours == answer.baseline or (answer.left == answer.right) != (answer.kind == "catch"):
        raise UserError(
            f"{where}: a {answer.kind} of {answer.ours!r} against {answer.baseline!r} with {answer.left!r} and "
            f"{answer.right!r} shown; only a catch shows one set twice; ask for the file again"
        )
    return answer


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
        {"everyone", "without_flagged": {question: {baseline: `preference` with "p_holm"}}, "subjects": {name: share of
        repeats answered alike and of catches answered "tie"}, "flagged": names, "repeats", "catches": over all}.
    """
    subjects = {}
    for name in sorted({answer.subject for answer in answers}):
        own = [answer for answer in answers if answer.subject == name]
        subjects[name] = {"answers": len(own), "repeats": _consistency(own), "catches": _caught(own)}
    low = lambda about: about["catches"] is not None and about["catches"] < 0.5
    flagged = [name for name, about in subjects.items() if low(about)]
    return {
        "study": answers[0].study,
        "everyone": _by_question(answers, seed),
        "without_flagged": _by_question([a for a in answers if a.subject not in flagged], seed),
        "subjects": subjects,
        "flagged": flagged,
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


def _consistency(answers: Sequence[Answer]) -> float | None:
    """Share of repeats that say what their first showing said; None without repeats."""
    key = lambda a: (a.subject, a.item, a.question, a.baseline)
    first = {key(a): a.value for a in answers if a.kind == "trial"}
    same = [first[key(a)] == a.value for a in answers if a.kind == "repeat" and key(a) in first]
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
