"""Boxes drawn beside pictures, and shares with their errors."""

from types import SimpleNamespace

import numpy as np
import pytest

from configs import cifar10_nll, t2i
from contextdiff_jax import data
from contextdiff_jax.command_line import training
from contextdiff_jax.command_line.options import Options
from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate import conditions
from contextdiff_jax.evaluate.conditions import (
    asks_combinations,
    check_judge,
    check_pictures,
    judge_of,
    judging_of,
    share,
    with_boxes,
)
from contextdiff_jax.evaluate.distances import Measured
from contextdiff_jax.evaluate.groups import settings_of


def test_boxes_are_drawn_beside_the_picture():
    images = np.full((1, 8, 8, 3), 60, np.uint8)
    drawn = with_boxes(images, [[(0, (0.25, 0.5, 0.75, 1.0))]])
    assert drawn.shape == (1, 8, 16, 3)
    np.testing.assert_array_equal(drawn[:, :, :8], images)
    marked = (drawn[0, :, 8:] == (255, 0, 255)).all(-1)
    expected = np.zeros((8, 8), bool)
    expected[4:8, 2:6] = True
    expected[5:7, 3:5] = False
    np.testing.assert_array_equal(marked, expected)


@pytest.mark.parametrize(
    "box, column", [((0.99, 0.1, 1, 0.5), 7), ((0, 0.1, 0.01, 0.5), 0), ((0.5, 0.1, 0.501, 0.5), 4)]
)
def test_boxes_of_less_than_a_pixel_are_drawn_where_they_are(box, column):
    drawn = with_boxes(np.zeros((1, 8, 8, 3), np.uint8), [[(0, box)]])[0, :, 8:]
    np.testing.assert_array_equal(np.argwhere(drawn[..., 0]), [[row, column] for row in (1, 2, 3)])


@pytest.mark.parametrize(
    "kind, preset, groups",
    [
        ("class", "single", ["classes"]),
        ("class", "demo_objects", ["classes"]),
        ("class", "demo", ["seen combinations", "unseen combinations"]),
        ("text", "demo_objects", ["seen combinations", "unseen combinations"]),
    ],
)
def test_what_is_asked_is_what_the_labels_mean(kind, preset, groups, tmp_path):
    config = t2i.get_config("tiny")
    config.condition.kind, config.data.preset, config.eval.num_samples = kind, preset, 3
    judge = SimpleNamespace(predict=lambda images: (np.zeros(len(images), int),) * 2, about=lambda: {"name": "none"})
    names = data.describe(config.data).class_names
    pipeline = SimpleNamespace(config=config, task=SimpleNamespace(parts=SimpleNamespace()))
    pipeline.task.parts.condition = SimpleNamespace(names=names)
    judging = judging_of(pipeline, judge, tmp_path)
    assert [group.name for group in judging.groups] == groups
    asked = [prompt for group in judging.groups for prompt in group.asked]
    assert kind == "text" or set(asked) <= set(names)
    if groups == ["classes"]:  # spread over all of them
        assert asked == [names[0], names[(len(names) - 1) // 2], names[-1]]
    assert asks_combinations(config, judge) == (len(groups) == 2) and not asks_combinations(config, None)


def test_a_judge_of_one_object_is_not_asked_about_two():
    config = t2i.get_config("tiny")
    config.data.preset = "demo_pairs"
    assert judge_of(config) is None
    config.eval.recogniser = "mine"
    with pytest.raises(UserError, match="'mine' cannot act: all captions of config.data.preset='demo_pairs' name two"):
        check_judge(config)


@pytest.mark.parametrize("make", [t2i, cifar10_nll])
def test_a_judge_that_is_not_there_is_said_before_the_training(make, tmp_path):
    config = make.get_config("tiny")
    check_judge(config)  # none is named
    config.eval.recogniser, config.eval.judge_steps = str(tmp_path / "none"), 5
    with pytest.raises(UserError, match="none"):
        check_judge(config)


def test_stored_latents_do_without_pictures_unless_these_are_measured(monkeypatch, capsys):
    config = t2i.get_config("folder")
    with pytest.raises(UserError, match="held-out pictures, which the evaluation needs.*after_training=False"):
        check_pictures(config)
    config.space.kind, config.space.precomputed, config.space.latents = "latents", True, "stored"
    check_pictures(config)
    config.eval.num_samples = 3

    class Records(list):
        identity = "stored"

    parts = SimpleNamespace(prompts=list, captions=list)
    parts.condition = SimpleNamespace(takes_prompts=True)
    pipeline = SimpleNamespace(config=config, task=SimpleNamespace(parts=parts))

    def none_there(config, parts):
        raise UserError("no latents")

    monkeypatch.setattr(conditions, "held_out", none_there)
    with pytest.raises(UserError, match="data.path"):
        judging_of(pipeline, None, None)
    monkeypatch.setattr(
        conditions, "held_out", lambda config, parts: ("val", Records(f"picture {i}" for i in range(5)))
    )
    judging = judging_of(pipeline, None, None)
    assert judging.asked_for == {"split": "val", "n": 3, "of": 5} and len(judging.groups[0].asked) == 3
    assert "without the pictures" in capsys.readouterr().out
    assert Measured(config, None, ()).figures() == {}
    config.eval.features = ("efficientnet",)
    for uses in (check_pictures, lambda config: Measured(config, None, [None])):
        with pytest.raises(UserError, match="data.path"):
            uses(config)


def test_a_training_whose_evaluation_fails_has_its_page(tmp_path, monkeypatch):
    config, pages = t2i.get_config("tiny"), []
    config.eval.after_training = True

    def fails(*args):
        raise UserError("no")

    monkeypatch.setattr(training, "_prepared", lambda *args: (None, False, None))
    monkeypatch.setattr(
        "contextdiff_jax.training.train", lambda *args, **how: SimpleNamespace(step=config.train.num_steps)
    )
    monkeypatch.setattr(training.judging, "evaluate", fails)
    monkeypatch.setattr(training.shared, "write_page", pages.append)
    with pytest.raises(UserError, match="no"):
        training.train(config, Options(str(tmp_path)))
    assert pages == [tmp_path]


def test_a_share_has_a_binomial_error():
    assert share(np.array([True, True, False, True])) == {"object": 0.75, "object_stderr": np.sqrt(0.75 / 16), "n": 4}


def test_adapter_on_is_with_it_whatever_a_run_samples_with():
    on, off = {"adapter on": {"adapter": True}}, {"adapter off": {"adapter": False}}
    config = t2i.get_config("tiny")
    pipeline = SimpleNamespace(config=config, task=SimpleNamespace(adapter=object()))
    assert settings_of(pipeline) == on | off
    config.sample.adapter = False
    assert settings_of(pipeline) == on | off
    config.adapter.reverse = "head"  # whose steps are not those of the sampler beside it
    assert settings_of(pipeline) == off
    pipeline.task.adapter = None
    assert settings_of(pipeline) == {"": {}}
