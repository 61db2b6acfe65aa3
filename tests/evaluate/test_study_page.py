"""The user study's page: its order of trials, and its script driven by clicks and keys in a stand-in for a browser."""

import json
import re
import sys

import numpy as np
import PIL.Image
import pytest

from contextdiff_jax import command_line
from contextdiff_jax.data.clips import write_clip
from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate.study_answers import statistics
from contextdiff_jax.evaluate.study_files import read_answers
from contextdiff_jax.evaluate.study_page import ASSETS, _read_captions, page, write_study

BROWSER = """
const elements = {}, stored = {}, saved = [];
const element = (id) => elements[id] ??= {
  id, hidden: false, children: [], handlers: {}, value: "", setAttribute() {},
  addEventListener(kind, handler) { this.handlers[kind] = handler; },
  replaceChildren(...children) { this.children = children; },
  click() { this.href !== undefined ? saved.push(this) : this.handlers.click(); },
};
const handlers = {};
const document = {
  getElementById: element, createElement: () => element("new" + Object.keys(elements).length),
  querySelectorAll: () => [element("save")],
  addEventListener(kind, handler) { handlers[kind] = handler; },
};
let works = true;
const storage = (use) => { if (!works) throw new Error("storage"); return use(); };
const localStorage = {
  getItem: (k) => storage(() => stored[k] ?? null), setItem: (k, v) => storage(() => { stored[k] = v; }),
};
const URL = { createObjectURL: (blob) => blob.parts.join("") };
class Blob { constructor(parts) { this.parts = parts; } }
const press = (key) => handlers.keydown({ key, preventDefault() {} });
"""


def folder(path, count: int = 20, seed: int = 0):
    path.mkdir()
    for i in range(count):
        pixels = np.random.default_rng(seed + i).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(path / f"{i:02d}.png")
    return path


@pytest.fixture
def sets(tmp_path):
    a, b, c = (folder(tmp_path / name, seed=100 * i) for i, name in enumerate("abc"))
    return [f"ours={a}", f"b={b}", f"c={c}"]


def script_engine():
    """What runs the page's scripts; a missing one is an error where the requirements have it."""
    if sys.version_info >= (3, 13):
        pytest.importorskip("quickjs", reason="quickjs has no wheel for Python 3.13 and newer")
    import quickjs

    return quickjs.Context()


def ordered(plan: dict, subject: str) -> list[dict]:
    context = script_engine()
    context.eval((ASSETS / "order.js").read_text())
    return json.loads(context.eval(f"JSON.stringify(order({json.dumps(plan)}, {json.dumps(subject)}))"))


def test_order_is_the_subjects_own_and_balanced(tmp_path, sets):
    plan = write_study(tmp_path / "out", sets, captions={f"{i:02d}": f"text {i}" for i in range(20)})
    trials = ordered(plan, "anna")
    assert trials == ordered(plan, "anna") and trials != ordered(plan, "ben")
    kinds = [t["kind"] for t in trials]
    assert (kinds.count("trial"), kinds.count("repeat"), kinds.count("catch")) == (40, 4, 2)
    assert {t["question"] for t in trials} == {"text"}  # pictures do not move
    pairs = [(t["item"], t["baseline"]) for t in trials if t["kind"] == "trial"]
    assert len(set(pairs)) == 40
    lefts = [t["left"] == "ours" for s in map(str, range(30)) for t in ordered(plan, s) if t["kind"] == "trial"]
    assert abs(np.mean(lefts) - 0.5) < 4 * 0.5 / len(lefts) ** 0.5
    for i, t in enumerate(trials):
        first = next(j for j, o in enumerate(trials) if (o["item"], o["baseline"]) == (t["item"], t["baseline"]))
        if t["kind"] == "repeat":
            assert first < i and (t["left"], t["right"]) == (trials[first]["right"], trials[first]["left"])
        assert (t["leftFile"] == t["rightFile"]) == (t["kind"] == "catch")


def test_page_is_self_contained_and_blind(tmp_path, sets):
    write_study(tmp_path / "out", sets, source=sets[0].split("=")[1])
    text = (tmp_path / "out" / "index.html").read_text()
    assert not re.search(r"https?:|//cdn|@import|url\(", text)
    media = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out" / "media").iterdir()}
    assert len(media) == 80 and set(re.findall(r"media/\w+\.png", text)) == media
    assert not any(re.search(r"ours|source|/b|/c/", name.removeprefix("media/")) for name in media)


def test_a_text_file_names_pictures_in_the_order_of_their_files(tmp_path):
    """In which "frog 2.png" comes before "frog.png", unlike their names without the ending."""
    (tmp_path / "a").mkdir()
    for name in ("frog.png", "frog 2.png", "frog-1.png"):
        PIL.Image.new("RGB", (4, 4)).save(tmp_path / "a" / name)
    (tmp_path / "captions.txt").write_text("two\none\nnone\n")
    found = _read_captions(str(tmp_path / "captions.txt"), [f"a={tmp_path / 'a'}"])
    assert found == {"frog 2": "two", "frog-1": "one", "frog": "none"}


def test_captions_cannot_break_the_page(tmp_path):
    plan = {"study": "1", "pairs": [{"caption": "</script><b>$title &amp;"}]}
    text = page(plan, "a < b")
    inside = re.search(r'<script type="application/json" id="plan">(.*?)</script>', text, re.S).group(1)
    assert json.loads(inside) == plan and "<title>a &lt; b</title>" in text


def opened(plan: dict, subject: str = "anna"):
    """The page with a subject at work."""
    context = script_engine()
    context.eval(BROWSER)
    context.eval(f'element("plan").textContent = {json.dumps(json.dumps(plan))}')
    context.eval("\n".join((ASSETS / name).read_text() for name in ("order.js", "page.js")))
    begin(context, subject)
    return context


def begin(context, subject: str = "anna") -> None:
    context.eval(f'element("subject").value = {json.dumps(subject)}')
    context.eval('element("start").handlers.submit({ preventDefault() {} })')


def test_study_is_answered_by_keys_and_clicks_and_read_back(tmp_path, sets):
    plan = write_study(tmp_path / "out", sets)
    context = opened(plan)
    assert context.eval('element("undo").disabled') is True
    trials = ordered(plan, "anna")
    for i, trial in enumerate(trials):  # ours wherever there is a choice; keys and clicks in turn
        side = "tie" if trial["kind"] == "catch" else "left" if trial["left"] == "ours" else "right"
        key = {"left": "ArrowLeft", "tie": "2", "right": "3"}[side]
        context.eval(f'press("{key}")' if i % 2 else f'element("choose-{side}").click()')
        if i == 10:  # the page is opened again
            begin(context)
        if i in (0, 20, len(trials) - 1):  # a slip is taken back, after the last trial as well
            context.eval('element("undo").click(); press("2"); element("undo").click()')
            context.eval(f'element("choose-{side}").click()')
    assert context.eval('element("end").hidden') is False
    context.eval('element("save").click()')
    assert re.fullmatch(r"answers-anna-[0-9a-f]{8}\.jsonl", context.eval("saved[0].download"))
    (tmp_path / "answers.jsonl").write_text(context.eval("saved[0].href"))
    found = statistics(read_answers([tmp_path / "answers.jsonl"]))
    assert found["study"] == plan["study"] and found["catches"] == found["repeats"] == 1.0
    assert not found["unfinished"] and found["subjects"]["anna"]["of"] == len(trials)
    for baseline in ("b", "c"):
        row = found["everyone"]["picture"][baseline]
        assert (row["wins"], row["losses"], row["ties"]) == (20, 0, 0)


def test_clips_are_asked_about_motion_as_well(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        write_clip(tmp_path / name / "x.mp4", np.zeros((2, 16, 16, 3), np.uint8))
    plan = write_study(tmp_path / "out", [f"ours={tmp_path / 'a'}", f"b={tmp_path / 'b'}"], captions={"x": "a fox"})
    assert [q["id"] for q in plan["questions"]] == ["text", "temporal"]
    assert [t["question"] for t in ordered(plan, "anna")][:1] == ["text"]


def test_damaged_videos_are_not_shown(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        write_clip(tmp_path / name / "x.mp4", np.zeros((2, 16, 16, 3), np.uint8))
    whole = (tmp_path / "b" / "x.mp4").read_bytes()
    for damaged in (b"clip", whole[:100], b""):
        (tmp_path / "b" / "x.mp4").write_bytes(damaged)
        with pytest.raises(UserError, match=r"1 files that a browser cannot show: x.mp4 \(\w.+\); replace"):
            write_study(tmp_path / "o", [f"ours={tmp_path / 'a'}", f"b={tmp_path / 'b'}"])


def test_only_plain_keys_are_answers(tmp_path, sets):
    context = opened(write_study(tmp_path / "out", sets))
    for change in ("repeat: true", "ctrlKey: true", "altKey: true", "metaKey: true"):
        context.eval(f'handlers.keydown({{ key: "1", {change}, preventDefault() {{}} }})')
    context.eval('press("ArrowDown")')  # which scrolls
    assert context.eval('element("count").textContent').startswith("0 of ")
    context.eval('press("1")')
    assert context.eval('element("count").textContent').startswith("1 of ")


def test_without_storage_the_page_goes_on_and_says_so(tmp_path, sets):
    plan = write_study(tmp_path / "out", sets)
    context = opened(plan)
    context.eval('press("1"); works = false; press("3")')
    assert context.eval('element("notice").hidden') is False
    assert "save them before" in context.eval('element("notice").textContent')
    assert json.loads(context.eval("JSON.stringify(answers.map((a) => a.trial))")) == [0, 1]
    shown = context.eval('element("left").children[0].src')
    assert shown == ordered(plan, "anna")[2]["leftFile"]  # each answer is of what was seen
    context.eval('works = true; press("2")')
    assert context.eval('element("notice").hidden') is True and len(json.loads(context.eval("stored[key()]"))) == 3
    context.eval("works = false")
    begin(context)  # opened again where nothing can be read
    assert context.eval("answers.length") == 0 and context.eval('element("notice").hidden') is False
    assert context.eval('element("notice").textContent').startswith("This browser keeps no answers")
    for damaged in ('[{"trial": 0}, {"tri', '{"trial": 0}', "[null]"):  # is kept beside what follows
        context.eval(f"works = true; stored[key()] = {json.dumps(damaged)}")
        begin(context)
        assert "cannot be read" in context.eval('element("notice").textContent')
        context.eval('press("1")')
        stored = json.loads(context.eval("JSON.stringify(stored)"))
        assert len(json.loads(stored[context.eval("key()")])) == 1 and damaged in stored.values()


def test_an_older_pages_answers_are_taken_over_and_names_in_any_script_have_a_file_each(tmp_path, sets):
    context = opened(write_study(tmp_path / "out", sets))
    context.eval('press("1"); stored[key()] = JSON.stringify(answers.map(({ of, ...older }) => older))')
    begin(context)
    assert context.eval("answers[0].of === trials.length") is True
    for name in ("Анна", "Олег"):
        begin(context, name)
        context.eval('element("save").click()')
    assert context.eval("saved[0].download !== saved[1].download") is True


def test_other_pictures_are_another_study(tmp_path, sets, capsys):
    a = tmp_path / "a"
    first = write_study(tmp_path / "first", sets)
    (a / "grid.png").write_bytes((a / "00.png").read_bytes())
    command_line.run("study", None, command_line.Options("", sets=tuple(sets), out=str(tmp_path / "second")))
    second = json.loads((tmp_path / "second" / "study.json").read_text())
    assert f"left out: {a}/grid.png" in capsys.readouterr().out
    assert "<title>Which is better?</title>" in (tmp_path / "second" / "index.html").read_text()
    assert second["study"] == first["study"]
    (a / "00.png").write_bytes((a / "01.png").read_bytes())
    assert write_study(tmp_path / "third", sets)["study"] != first["study"]


def test_bad_sets_are_one_line(tmp_path, sets):
    few = folder(tmp_path / "few", 3)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "x").write_text("")
    (tmp_path / "lines.txt").write_text("one\n")
    torn = folder(tmp_path / "torn")
    (torn / "03.png").write_bytes(b"torn")
    cases = [
        (dict(out="o", sets=("ours=x",)), "1 different sets"),
        (dict(out="o", sets=("x", "y")), "has no name or no folder"),
        (dict(out="o", sets=(sets[0], "b=nowhere")), "does not exist"),
        (dict(out="o", sets=(sets[0], f"b={few}")), "'b' lacks 17 of 20 results"),
        (dict(out="o", sets=tuple(sets), source=str(few)), "source .* lacks 03"),
        (dict(out="o", sets=tuple(sets), captions=str(tmp_path / "lines.txt")), "1 lines for 20 pictures"),
        (dict(out=str(tmp_path / "used"), sets=tuple(sets)), "is not empty"),
        (dict(sets=tuple(sets)), "--out is missing"),
        (dict(answers=("nowhere.jsonl",)), "do not exist"),
        (dict(answers=("x",), sets=tuple(sets), source="s"), "--set, --source cannot act with --answers"),
        (dict(answers=("nowhere.jsonl",), out=str(tmp_path)), "--out=.* is a folder"),
        (dict(out=str(few / "00.png"), sets=tuple(sets)), "is a file"),
        (dict(out=str(few / "00.png" / "x"), sets=tuple(sets)), "output folder .* cannot be written"),
        (dict(out="o", sets=(sets[0], f"b={torn}")), "1 files that a browser cannot show: 03.png \\(not an image\\)"),
    ]
    for options, words in cases:
        options = {"out": ""} | options
        if options["out"] == "o":
            options["out"] = str(tmp_path / "o")
        with pytest.raises(UserError, match=words):
            command_line.run("study", None, command_line.Options("", **options))
