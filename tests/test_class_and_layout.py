"""Classes and layouts from a config to pictures: trained, drawn, judged, exported and read back."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import contextdiff_jax as cdx
from configs import class2img, layout2img
from contextdiff_jax import command_line, training
from contextdiff_jax import task as task_lib
from contextdiff_jax.command_line import Options, asked_for, drawing
from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate import distances, suite
from contextdiff_jax.pipeline import export
from contextdiff_jax.pipeline.requests import negatives_of

LAYOUT = [("frog", (0.05, 0.3, 0.45, 0.7)), ("star", (0.55, 0.3, 0.95, 0.7))]


def trained(config, workdir, trainable=(".*",)):
    config.model.multipliers = (1,)  # half as much to compile
    config.model.self_attention_levels = config.model.cross_attention_levels = (0,)
    config.train.num_steps = 2
    config.train.trainable = trainable
    config.sample.num_steps = 2
    config.eval.num_samples = 4
    config.eval.bpd_images = 0
    training.train(task_lib.build(config), workdir)
    return cdx.Pipeline.load(workdir)


@pytest.fixture(autouse=True)
def few_renders(monkeypatch):
    monkeypatch.setattr(distances, "REFERENCE", 40)


@pytest.fixture(scope="module")
def of_classes(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("classes")
    # The condition, and what begins as zero so that something is drawn, compile quicker: all of a model trains below.
    return trained(class2img.get_config("tiny"), workdir, ("^condition/", "/out/")), workdir


@pytest.fixture(scope="module")
def of_layouts(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("layouts")
    return trained(layout2img.get_config("tiny"), workdir), workdir


def test_classes_are_asked_for_by_name_and_number(of_classes):
    pipe, _ = of_classes
    by_name, by_number = pipe.sample_arrays(["frog", "bear"]), pipe.sample_arrays([2, np.int64(11)])
    np.testing.assert_array_equal(by_name, by_number)
    with pytest.raises(UserError, match="'forg' is no class.*nearest: frog"):
        pipe.sample(["forg"])
    with pytest.raises(UserError, match="prompt 12 is no class"):
        pipe.sample([12])
    assert negatives_of(pipe.task.parts.condition, 3, 2, guided=True) == ["pig face"] * 2
    with pytest.raises(UserError, match="prompt 12 is no class"):
        pipe.sample(["frog"], negative=12)
    with pytest.raises(UserError, match="pass one or several classes, by name or number"):
        pipe.sample(None)
    assert pipe.task.parts.captions(["3", "frog"]) == ["pig face", "frog"]
    with pytest.raises(UserError, match="takes no layouts"):
        pipe.sample(layouts=[LAYOUT])


def test_layouts_are_asked_for_as_lists(of_layouts):
    pipe, _ = of_layouts
    one, several = pipe.sample(layouts=LAYOUT), pipe.sample(layouts=[LAYOUT, []])
    assert len(one) == 1 and len(several) == 2
    np.testing.assert_array_equal(np.asarray(one[0]), np.asarray(several[0]))
    for wrong in ("a frog", [], ["frog"], 3):
        with pytest.raises(UserError, match="pass a list of layouts"):
            pipe.sample(layouts=wrong)
    with pytest.raises(UserError, match="layout 2: 'cat' is no class"):
        pipe.sample(layouts=[LAYOUT, [("cat", (0, 0, 1, 1))]])
    with pytest.raises(UserError, match="negative='frog': guidance of layouts moves away from the empty one"):
        pipe.sample(layouts=LAYOUT, negative="frog")
    with pytest.raises(UserError, match="layouts say what is drawn; leave the prompts out"):
        pipe.sample(["a frog"], layouts=LAYOUT)
    trajectory = pipe.invert(one * 2, layouts=LAYOUT, steps=2)
    np.testing.assert_allclose(trajectory[0, 1], np.asarray(one[0]) / 127.5 - 1, atol=1e-5)
    assert pipe.task.parts.captions([[(2, (0, 0, 1, 1))]]) == ["frog at 0,0,100,100"]


@pytest.mark.parametrize("kind", ["of_classes", "of_layouts"])
def test_what_cannot_be_drawn_leaves_no_folder(kind, request, tmp_path, monkeypatch):
    pipe, workdir = request.getfixturevalue(kind)
    monkeypatch.setattr(command_line.shared, "pipeline_of", lambda config, options: pipe)
    (tmp_path / "layout.json").write_text('[["forg", [0, 0, 1, 1]]]')
    asked = {"of_classes": {"prompts": ("forg",)}, "of_layouts": {"layout": str(tmp_path / "layout.json")}}[kind]
    with pytest.raises(UserError, match="'forg' is no class"):
        command_line.sample(None, Options(workdir=str(workdir), out=str(tmp_path / "out"), **asked))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["of_classes", "of_layouts"])
def test_evaluation_has_ceiling_and_floor(kind, request):
    pipe, workdir = request.getfixturevalue(kind)
    rows = suite.evaluate_run(pipe, workdir)["alignment"]
    assert rows["ceiling: real renders"]["object"] >= 0.5
    floor = rows["chance"] if kind == "of_classes" else rows["floor: renders of other layouts"]
    assert floor["object"] < 0.5
    on, off = (rows[f"{kind.removeprefix('of_')}, adapter {state}"] for state in ("on", "off"))
    assert on["n"] == off["n"] == 4 and on.get("objects") == (None if kind == "of_classes" else 8)
    assert (workdir / "report.png").is_file() and json.loads((workdir / "eval.json").read_text())["alignment"]


@pytest.mark.parametrize("kind, asked", [("of_classes", ["frog"]), ("of_layouts", [LAYOUT])])
def test_an_export_draws_the_same(kind, asked, request, tmp_path):
    pipe, _ = request.getfixturevalue(kind)
    assert "condition" in pipe.params
    export.write(pipe.task, pipe.params, pipe.step, tmp_path / "out")
    assert "12 classes: red apple, star, frog" in (tmp_path / "out" / "README.md").read_text()
    again = cdx.Pipeline.load(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, again.params, jax.tree.map(np.asarray, pipe.params))
    np.testing.assert_allclose(again.sample_arrays(asked), pipe.sample_arrays(asked), atol=1e-6)


def test_what_was_asked_for_is_kept_with_what_was_drawn():
    pipe = SimpleNamespace(config=layout2img.get_config("tiny"), step=3)
    how = drawing._how(pipe, [LAYOUT], Options("runs/x", layout="l.json", image="a.png"))
    assert how["layout"] == [LAYOUT] and how["strength"] == 0.8 and how["step"] == 3
    pipe.config.condition.kind = "none"
    how = drawing._how(pipe, 16, Options("runs/x", image="a.png", strength=0.5))
    assert how["num_samples"] == 16 and how["strength"] == 0.5 and "layout" not in how
    assert "strength" not in drawing._how(pipe, 16, Options("runs/x"))


def test_a_layout_file_is_read_and_refused(tmp_path, monkeypatch):
    config, file = layout2img.get_config("tiny"), tmp_path / "layout.json"
    file.write_text(json.dumps(LAYOUT))
    options = lambda **how: Options(workdir="", **how)
    assert asked_for(config, options(layout=str(file), num_samples=2)) == [json.loads(file.read_text())] * 2
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(asked_for(config, options(layout="~/layout.json"))) == 1
    file.write_text('{"frog": 1}')
    for how, message in [
        (dict(layout=str(file)), "pass a list of layouts"),
        (dict(layout=str(tmp_path / "none.json")), "does not exist"),
        (dict(), "--layout=FILE.json"),
        (dict(prompts=("a frog",), layout=str(file)), "draws layouts"),
    ]:
        with pytest.raises(UserError, match=message):
            asked_for(config, options(**how))
    with pytest.raises(UserError, match="kind is no 'layout'"):
        asked_for(class2img.get_config("tiny"), options(layout=str(file)))
