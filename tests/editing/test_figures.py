"""Figures of an edit against loops and closed forms."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from contextdiff_jax.data.clips import Clip
from contextdiff_jax.data.moving import moving
from contextdiff_jax.data.vocabulary import vocabulary
from contextdiff_jax.editing import figures, judge, measures


def as_floats(frames: np.ndarray) -> np.ndarray:
    return frames.astype(np.float64) / 127.5 - 1.0


def test_cosines_are_averaged_as_their_names_say():
    rng = np.random.default_rng(0)
    images, source, target = rng.normal(size=(5, 8)), rng.normal(size=8), rng.normal(size=8)
    cos = lambda a, b: a @ b / np.sqrt((a @ a) * (b @ b))
    assert figures.clip_text(images, target) == pytest.approx(np.mean([cos(i, target) for i in images]))
    pairs = [cos(a, b) for a, b in itertools.combinations(images, 2)]
    assert figures.clip_temp_all(images) == pytest.approx(np.mean(pairs))
    neighbours = [cos(a, b) for a, b in itertools.pairwise(images)]
    assert figures.clip_temp_neighbours(images) == pytest.approx(np.mean(neighbours))
    nearer = [cos(i, target) > cos(i, source) for i in images]
    assert figures.frame_accuracy(images, target, source) == np.mean(nearer)


def test_psnr_counts_the_pixels_it_is_asked_for():
    frames = np.zeros((2, 4, 4, 3))
    edited, where = frames + 0.2, np.zeros((2, 4, 4), bool)
    edited[:, :2] = 1.0
    where[:, 2:] = True
    assert figures.psnr(edited, frames, where) == pytest.approx(20.0)  # 0.1 of the range
    assert figures.psnr(edited, frames) == pytest.approx(-10 * np.log10((0.25 + 0.01) / 2))
    assert np.isnan(figures.psnr(edited, frames, where & False))
    assert figures.psnr(frames, frames) == 100.0


def test_ssim_is_that_of_every_window():
    rng = np.random.default_rng(1)
    x, y = rng.uniform(-1, 1, (2, 1, 12, 12, 3))
    found = figures.ssim(x, y, np.pad(np.ones((1, 6, 6), bool), ((0, 0), (3, 3), (3, 3))))
    values = []
    for i, j, c in itertools.product(range(6), range(6), range(3)):
        a, b = (((v[0, i : i + 7, j : j + 7, c]) + 1) / 2 for v in (x, y))
        cov = np.cov(a.ravel(), b.ravel())
        numerator = (2 * a.mean() * b.mean() + 1e-4) * (2 * cov[0, 1] + 9e-4)
        values.append(numerator / ((a.mean() ** 2 + b.mean() ** 2 + 1e-4) * (cov[0, 0] + cov[1, 1] + 9e-4)))
    assert found == pytest.approx(np.mean(values))
    assert figures.ssim(x, x) == pytest.approx(1.0)


def test_an_embedded_clip_has_no_warp_error_and_a_still_or_flickering_one_has():
    clip = moving("demo", 0).clip(4, 64)
    frames = as_floats(clip.frames)
    assert figures.warp_error(frames, clip.motion) == 0.0
    still = np.repeat(frames[:1], 4, axis=0)
    assert figures.warp_error(still, clip.motion) > 1e-3
    flicker = frames + np.array([0.0, 0.1, 0.0, 0.1])[:, None, None, None]
    assert figures.warp_error(flicker, clip.motion) == pytest.approx(0.05**2)


def test_reading_between_pixels_is_bilinear():
    image = np.arange(12.0).reshape(3, 4, 1)
    found = figures.bilinear(image, np.array([0.5, 1.25, -3.0, 9.0]), np.array([0.0, 1.5, 0.0, 9.0]))
    np.testing.assert_allclose(found[:, 0], [0.5, 1.25 + 6.0, 0.0, 11.0])


def test_the_bounds_are_measured_where_all_edits_left_the_clip_alone():
    frames, regions = np.zeros((2, 8, 8, 3)), np.zeros((2, 2, 4, 4))
    regions[0, :, :2], regions[1, :, :, :2] = 1, 1
    arrays = {"source": frames, "autoencoder alone": frames.copy(), "a": frames, "b": frames}
    arrays["autoencoder alone"][:, :4], arrays["autoencoder alone"][:, 4:, 4:] = 1.0, 0.2
    config, clip = SimpleNamespace(data=SimpleNamespace(source="clip", path="x.mp4")), Clip(np.uint8(frames))
    table, left_out = measures.rows(None, config, clip, arrays, dict(zip("ab", regions, strict=True)))
    assert table["autoencoder alone"]["background_psnr"] == pytest.approx(20.0)  # 0.1 of the range
    assert any("outside the edits' own masks" in line for line in left_out)
    table, left_out = measures.rows(None, config, clip, arrays, {"a": np.ones((2, 4, 4))})
    assert not any("background_psnr" in row for row in table.values())
    assert any("the edits have no mask" in line for line in left_out)


def test_heat_is_counted_where_the_object_is():
    inside = np.zeros((1, 4, 4), bool)
    inside[0, :2, :2] = True
    heat = np.array([[[3.0, 1.0], [0.0, 0.0]]])
    assert figures.heat_in_mask(heat, inside) == 0.75


def test_the_judge_is_asked_for_what_the_prompt_names():
    vocab = vocabulary("demo")
    asked = judge.asked("a red apple on a blue background", vocab)
    assert asked == (vocab.objects.index("red apple"), vocab.backgrounds.index("blue"))
    assert judge.asked("a painting", vocab) == (None, None)
    moved = moving("demo", 3)
    swaps = moved.other_captions()
    assert len({moved.caption, *swaps}) == 3
    o, b = judge.asked(moved.caption, vocab)
    (other, same), (kept, changed) = (judge.asked(text, vocab) for text in swaps)
    assert other != o and same == b and kept == o and changed != b
    assert not {(other, b), (o, changed)} & vocab.unseen
