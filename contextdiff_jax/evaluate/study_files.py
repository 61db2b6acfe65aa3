"""The answers of a user study, as its page saves them: files found, read and checked."""

import collections
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from contextdiff_jax.data.listing import files_below
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import read_text, text_lines

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
        of: how many trials the subject has; None where an older page did not say.
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
    of: int | None = None

    @property
    def value(self) -> int:
        """1 where ours was preferred, -1 where the baseline was, 0 for a tie."""
        return 0 if self.answer == "tie" else 1 if getattr(self, self.answer) == self.ours else -1


def answer_files(paths: Sequence[str | Path]) -> tuple[list[Path], list[Path]]:
    """The files of answers among files and all below folders, and what else lies in these folders.

    A file of a folder is one of answers where ".jsonl" is in its name: mail and browsers add endings.

    Raises:
        UserError: a file that is not there, a folder without any.
    """
    files, others = [], []
    for path in map(Path, paths):
        below = [path / name for name in files_below(path, "answers")] if path.is_dir() else [path]
        own = [file for file in below if ".jsonl" in file.name or file == path]
        if not own:
            raise UserError(f"no answers in {str(path)!r}; give the JSON lines files that the page saved")
        files += own
        others += [file for file in below if file not in own]
    if missing := [str(file) for file in files if not file.is_file()]:
        raise UserError(f"answers {missing[0]!r} do not exist; give the JSON lines files that the page saved")
    return files, others


def read_answers(paths: Sequence[str | Path]) -> list[Answer]:
    """The answers of JSON lines files, or of all of them below folders, see `answer_files`.

    Raises:
        UserError: nothing there, a file or a line that is damaged or cut short, two studies, one question answered
            twice, trials beyond their number.
    """
    files, _ = answer_files(paths)
    found = [_parse(line, f"{file} line {i}") for file in files for i, line in enumerate(_lines(file), 1)]
    if len(studies := sorted({answer.study for answer in found})) > 1:
        raise UserError(f"answers to {len(studies)} studies ({', '.join(studies)}) in one; give those of one study")
    counts = collections.Counter((a.subject, a.trial, a.question) for a in found)
    if twice := [key for key, count in counts.items() if count > 1]:
        subject, trial, question = twice[0]
        raise UserError(f"subject {subject!r} answers trial {trial} ({question}) twice; leave one of the files out")
    _check_numbers(found)
    return found


def _check_numbers(answers: Sequence[Answer]) -> None:
    totals: dict[str, int | None] = {}
    for answer in answers:
        of = totals.setdefault(answer.subject, answer.of)
        if of != answer.of or answer.trial < 0 or (of is not None and answer.trial >= of):
            here, there = ("an unknown number" if n is None else str(n) for n in (answer.of, of))
            elsewhere = f", and elsewhere has {there} of them" * (here != there)
            raise UserError(
                f"subject {answer.subject!r} answers trial {answer.trial} (counted from 0) of {here}{elsewhere}; "
                "ask for the file again"
            )


def _lines(file: Path) -> list[str]:
    text = read_text(file).rstrip()
    if not text:
        raise UserError(f"{file} is cut short: it holds no answer; ask for the file again, or leave it out")
    return text_lines(text)


def _parse(line: str, where: str) -> Answer:
    try:
        entry = json.loads(line)
        answer = Answer(**{name: entry[name] for name in FIELDS}, of=entry.get("of"))
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
