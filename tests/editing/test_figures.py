"""Figures of an edit against loops and closed forms."""

import itertools
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from contextdiff_jax.data.clips import Clip
from contextdiff_jax.data.moving import moving
from contextdiff_jax.data.vocabulary import vocabulary
from contextdiff_jax.editing import figures, judge, measures
from contextdiff_jax.errors import UserError


def settings(edit: str = "attention", **data) -> SimpleNamespace:
    """What the figures look at of a config."""
    how = SimpleNamespace(mask=edit, self_blend=False, latent_blend=(0.2, 0.8))
    return SimpleNamespace(data=SimpleNamespace(source="clip", **data), edit=how)


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
    # Of a clip the mean over the pixels of all frames, of which each is seen alone.
    clips, where = rng.uniform(-1, 1, (2, 3, 9, 8, 3)), rng.uniform(size=(3, 9, 8)) > 0.3
    one = [figures.ssim(*clips[:, f : f + 1], where[f : f + 1]) for f in range(3)]
    assert figures.ssim(*clips, where) == pytest.approx(np.average(one, weights=where.sum(axis=(1, 2))))


def test_clip_s_figures_are_of_single_precision_and_of_few_frames_at_once(monkeypatch):
    """Whatever the model computes in, and whether it has a CLIP itself: what is compared is measured alike."""
    seen, read = [], []

    class Seeing:
        dtype, params = jnp.float32, {"scale": np.float32(2.0)}

        def encode_image(self, params, images):
            seen.append(images.shape)
            return SimpleNamespace(pooled=params["scale"] * images.mean(axis=(1, 2)))

    monkeypatch.setattr(measures, "load_clip", lambda name: read.append(name) or Seeing())
    half, own = SimpleNamespace(dtype=jnp.bfloat16), Seeing()
    config = SimpleNamespace(encoder=SimpleNamespace(clip="here"))
    frames = np.random.default_rng(0).uniform(-1, 1, (measures.TOGETHER * 2 + 3, 4, 4, 3)).astype(np.float32)
    for clip in (half, None, own):
        model = SimpleNamespace(parts=SimpleNamespace(clip=clip))
        embed = measures.Embed(model, {"clip": {"scale": np.float32(2.0)}}, config)
        np.testing.assert_allclose(embed.images(frames), 2 * frames.mean(axis=(1, 2)), rtol=1e-5, atol=1e-6)
    assert read == ["here", "here"] and set(seen) == {(measures.TOGETHER, 4, 4, 3)}
    with pytest.raises(UserError, match="nowhere"):  # said at the start
        monkeypatch.undo()
        measures.check(
            SimpleNamespace(parts=SimpleNamespace(clip=None)),
            SimpleNamespace(encoder=SimpleNamespace(clip="/nowhere"), data=SimpleNamespace(source="clip", path="x")),
        )


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
    config, clip = settings(path="x.mp4"), Clip(np.uint8(frames))
    table, left_out = measures.rows(None, config, clip, arrays, dict(zip("ab", regions, strict=True)))
    assert table["autoencoder alone"]["background_psnr"] == pytest.approx(20.0)  # 0.1 of the range
    assert any("outside the edits' own masks" in line for line in left_out)
    # Where all but the object was to change, the background is where the edits acted, and the object is the rest.
    config.edit.mask = "outside"
    other, left_out = measures.rows(None, config, clip, arrays, dict(zip("ab", regions, strict=True)))
    kept, changed = other["autoencoder alone"]["object_psnr"], other["autoencoder alone"]["background_psnr"]
    assert kept == table["autoencoder alone"]["background_psnr"] and changed == pytest.approx(-10 * np.log10(1 / 6))
    assert any("inside the edits' own masks" in line for line in left_out) and measures.kept_part(config) == "object"
    config.edit.mask = "attention"
    table, left_out = measures.rows(None, config, clip, arrays, {"a": np.ones((2, 4, 4))})
    assert not any("background_psnr" in row for row in table.values())
    assert any("the edits have no mask" in line for line in left_out)
    assert measures.kept_part(config) == "background"
    assert not any("what was not to change" in line for line in left_out)
    config.edit.latent_blend = ()  # without a mask all of the picture may change
    left_out = measures.rows(None, config, clip, arrays, {"a": np.ones((2, 4, 4))})[1]
    assert measures.kept_part(config) is None and any("what was not to change" in line for line in left_out)


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
    # Of two the one that the edit makes; none where both are new, or neither.
    two, o = "a frog to the left of a {} on a blue background", vocab.objects.index
    assert judge.asked(two.format("pumpkin"), vocab, two.format("red apple")) == (o("pumpkin"), asked[1])
    assert judge.asked("a bear" + two.format("pumpkin")[6:], vocab, two.format("pumpkin")) == (o("bear"), asked[1])
    unclear = [two.format("pumpkin"), two.format("red apple").replace("frog", "bear")]
    assert [judge.asked(text, vocab, two.format("pumpkin"))[0] for text in unclear] == [None, None]
    said = judge.Judge(vocab, None).left_out([*unclear, "a painting"], two.format("pumpkin"))
    assert len(said) == 1 and all(text in said[0] for text in unclear) and "painting" not in said[0]
    moved = moving("demo", 3)
    swaps = moved.other_captions()
    assert len({moved.caption, *swaps}) == 3
    o, b = judge.asked(moved.caption, vocab)
    (other, same), (kept, changed) = (judge.asked(text, vocab) for text in swaps)
    assert other != o and same == b and kept == o and changed != b
    assert not {(other, b), (o, changed)} & vocab.unseen


@pytest.mark.parametrize("preset", ["pairs", "single"])
def test_an_edit_is_measured_where_no_judge_ships(preset):
    """Nothing is known of these objects but what the clip says."""
    clip, config = moving(preset, 0).clip(2, 32), settings(path="", preset=preset)
    assert judge.Judge.of(config.data) is None and judge.Judge.of(settings(path="", preset="demo").data) is not None
    table, left_out = measures.rows(None, config, clip, {"source": as_floats(clip.frames)}, {})
    assert table["source"] == {"warp_error": 0.0} and measures.flow_of(config, clip) == "exact"
    assert any(f"data.preset={preset!r}" in line for line in left_out)
