"""An evaluation that is cut off anywhere goes on there and gives the same figures, bit by bit."""

import json
from functools import partial

import jax
import numpy as np
import parameter_helpers
import pytest

import contextdiff_jax as cdx
from contextdiff_jax import task as task_lib
from contextdiff_jax.evaluate import distances, suite, unfinished
from contextdiff_jax.evaluate.metrics import Moments
from contextdiff_jax.evaluate.unfinished import Batches, Journal
from tests import small_models


@pytest.fixture(autouse=True)
def few_renders(monkeypatch):
    monkeypatch.setattr(distances, "REFERENCE", 40)


@pytest.fixture
def pipe():
    config = small_models.text_to_image()
    config.eval.update(num_samples=8, bpd_images=8, bpd_always=True)
    task = task_lib.build(config)
    return cdx.Pipeline(task, parameter_helpers.randomised(jax.eval_shape(task.init, jax.random.key(0)), 0.1), 0)


def evaluated(pipe, out, after):
    """Evaluates, written at every batch and cut off after so many; returns how many there were."""
    ticks = []

    class Cut(Journal):
        def tick(self):
            super().tick()
            ticks.append(1)
            if len(ticks) == after:
                raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite, "Journal", partial(Cut, every=0.0))
        patch.setattr(unfinished, "PATIENCE", 0)  # however long a writing takes
        suite.evaluate_run(pipe, out)
    return len(ticks)


def goes_on(pipe, out):
    """Whether the evaluation that was cut off is one of this model."""
    with pytest.MonkeyPatch.context() as patch:
        found = []
        patch.setattr(suite, "draw", lambda *args: found.append(args[-1].found) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            suite.evaluate_run(pipe, out)
    return found[0]


def left(out):
    """What an evaluation leaves, without how fast it was."""
    found = json.loads((out / "eval.json").read_text())
    del found["samples_per_second"], found["title"]
    with np.load(out / "eval" / "pictures.npz") as pictures:
        return found, json.loads((out / "eval" / "marks.json").read_text()), {k: pictures[k] for k in pictures.files}


def test_it_goes_on_where_it_was_cut_off(pipe, tmp_path, monkeypatch):
    """Cut off twice: within a group of the second setting, and within the bound; of 2 x 2 batches of 2 settings and
    then 2 x 2 of the bound none is measured twice."""
    encode, encoded = pipe._contexts._encode, []
    monkeypatch.setattr(pipe._contexts, "_encode", lambda prompts: encoded.append(prompts) or encode(prompts))
    total = evaluated(pipe, tmp_path / "whole", after=10**6)
    assert total == 12
    half = len(encoded) // 2
    assert half and encoded[:half] == encoded[half:]  # both settings are timed with their prompts' encoding
    out, cuts = tmp_path / "cut", (5, 4)
    for after in cuts:
        with pytest.raises(KeyboardInterrupt):
            evaluated(pipe, out, after)
        assert not (out / "eval.json").exists() and (out / "eval" / suite.UNFINISHED).is_file()
    other = cdx.Pipeline(pipe.task, jax.tree.map(lambda x: x + 1e-3, pipe.params), pipe.step)  # trained anew
    assert not goes_on(other, out), "of another model no figures are taken over"
    assert evaluated(pipe, out, after=10**6) == total - sum(cuts)
    (figures, marks, pictures), expected = left(out), left(tmp_path / "whole")
    assert figures == expected[0] and marks == expected[1]
    jax.tree.map(np.testing.assert_array_equal, pictures, expected[2])
    assert not (out / "eval" / suite.UNFINISHED).exists()


def test_another_evaluation_and_a_damaged_file_begin_anew(tmp_path):
    moments, path = Moments.of(np.arange(8.0).reshape(4, 2)), tmp_path / "unfinished.npz"
    journal = Journal(path, "one", every=0.0)
    journal.follow("moments", moments)
    journal.tick()
    assert Journal(path, "one").found and not Journal(path, "another").found
    again, fresh = Journal(path, "one"), Moments()
    again.follow("moments", fresh)
    np.testing.assert_array_equal(fresh.scatter, moments.scatter)
    path.write_bytes(path.read_bytes()[:100])
    assert not Journal(path, "one").found


def test_what_is_not_asked_for_yet_is_not_forgotten(tmp_path):
    path, batches = tmp_path / "unfinished.npz", Batches()
    batches.kept = [{"a": np.ones(3)}, {"a": np.zeros(2)}]
    journal = Journal(path, "", every=0.0)
    journal.follow("late", batches)
    journal.tick()
    middle = Journal(path, "", every=0.0)
    middle.follow("early", Batches())
    middle.tick()
    last, found = Journal(path, ""), Batches()
    last.follow("late", found)
    jax.tree.map(np.testing.assert_array_equal, found.kept, batches.kept)


def test_it_is_written_once_in_a_while_and_seldom_where_that_takes_long(tmp_path, monkeypatch):
    now, path = [0.0], tmp_path / "unfinished.npz"
    monkeypatch.setattr(unfinished.time, "monotonic", lambda: now[0])

    class Slow:
        def state(self):
            now[0] += 10.0
            return {"a": np.zeros(1)}

    journal = Journal(path, "")
    journal.follow("slow", Slow())
    for at, written in ((59.0, False), (60.0, True), (269.0, False), (270.0, True)):
        now[0] = at
        journal.tick()
        assert path.is_file() == written
        path.unlink(missing_ok=True)


def test_a_full_disk_does_not_end_the_evaluation(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    Journal(tmp_path / "file" / "unfinished.npz", "", every=0.0).tick()
    assert "cannot be written" in caplog.text
