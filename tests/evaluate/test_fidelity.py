"""The judge's figures move with what recognition forgives: blur, speckle, missing variety."""

import jax.numpy as jnp
import numpy as np
import pytest

from contextdiff_jax import data
from contextdiff_jax.evaluate.fidelity import fidelity, renders
from contextdiff_jax.models.recogniser import load_recogniser
from contextdiff_jax.tasks.recogniser import gaussian_blur

COUNT = 240


@pytest.fixture(scope="module")
def judged():
    """The judge, its features of a reference, and other renders in [-1, 1]."""
    judge = load_recogniser("demo")
    sources = [data.OpenMojiSource("demo", split, 32) for split in ("test", "unseen")]
    reference = judge.features(renders(sources, 480, first=COUNT))
    return judge, reference, renders(sources, COUNT).astype(np.float32) / 127.5 - 1


@pytest.fixture(scope="module")
def floor(judged):
    judge, reference, images = judged
    return fidelity(images, reference, judge)


def test_other_renders_are_the_floor(floor):
    assert floor["n"] == COUNT and floor["precision"] > 0.85 and floor["recall"] > 0.85


def test_few_pictures_are_marked(judged, floor):
    judge, reference, images = judged
    assert "20 pictures in 32 features" in fidelity(images[:20], reference, judge)["too_few"]
    assert "too_few" not in floor


def blurred(images):
    return np.asarray(gaussian_blur(jnp.asarray(images), jnp.ones((len(images), 1, 1, 1))))


def speckled(images):
    noise = np.random.default_rng(0).normal(0, 0.4, images.shape)
    return np.clip(images + noise, -1, 1).astype(np.float32)


@pytest.mark.parametrize("damage", (blurred, speckled))
def test_damage_that_recognition_forgives_shows_in_all_three(judged, floor, damage):
    judge, reference, images = judged
    damaged = damage(images)
    assert np.mean(judge.predict(damaged)[0] == judge.predict(images)[0]) > 0.9
    row = fidelity(damaged, reference, judge)
    assert row["frechet"] > 4 * floor["frechet"]
    assert row["precision"] < floor["precision"] - 0.2 and row["recall"] < floor["recall"] - 0.1


def test_one_class_alone_shows_in_all_three(judged, floor):
    """Least in precision: its pictures are good ones."""
    judge, reference, _ = judged
    source = data.OpenMojiSource("demo", "val", 32)
    frogs = [i for i in range(len(source)) if source.scene(i).objects == (2,)][:120]
    row = fidelity(np.stack([source[i]["image"] for i in frogs]), reference, judge)
    assert row["frechet"] > 20 * floor["frechet"]
    assert row["precision"] < floor["precision"] - 0.05 and row["recall"] < 0.2 * floor["recall"]


def test_features_do_not_depend_on_what_else_is_in_the_chunk(judged):
    judge, _, images = judged
    assert judge.features(images[:3]).shape == (3, 32)
    others = judge.features(images[:7], chunk=4)[:3]
    np.testing.assert_allclose(judge.features(images[:3]), others, rtol=1e-4, atol=1e-5)
