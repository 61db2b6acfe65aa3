"""The pipeline on the smallest model: one program for all guidance scales, streams, negative prompts, sizes, steps."""

import logging
import threading
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from test_stored_figures import PROMPTS, shaken

import contextdiff_jax as cdx
from contextdiff_jax import samplers
from contextdiff_jax import task as task_lib
from contextdiff_jax.errors import UserError
from contextdiff_jax.pipeline import requests
from contextdiff_jax.pipeline.streams import Drawn, Steps, at_once, sensible
from contextdiff_jax.process import chart
from contextdiff_jax.samplers import sampling
from contextdiff_jax.samplers.scheduler_config import from_scheduler_config
from tests import small_models


@pytest.fixture(scope="module")
def pipe():
    task = task_lib.build(small_models.text_to_image())
    return cdx.Pipeline(task, shaken(task), 0)


def test_a_guidance_sweep_compiles_one_program(pipe, caplog):
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        swept = [
            pipe.sample_arrays(PROMPTS, key=5, guidance=scale, rescale=0.1 * i, interval=(0.0, 1.0 - 0.1 * i))
            for i, scale in enumerate((1.5, 3.0, 4.5, 6.0, 7.5, 9.0))
        ]
    compiled = [r.getMessage() for r in caplog.records if "Finished XLA compilation of jit(draw)" in r.getMessage()]
    assert len(compiled) == 1, compiled
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(swept, swept[1:], strict=False))


def test_a_stream_is_what_sample_is_made_of_and_remembers_prompts(pipe, monkeypatch):
    drawn = list(pipe.stream(PROMPTS, key=5))
    assert [list(d.rows) for d in drawn] == [[0, 1, 2]] and len(drawn[0].images) == 4  # filled up to a power of two
    monkeypatch.setattr(pipe._contexts, "_encode", None)  # every prompt has been encoded by now
    np.testing.assert_array_equal(drawn[0].whole(), pipe.sample_arrays((p for p in PROMPTS), key=5))


def test_batches_at_the_same_time_are_those_that_come_one_after_another(pipe, monkeypatch):
    batches = []
    for count in (1, 2, 3):
        monkeypatch.setattr(pipe, "at_once", count)
        with jax.default_matmul_precision("float32"):  # a thread's own, which the others take over
            batches.append(list(pipe.stream([*PROMPTS, *PROMPTS[:2]], key=5, batch_size=2)))
    for one, other in zip(batches[0] * 2, [*batches[1], *batches[2]], strict=True):
        np.testing.assert_array_equal(one.whole(), other.whole())
        assert list(one.rows) == list(other.rows)


def test_so_many_at_once_and_no_more():
    meet, running = threading.Barrier(2, timeout=60), []

    def batch(i):
        running.append(i)
        meet.wait()  # two of them are there, or this is an error
        return Drawn(np.zeros(1), np.array([i]))

    drawn = at_once([lambda i=i: batch(i) for i in range(4)], 2)
    assert next(drawn).rows == [0] and sorted(running[:2]) == [0, 1]
    assert [int(d.rows[0]) for d in drawn] == [1, 2, 3]

    def fail():
        raise KeyError("lost")

    begun = []
    with pytest.raises(KeyError, match="lost"):
        list(at_once([fail, *[lambda: begun.append(0) or Drawn(np.zeros(1), np.zeros(1))] * 5], 2))
    assert len(begun) <= 2  # one beside it, and what came before it was looked at
    few = at_once([lambda: Drawn(np.zeros(1), np.zeros(1))] * 5, 2)
    next(few)
    few.close()
    cpu, gpu = SimpleNamespace(platform="cpu"), SimpleNamespace(platform="gpu")
    assert sensible([cpu]) in (1, 2) and sensible([cpu, cpu]) == sensible([gpu]) == 1


def test_negative_prompts(pipe):
    plain = pipe.sample_arrays(PROMPTS, key=5)
    # The empty text is what guidance moves away from anyway.
    np.testing.assert_allclose(pipe.sample_arrays(PROMPTS, key=5, negative=""), plain, atol=2e-3)
    away = pipe.sample_arrays(PROMPTS, key=5, negative=["", "a red star", ""])
    moved = np.abs(away - plain).max(axis=(1, 2, 3))
    assert moved[1] > 0.02 and max(moved[0], moved[2]) < 2e-3
    with pytest.raises(UserError, match="without guidance"):
        pipe.sample(PROMPTS, negative="a star", guidance=1.0)
    with pytest.raises(UserError, match="2 negative prompts for 3"):
        pipe.sample(PROMPTS, negative=["a", "b"])


def test_other_sizes_and_every_step(pipe):
    told = []
    images = pipe.sample_arrays(
        PROMPTS[:1], size=(np.int64(16), 24), steps=np.int64(3), on_step=lambda *step: told.append(step)
    )
    assert images.shape == (1, 16, 24, 3)
    assert [(step, steps) for step, steps, _ in told] == [(1, 3), (2, 3), (3, 3)]
    # The last step ends at t = 0, on the last estimate.
    np.testing.assert_allclose(pipe.decode(told[-1][2]), images, atol=1e-5)

    def fail(step, steps, x0_hat):
        told.append(step)
        raise KeyError("a fault of the caller's")

    told.clear()
    with pytest.raises(KeyError, match="the caller's"):  # the same program
        pipe.sample_arrays(PROMPTS[:1], size=(16, 24), steps=3, on_step=fail)
    assert told == [1]
    assert [image.size for image in pipe.to_images(images)] == [(24, 16)]
    none = "not \\(height, width\\)"
    for size, words in (((16, 18), r"divisible by 4.*try \(16, 20\)"), ((16, 0), none), (16, none), ("16x16", none)):
        with pytest.raises(UserError, match=words):
            pipe.sample(PROMPTS[0], size=size)
    assert requests.read_size("32x48") == (32, 48)
    with pytest.raises(UserError, match="HEIGHTxWIDTH"):
        requests.read_size("32")


def test_options_that_cannot_act_are_refused_but_not_a_model_s_own(pipe):
    for how, words in {
        "eta": (dict(eta=1.0, sampler="heun"), "eta=1.0 cannot act: it is for sampler='ddim', not 'heun'"),
        "rescale": (dict(rescale=0.5, guidance=1), "rescale=0.5 cannot act: .* guidance=1 is none"),
        "interval": (dict(interval=(0.1, 0.9), guidance=0.5), "interval=.* cannot act"),
    }.values():
        with pytest.raises(UserError, match=words):
            pipe.stream(PROMPTS, **how)
    with pytest.raises(UserError, match="eta=1.0 cannot act"):
        pipe.invert(np.zeros((16, 16, 3), np.float32), PROMPTS[:1], eta=1.0)
    own = pipe.config.copy_and_resolve_references()
    own.sample.update(eta=1.0, rescale=0.7, interval=[0.1, 0.9])
    changed = requests.section_of(own, dict(sampler="heun", guidance=1.0, eta=None))
    assert (changed.eta, changed.rescale, tuple(changed.interval)) == (0.0, 0.0, (0.0, 1.0))
    assert requests.section_of(own, {}) == own.sample


def test_inversion_starts_at_the_picture(pipe):
    image = np.linspace(-1, 1, 16 * 16 * 3, dtype=np.float32).reshape(16, 16, 3)
    trajectory = pipe.invert(iter([image]), PROMPTS[:2], steps=2)
    assert trajectory.shape == (3, 2, 16, 16, 3)
    np.testing.assert_allclose(trajectory[0, 1], image, atol=1 / 127)
    assert np.abs(trajectory[2, 0] - trajectory[2, 1]).max() > 1e-3, "each under its own prompt"
    one = pipe.invert([image, image], prompt=PROMPTS[0], steps=2)
    np.testing.assert_allclose(one, trajectory[:, [0, 0]], atol=1e-5)
    for how, words in (
        (dict(sampler="heun"), "sampler='heun' cannot act"),
        (dict(steps=2, num_steps=3), "two names of the same"),
    ):
        with pytest.raises(UserError, match=words):
            pipe.invert(image, PROMPTS[:1], **how)


@pytest.mark.parametrize(
    "how, words",
    [
        (dict(first=4), "first=4 of 3 pictures; accepted: 0 to 2"),
        (dict(first=-1), "first=-1 of 3 pictures"),
        (dict(first=3), "first=3 leaves no picture"),
        (dict(key="0"), "key='0' is no seed"),
        (dict(strength=0.3), "strength=0.3 cannot act"),
        (dict(image=5), "5 is no picture"),
        (dict(layouts=[[]]), "takes no layouts"),
        (dict(steps=3, num_steps=5), "steps=3 and num_steps=5 are two names"),
        (dict(on_step=5), "on_step=5 cannot be called"),
        (dict(noise=np.zeros((2, 16, 16, 3))), r"give floats \(3, 16, 16, 3\)"),
    ],
)
def test_what_cannot_be_drawn_is_said_at_the_call(pipe, how, words):
    with pytest.raises(UserError, match=words):
        pipe.sample(PROMPTS, **how)
    if "leaves" not in words:
        with pytest.raises(UserError, match=words):
            pipe.stream(PROMPTS, **how)


def test_a_model_of_a_clip_draws_no_pictures(pipe, monkeypatch):
    monkeypatch.setitem(pipe.config.data, "num_frames", 4)
    for call in (pipe.sample, pipe.stream, lambda prompts: pipe.invert(np.zeros((16, 16, 3)), prompts)):
        with pytest.raises(UserError, match="tuned on a clip, 4 frames at once.*Pipeline.edit"):
            call(PROMPTS)


def test_an_adapter_that_is_not_there_cannot_be_switched_on():
    config = small_models.text_to_image()
    config.adapter.enabled = False
    assert not requests.section_of(config, dict(adapter=False)).adapter
    config.sample.adapter = True  # which recipes have; a caller has not asked for it
    assert requests.section_of(config, {}).adapter
    with pytest.raises(UserError, match="adapter=True cannot act"):
        requests.section_of(config, dict(adapter=True))


SD = dict(_class_name="PNDMScheduler", steps_offset=1, set_alpha_to_one=False)


@pytest.mark.parametrize("sampler", ["heun", "ddim"])
@pytest.mark.parametrize("steps", [3, 50])
def test_every_step_of_stable_diffusions_grid_is_told_once(sampler, steps):
    """Its steps end beside the next one's start (3 steps) or on it (50), the last at t = 1, where Heun asks again."""
    found = from_scheduler_config(SD, sampler="ddim")
    rows = found.moves(steps)
    plan = SimpleNamespace(moves=[(int(t), int(s)) for t, s in rows], sampler=sampler)
    told, predictions = [], []
    tell = Steps(plan, lambda step, count, x0_hat: told.append((step, count, float(x0_hat[0, 0]))))

    def watch(t, x0_hat):
        predictions.append(float(x0_hat[0, 0]))
        tell(t, x0_hat)

    f = sampling.watched(chart.plain(lambda x, t: x * 0.5), watch)
    getattr(samplers, sampler)(f, found.schedule, jax.random.key(0), np.ones((1, 1)), steps, spacing=rows)
    jax.effects_barrier()
    tell.finish()
    each = 2 if sampler == "heun" else 1
    assert len(predictions) == each * steps and len(set(predictions)) == len(predictions)
    assert told == [(i + 1, steps, predictions[each * i]) for i in range(steps)]


def test_pictures_that_are_no_numbers_are_named():
    images = np.zeros((4, 2, 2, 3), np.float32)
    images[1, 0, 0, 0], images[3] = np.inf, np.nan  # the last fills the batch up
    with pytest.warns(UserWarning, match=r"1 pictures hold NaN .*: 7 \(counted from 0\)"):
        assert len(Drawn(jax.numpy.asarray(images), np.array([6, 7, 8])).whole()) == 3
