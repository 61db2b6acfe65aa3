"""The judge: shapes, files, fairness, and the accuracy of the one that ships."""

import dataclasses
import itertools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from configs import recogniser as recipe
from contextdiff_jax.data.openmoji import OpenMojiSource, vocabulary
from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate import alignment, ceiling
from contextdiff_jax.models.recogniser import (
    NOT_AN_IMAGE,
    Recogniser,
    load_recogniser,
    resize,
    save_recogniser,
)
from contextdiff_jax.tasks.recogniser import RecogniserTask, augment, gaussian_blur


@pytest.fixture(scope="module")
def task():
    return RecogniserTask(recipe.get_config("tiny"))


@pytest.fixture(scope="module")
def untrained(task):
    return Recogniser(task.recogniser_config, jax.jit(task.init)(jax.random.key(0)))


def test_two_steps_of_the_recipe_lower_the_loss(task, untrained):
    batch = task.draw(next(task.train_iterator(0, 1)), jax.random.key(2))
    params = untrained.params

    @jax.jit
    def step(params):
        def mean(params):
            loss, metrics = task.loss(params, task.frozen, batch, jax.random.key(1))
            chex.assert_shape([loss, *metrics.values()], (8,))
            return loss.mean()

        value, grads = jax.value_and_grad(mean)(params)
        return value, jax.tree.map(lambda p, g: p - 0.05 * g, params, grads)

    first, params = step(params)
    _, params = step(params)
    assert step(params)[0] < first
    assert task.preview(params, task.frozen, jax.random.key(0)) is None


def test_full_size_recipe_has_the_promised_parameters():
    params = jax.eval_shape(RecogniserTask(recipe.get_config()).init, jax.random.key(0))
    assert 150_000 < sum(p.size for p in jax.tree.leaves(params)) < 300_000


def test_unknown_recipe_preset():
    with pytest.raises(UserError, match=":huge.*:tiny"):
        recipe.get_config("huge")


def test_prediction_does_not_depend_on_chunk_dtype_or_neighbours(untrained):
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    whole = untrained.predict(images)
    np.testing.assert_array_equal(whole, untrained.predict(images, chunk=2))
    np.testing.assert_array_equal(whole, untrained.predict(images.astype(np.float32) / 127.5 - 1))
    np.testing.assert_array_equal([w[:1] for w in whole], untrained.predict(images[:1]))
    assert untrained.predict(images[:0])[0].shape == (0,)


def test_broken_pixels_are_right_for_nothing(untrained):
    images = np.zeros((2, 32, 32, 3), np.float32)
    images[1, 3, 3, 0] = np.nan
    objects, backgrounds = untrained.predict(images)
    assert objects[1] == backgrounds[1] == NOT_AN_IMAGE and objects[0] >= 0


def test_images_must_be_images(untrained):
    with pytest.raises(UserError, match="shape"):
        untrained.predict(np.zeros((32, 32, 3)))


def test_resize_averages():
    images = jnp.asarray(np.random.default_rng(0).normal(size=(1, 64, 64, 3)), jnp.float32)
    np.testing.assert_allclose(resize(images, 32).mean(), images.mean(), atol=5e-3)
    assert resize(images, 64) is images


def test_blur_matches_a_direct_convolution():
    images = np.random.default_rng(0).normal(size=(2, 7, 9, 1)).astype(np.float32)
    sigma = np.array([0.8, 0.0], np.float32)
    blurred = gaussian_blur(jnp.asarray(images), jnp.asarray(sigma)[:, None, None, None])
    weights = np.exp(-0.5 * (np.arange(-2, 3) / 0.8) ** 2)
    kernel = np.outer(weights, weights) / weights.sum() ** 2
    padded = np.pad(images[0, :, :, 0], 2, mode="edge")
    direct = [[(padded[i : i + 5, j : j + 5] * kernel).sum() for j in range(9)] for i in range(7)]
    np.testing.assert_allclose(blurred[0, :, :, 0], direct, atol=1e-5)
    np.testing.assert_allclose(blurred[1], images[1], atol=1e-6)


def test_augment_of_nothing_is_nothing():
    images = jnp.linspace(-1, 1, 2 * 8 * 8 * 3).reshape(2, 8, 8, 3)
    same = augment(images, jax.random.key(0), blur=0.0, noise=0.0, gain=0.0, shift=0.0)
    chex.assert_trees_all_close(same, images, atol=1e-6)
    changed = augment(images, jax.random.key(0), blur=1.0, noise=0.1, gain=0.1, shift=0.1)
    assert jnp.abs(changed - images).mean() > 1e-3 and jnp.abs(changed).max() <= 1


def test_saved_and_loaded_judge_is_the_same(task, untrained, tmp_path):
    task.export(untrained.params, tmp_path)
    loaded = load_recogniser("demo", tmp_path)
    assert loaded.config == untrained.config
    chex.assert_trees_all_equal(loaded.params, jax.device_get(untrained.params))


def test_unusable_judges_are_refused(untrained, tmp_path):
    with pytest.raises(UserError, match="no recogniser for preset 'pairs'.*demo"):
        load_recogniser("pairs")
    renamed = dataclasses.replace(untrained.config, objects=("thing", *untrained.config.objects[1:]))
    save_recogniser(Recogniser(renamed, untrained.params), tmp_path / "renamed")
    with pytest.raises(UserError, match="other objects"):
        load_recogniser("demo", tmp_path / "renamed")
    save_recogniser(untrained, tmp_path / "short")
    config = tmp_path / "short" / "config.json"
    kept = config.read_text()
    for key, value in itertools.product(json.loads(kept), (None, -1, True, [[]], {}, [3], [7, 9, 5])):
        config.write_text(json.dumps(json.loads(kept) | {key: value}))
        with pytest.raises(UserError, match="recogniser in .*short"):
            load_recogniser("demo", tmp_path / "short")
    config.write_text(kept)
    weights = load_file(tmp_path / "short" / "model.safetensors")
    weights["object.bias"] = weights["object.bias"][1:]
    save_file(weights, tmp_path / "short" / "model.safetensors")
    with pytest.raises(UserError, match="object.bias: expected"):
        load_recogniser("demo", tmp_path / "short")
    (tmp_path / "short" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="cannot be read"):
        load_recogniser("demo", tmp_path / "short")
    (tmp_path / "short" / "config.json").write_text(json.dumps({"preset": "demo"}))
    with pytest.raises(UserError, match="cannot be read"):
        load_recogniser("demo", tmp_path / "short")


def test_training_scenes_hold_all_combinations():
    source, words = OpenMojiSource("demo", "recogniser", 8), vocabulary("demo")
    records = [source[i] for i in range(2000)]
    pairs = {(int(r["object"]), int(r["background"])) for r in records}
    assert len(pairs) == len(words.objects) * len(words.backgrounds)


@pytest.mark.parametrize("split", ["test", "unseen"])
def test_shipped_judge_knows_held_out_renders(split):
    figures = ceiling(OpenMojiSource("demo", split, 32), load_recogniser("demo"), 512)
    assert figures["both"] > 0.99


def test_shipped_judge_reads_other_sizes():
    figures = ceiling(OpenMojiSource("demo", "test", 64), load_recogniser("demo"), 128)
    assert figures["both"] > 0.97


def test_shipped_judge_bears_with_imperfect_pictures_but_wants_an_object():
    source = OpenMojiSource("demo", "test", 32)
    records = [source[i] for i in range(256)]
    images, objects, backgrounds = (
        np.stack([r[k] for r in records]) for k in ("image", "object", "background")
    )
    judge = load_recogniser("demo")
    images = images / np.float32(127.5) - 1
    rough = augment(jnp.asarray(images), jax.random.key(0), blur=2.0, noise=0.3, gain=0.08, shift=0.08)
    assert alignment(rough, objects, backgrounds, judge)["both"] > 0.97
    blank = np.broadcast_to(images[:, :1, :1], images.shape)  # the corner shows the background
    figures = alignment(blank, objects, backgrounds, judge)
    assert figures["background"] > 0.97 and figures["object"] < 0.2
