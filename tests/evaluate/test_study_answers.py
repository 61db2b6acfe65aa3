"""The user study's statistics against published tables, scipy and a simulation."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import scipy.stats

from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate.study_answers import preference, report, statistics, wilson
from contextdiff_jax.evaluate.study_files import Answer, answer_files, read_answers
from contextdiff_jax.evaluate.study_page import study_on_command


def answer(subject="s1", trial=0, answer="left", kind="trial", question="text", baseline="b", swap=False, item="i"):
    left, right = ("b", "ours") if swap else ("ours", baseline)
    return Answer("d1", subject, trial, item, question, "ours", baseline, left, right, kind, answer)


def written(path, answers):
    path.write_text("".join(json.dumps(dataclasses.asdict(a)) + "\n" for a in answers))
    return path


def test_wilson_is_scipys():
    for wins, n in ((0, 5), (3, 10), (60, 100), (7, 7)):
        theirs = scipy.stats.binomtest(wins, n).proportion_ci(method="wilson")
        assert wilson(wins, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert wilson(0, 0) == (0.0, 1.0)


def test_sides_do_not_matter():
    assert answer(answer="left").value == 1 and answer(answer="right").value == -1
    assert answer(answer="left", swap=True).value == -1 and answer(answer="tie").value == 0


def test_preference_counts():
    answers = [answer(trial=i, answer=a) for i, a in enumerate(["left"] * 6 + ["right"] * 2 + ["tie"] * 3)]
    row = preference(answers)
    assert (row["wins"], row["losses"], row["ties"], row["rate"]) == (6, 2, 3, 0.75)
    assert row["bootstrap"] == [0.75, 0.75]  # a single subject cannot be drawn otherwise
    assert row["p"] == pytest.approx(1.0)


def test_intervals_and_tests_know_subjects():
    # Twenty people of one mind each: twelve always for ours. By answers that is certain, by subjects it is chance.
    answers = [answer(f"s{s}", t, "left" if s < 12 else "right") for s in range(20) for t in range(50)]
    row = preference(answers)
    assert row["wilson"][0] > 0.56
    exact = scipy.stats.binomtest(12, 20).pvalue
    assert row["p"] == pytest.approx(exact, abs=0.02)
    # Drawing 20 subjects of which 60 % are for ours: the spread of a binomial share.
    assert row["bootstrap"] == pytest.approx(scipy.stats.binom.ppf([0.025, 0.975], 20, 0.6) / 20, abs=0.051)


def test_p_values_are_level_where_nobody_prefers_anything():
    rng = np.random.default_rng(0)
    ps = []
    for _ in range(40):
        lean = rng.normal(0, 1, 12)
        votes = [
            answer(f"s{s}", t, "left" if rng.normal(lean[s]) > 0 else "right") for s in range(12) for t in range(8)
        ]
        ps.append(preference(votes)["p"])
    assert np.mean(np.array(ps) < 0.05) < 0.2 and 0.3 < np.mean(ps) < 0.7


def test_nobody_is_left_out_in_silence():
    good = [answer("good", t) for t in range(4)] + [answer("good", 9, "tie", "catch")]
    bad = [answer("bad", t, "right") for t in range(4)] + [answer("bad", 9, "left", "catch")]
    found = statistics(good + bad)
    assert found["flagged"] == ["bad"] and found["catches"] == 0.5
    assert found["everyone"]["text"]["b"]["rate"] == 0.5
    assert found["without_flagged"]["text"]["b"]["rate"] == 1.0
    assert set(found["subjects"]) == {"good", "bad"}


def test_repeats_are_compared_with_their_first_showing():
    first = [answer(trial=i, item=str(i)) for i in range(4)]
    repeats = [
        answer(trial=10 + i, item=str(i), kind="repeat", swap=True, answer=a) for i, a in enumerate(("right", "left"))
    ]
    found = statistics(first + repeats)
    assert found["repeats"] == 0.5
    assert found["everyone"]["text"]["b"]["wins"] == 4  # repeats are not counted twice


def test_questions_and_baselines_are_kept_apart():
    answers = [
        answer(f"s{s}", t, "left", question=q, baseline=b)
        for s in range(8)
        for t, q, b in ((0, "text", "b"), (1, "text", "c"), (2, "temporal", "b"))
    ]
    found = statistics(answers)["everyone"]
    assert set(found["text"]) == {"b", "c"} and set(found["temporal"]) == {"b"}
    assert found["text"]["b"]["p_holm"] == pytest.approx(2 * found["text"]["b"]["p"])
    assert found["temporal"]["b"]["p_holm"] == found["temporal"]["b"]["p"]


def test_bad_answers_are_one_line(tmp_path):
    fine = written(tmp_path / "a.jsonl", [answer(), answer(trial=1)])
    assert len(read_answers([tmp_path])) == 2 and len(read_answers([fine])) == 2
    cut = tmp_path / "cut.jsonl"
    cut.write_text(fine.read_text()[:-40])
    cases = [
        ([cut], "cut.jsonl line 2 is damaged or cut short"),
        ([tmp_path / "none.jsonl"], "do not exist"),
        ([fine, fine], "answers trial 0 .* twice"),
        ([fine, written(tmp_path / "o.jsonl", [dataclasses.replace(answer("z"), study="d2")])], "2 studies"),
        ([written(tmp_path / "k.jsonl", [answer(answer="up")])], "k.jsonl line 1: .*'up'"),
        ([written(tmp_path / "e.jsonl", [])], "e.jsonl is cut short: it holds no answer"),
        ([written(tmp_path / "l.jsonl", [dataclasses.replace(answer(), left="x")])], "l.jsonl line 1: 'x' and 'b' "),
        ([written(tmp_path / "t.jsonl", [dataclasses.replace(answer(), right="ours")])], "only a catch shows one set"),
        ([written(tmp_path / "c.jsonl", [answer(kind="catch")])], "only a catch shows one set"),
        ([written(tmp_path / "n.jsonl", [dataclasses.replace(answer(), trial="1")])], "n.jsonl line 1 .*trial is '1'"),
    ]
    total = lambda of, trial=0: dataclasses.replace(answer(trial=trial), of=of)
    cases += [
        ([written(tmp_path / "m.jsonl", [total(3), total(4, 1)])], "trial 1 .* of 4, and elsewhere has 3"),
        ([written(tmp_path / "p.jsonl", [total(3, 3)])], "trial 3 .* of 3; ask"),
        ([written(tmp_path / "u.jsonl", [total(3), total(None, 1)])], "of an unknown number, and elsewhere has 3"),
    ]
    for paths, words in cases:
        with pytest.raises(UserError, match=words):
            read_answers(paths)
    marked = tmp_path / "marked.jsonl"
    marked.write_bytes(b"\xef\xbb\xbf" + fine.read_bytes().replace(b"\n", b"\r\n"))
    assert read_answers([marked]) == read_answers([fine])


def test_every_file_of_a_folder_is_read_or_named(tmp_path, capsys):
    (tmp_path / "sub").mkdir()
    with pytest.raises(UserError, match="no answers in"):
        answer_files([tmp_path])
    (tmp_path / "linked").symlink_to(tmp_path / "sub")  # of one folder, whose files come once
    for i, name in enumerate(("a.jsonl", "d.jsonl.txt", "sub/e.jsonl")):
        written(tmp_path / name, [answer(f"s{i}")])
    (tmp_path / "sub" / "notes.txt").write_text("")
    files, others = answer_files([tmp_path])
    assert len(files) == 3 and others == [tmp_path / "sub" / "notes.txt"]
    assert {a.subject for a in read_answers([tmp_path])} == {"s0", "s1", "s2"}
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "by_link").symlink_to(tmp_path / "sub")
    assert [a.subject for a in read_answers([tmp_path / "elsewhere"])] == ["s2"]
    shutil.rmtree(tmp_path / "elsewhere")
    for i in range(30):  # as in the folder of a page
        (tmp_path / f"{i:02d}.png").write_text("")
    study_on_command("", (), [str(tmp_path)], source="", captions="")
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "not read" in line)
    assert "00.png" in line and "and 21 more" in line
    written(tmp_path / "sub" / "e.jsonl", [])
    with pytest.raises(UserError, match="e.jsonl is cut short"):
        read_answers([tmp_path])


def test_what_a_file_lacks_is_named(capsys):
    """A file that ends at a line's end, one without lines of its middle, and one of a page that told no total."""
    trials = [dataclasses.replace(answer("whole", t, item=str(t)), of=6) for t in range(5)]
    trials.append(dataclasses.replace(answer("whole", 5, kind="repeat", item="1", swap=True, answer="right"), of=6))
    of = lambda name, which: [dataclasses.replace(trials[t], subject=name) for t in which]
    older = [dataclasses.replace(a, of=None) for a in of("older", range(6))]
    found = statistics(trials + of("ended", range(4)) + of("torn", (0, 2, 3, 4, 5)) + older)
    assert found["unfinished"] == {
        "ended": "ends after trial 3, the last being 5",
        "torn": "1 lines are lost, of trials 1",
    }
    assert found["of_unknown"] == ["older"] and found["repeats_alone"] == ["torn: 1 (text, b)"]
    assert found["subjects"]["ended"]["answers"] == 4 and found["subjects"]["ended"]["of"] == 6
    report(found)
    said = capsys.readouterr().out
    for words in ("ended: ends after trial 3", "older page, .*: older", "first showing is lost: torn"):
        assert re.search(words, said), words
