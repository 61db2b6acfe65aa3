"""The parts of an evaluation that need no model: held-out pictures, floors, few samples, a run without an adapter."""

import itertools
import json
import time
from types import SimpleNamespace

import grain
import numpy as np
import pytest
from measure_helpers import SIDE, colours, pictures

from configs import t2i
from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate import bench, bpd, distances, groups, suite
from contextdiff_jax.evaluate.feature_spaces import Captioned
from contextdiff_jax.evaluate.groups import Judging
from contextdiff_jax.evaluate.metrics.base import FeatureMetric
from contextdiff_jax.evaluate.pages import write_report_page
from contextdiff_jax.evaluate.unfinished import Journal
from contextdiff_jax.losses import Nelbo


class Source(list):
    """Pictures that come class by class, each class in a colour of its own."""

    levels = 256

    def __init__(self, count, seed=0):
        noise = pictures(count, seed) // 16
        super().__init__({"image": p // 2 + np.uint8(100 * i // count)} for i, p in enumerate(noise))


@pytest.fixture
def config():
    config = t2i.get_config("tiny")
    config.eval.update(num_samples=8, bpd_images=0, reference=12)
    return config


@pytest.fixture
def measured(config, monkeypatch):
    """Makes what measures, of two sources of 30 pictures and a judge that sees mean colours."""
    judge = SimpleNamespace(
        features=lambda images: np.asarray(images, np.float64).mean((1, 2)),
        about=lambda: {"name": "mean colours", "digest": "0123", "resize": "none"},
        config=SimpleNamespace(net=lambda: SimpleNamespace(channels=(6,))),
    )
    monkeypatch.setattr(distances, "REFERENCE", 20)
    monkeypatch.setattr(distances.Measured, "_sources", lambda self: [("a", Source(30)), ("b", Source(30, 1))])
    return lambda spaces=(): distances.Measured(config, judge, spaces)


def seen_by(metrics, images):
    for metric in metrics:
        metric.update(images, [{"index": i, "caption": f"{i}"} for i in range(len(images))])


@pytest.mark.parametrize("count, floor", [(1, 4), (8, 16), (1000, 20)])
def test_the_floor_is_as_large_as_the_splits_allow(measured, config, count, floor):
    config.eval.num_samples = count
    found = measured().figures()["judge_features"]
    assert found["floor: other real renders"]["n"] == floor
    assert found["floor: other real renders"]["against"] == "20 of a and b"
    assert ("too_few" in found["floor: other real renders"]) == (floor <= 3)


def test_the_judge_of_distances_is_named(measured):
    about, again = (measured().figures()["judge_features_of"] for _ in range(2))
    assert about == again and len(about.pop("reference_digest")) == 16
    assert about == {"name": "mean colours", "digest": "0123", "resize": "none", "width": 3}


def test_too_few_samples_refuse_the_judges_distances_and_keep_the_rest(measured):
    evaluation = measured([colours()])
    seen_by(evaluation.start("samples", 3), pictures(3, 0))
    figures = evaluation.figures()
    assert "3 rows" in figures["judge_features_refused"]["samples"] and "samples" not in figures["judge_features"]
    assert "kernel_distance" in figures["spaces"]["colours"]["samples"]["figures"]
    features = [m.reference for _ in "ab" for m in evaluation.start("again", 3) if isinstance(m, FeatureMetric)]
    assert len(features) > 1 and all(f is features[0] and f.dtype == np.float64 for f in features)  # converted once


def test_held_out_pictures_are_spread_over_the_records_and_described(measured):
    about = measured([colours()]).figures()["spaces"]["colours"]["reference"]
    assert (about["n"], about["size"]) == (12, [8, 8]) and len(about["digest"]) == 16
    assert about["split"] == "a and b"
    held_out = distances.HeldOut(["test"], [Source(60)], 6)
    (images, records), *_ = held_out.batches()
    levels = (images.mean((1, 2, 3)) + 1) * 127.5
    assert np.ptp(levels) > 60 and [r["index"] for r in records] == list(range(6))  # first and last classes among them
    other = distances.HeldOut(["test"], [Source(60, 2)], 6)
    assert len(list(other.batches())) == 1 and other.described()["digest"] != held_out.described()["digest"]


def test_speed_counts_what_a_batch_has_room_for(monkeypatch):
    """The last batch is filled up, and takes as long as the others."""
    times = itertools.count()
    monkeypatch.setattr(groups, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    clock, room = groups.Clock(), np.zeros((8, 1))
    drawn = [SimpleNamespace(images=room, span=None, whole=lambda n=n: room[:n]) for n in (8, 8, 1)]
    assert [len(images) for images in clock.timed(drawn)] == [8, 8, 1]
    assert clock.per_second == 8


def test_speed_is_that_of_the_times_in_which_something_was_drawn():
    """Two batches together, one of them a second longer, then two alone, whatever is done between them: 32 in 8 s."""
    clock, room = groups.Clock(), np.zeros((8, 1))
    spans = [(0.0, 2.0), (0.5, 3.0), (10.0, 12.0), (20.0, 23.0)]
    for _ in clock.timed([SimpleNamespace(images=room, span=span, whole=lambda: room) for span in spans]):
        pass
    assert clock.per_second == 4.0 and clock.batches == 4


def test_the_input_pipeline_is_timed_without_what_it_has_read_ahead(monkeypatch):
    """Two threads of 10 ms a batch deliver 200 batches a second, however many lie ready."""
    monkeypatch.setattr(bench, "READING", 0.1)
    read = lambda i: time.sleep(0.01) or i
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=30)
    batches = iter(grain.MapDataset.range(1000).map(read).to_iter_dataset(options))
    next(batches)
    time.sleep(0.3)  # all that is read ahead lies ready, as after a compilation
    assert 0 < bench.records_per_second(batches, 8, threads=2, prefetch=30) < 1.2 * 8 * 200
    monkeypatch.setattr(bench, "READING", 0.0)
    few = iter(grain.MapDataset.range(7).map(read).to_iter_dataset(grain.ReadOptions(num_threads=2)))
    assert bench.records_per_second(few, 8, threads=2, prefetch=3) > 0 and not list(few)


def test_numbers_are_no_captions(measured, config):
    space = colours()
    embed, see = lambda texts: np.ones((len(texts), 6)), lambda params, images: {"pooled": images}
    space.captioned = Captioned(embed, see, SIDE, "none", "", lambda texts: np.zeros(len(texts)), 77)

    def names():
        evaluation = measured([space])
        evaluation.start("samples", 3)
        return set(evaluation.figures()["spaces"]["colours"]["samples"]["refused"])

    assert {"clip_score", "cmmd"} <= names()  # none has seen a picture
    config.condition.kind = "none"
    assert "clip_score" not in names() and "cmmd" in names()


def test_a_run_without_an_adapter_prints_and_shows_its_figures(config, tmp_path, monkeypatch, capsys):
    def draw(pipeline, judging, setting, options, seed, metrics, journal):
        seen_by(metrics, pictures(20, 0, config.data.image_size))
        return [], 5.0

    for name, stand_in in {
        "draw": draw,
        "judge_of": lambda config: None,
        "judging_of": lambda *what: Judging([]),
        "open_space": lambda spec: colours(),
    }.items():
        monkeypatch.setattr(suite, name, stand_in)
    config.eval.features = ("colours",)
    model = dict(params={"kernel": np.ones(2)}, frozen={})
    pipeline = SimpleNamespace(config=config, step=3, task=SimpleNamespace(adapter=None), **model)
    suite.evaluate_run(pipeline, tmp_path)
    printed = capsys.readouterr().out
    assert "colours, samples   " in printed and "  kernel_distance " in printed and "kid" not in printed
    assert "a Frechet distance in colours will be refused: 0 pictures will be drawn" in printed
    found = json.loads((tmp_path / "eval.json").read_text())
    assert "samples" in found["spaces"]["colours"] and found["samples_per_second"] == {"samples": 5.0}
    page = write_report_page(tmp_path).read_text()
    assert "kernel_distance, samples" in page and "kid, samples" not in page
    assert "colours: frechet distance" in page and "no result" not in page
    config.eval.features = ("colours", "colours")
    with pytest.raises(UserError, match="two feature spaces are called 'colours'"):
        suite.evaluate_run(pipeline, tmp_path)


class Hashable(SimpleNamespace):
    """By identity, as a pipeline is, whose programs are kept."""

    __hash__ = object.__hash__


def test_the_bound_is_of_all_the_images_that_were_chosen(config, tmp_path, monkeypatch):
    """The last batch is filled up, and what fills it up does not count."""

    def bound(f, b, s, x0, key, **how):
        nats = Nelbo(*(scale * (x0**2).mean((1, 2, 3)) for scale in (1.0, 2.0, 3.0)))
        return bpd._summarise(nats, None).replace(terms=nats)

    monkeypatch.setattr(suite, "bits_per_dim", bound)
    condition = SimpleNamespace(from_records=lambda records: {})
    task = SimpleNamespace(parts=SimpleNamespace(condition=condition, levels=256), adapter=None)
    task.encode = lambda params, frozen, batch: None
    task.denoiser = lambda params, context: None
    task.schedule_of, task.variance_of = lambda params: None, lambda params: "beta"
    pipeline = Hashable(config=config, task=task, params={}, frozen={}, put=lambda batch: batch)
    config.sample.batch_size, config.eval.bpd_timesteps = 4, 2

    def measured(count, journal):
        config.eval.bpd_images = count
        rows, each = suite._bits_per_dim(pipeline, 0, Journal(tmp_path / f"{journal}.npz", "same", every=0.0))
        return rows["adapter off"], each["adapter off"]

    row, each = measured(7, "kept")
    assert row["images"] == len(each) == 7 and row["protocol"]["chosen"] == 7
    assert row["prior"] + row["reconstruction"] + row["diffusion"] == pytest.approx(row["mean"], rel=1e-5)
    assert row["mean"] == pytest.approx(each.mean()) and len(set(each)) == 7
    assert row["prior"] == pytest.approx(each.mean() / 6)
    # One that was cut off goes on with the batch that is filled up.
    with np.load(tmp_path / "kept.npz") as file:
        parts = {name: file[name] for name in file.files if "|1/" not in name}
    assert any("|0/" in name for name in parts)
    np.savez(tmp_path / "cut.npz", **parts)
    again = measured(7, "cut")
    assert again[0] == row
    np.testing.assert_array_equal(again[1], each)
