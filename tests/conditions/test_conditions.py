"""Class conditions, and the spaces in which diffusion takes place."""

import jax
import numpy as np
import pytest

from contextdiff_jax.conditions import ClassCondition
from contextdiff_jax.conditions.features import PatchFeatures
from contextdiff_jax.conditions.spaces import Pixels, fit_rgb_map, read_rgb_map, write_rgb_map
from contextdiff_jax.errors import UserError


def test_classes_are_read_by_name_and_by_number():
    condition = ClassCondition(("cat", "dog", "7"))
    np.testing.assert_array_equal(condition.read(["dog", " cat ", "1", "7"])["label"], [1, 0, 1, 2])
    for wrong in ("bird", "3", "-1", "1.0"):
        with pytest.raises(UserError, match="accepted: 0 to 2, or cat, dog, 7"):
            condition.read([wrong])


def test_names_are_taken_as_they_are_before_blanks_are():
    condition = ClassCondition(("cats", "cats ", "10", "1"))
    np.testing.assert_array_equal(condition.read(["cats ", "cats", " cats ", "1", "2"])["label"], [1, 0, 0, 3, 2])
    assert [condition.name_of(number) for number in (1, 3)] == ["cats ", "1"]
    with pytest.raises(UserError, match="prompt 10 is no class"):
        condition.name_of(10)


def test_the_class_is_one_token_and_no_class_is_another():
    condition = ClassCondition(("cat", "dog"))
    context = condition.encode({}, {"label": np.array([1, 0])})
    np.testing.assert_array_equal(context.pooled, [[0, 1, 0], [1, 0, 0]])
    assert context.tokens.shape == (2, 1, 3) and context.mask.all()
    np.testing.assert_array_equal(condition.null({}, context).pooled, [[0, 0, 1], [0, 0, 1]])
    empty = condition.encode({}, condition.empty(2))
    np.testing.assert_array_equal(condition.null({}, context).tokens, empty.tokens)


def test_what_was_not_asked_for_stays_in_the_null_condition():
    condition = ClassCondition(("cat", "dog"))
    picture = np.arange(8.0).reshape(2, 2, 2, 1)
    context = condition.encode({}, {"label": np.array([1, 0])}).replace(spatial=picture, level=np.array([0.1, 0.2]))
    null = condition.null({}, context)
    np.testing.assert_array_equal(null.spatial, picture)
    np.testing.assert_array_equal(null.level, [0.1, 0.2])
    np.testing.assert_array_equal(null.pooled, [[0, 0, 1], [0, 0, 1]])


def test_conditions_come_from_records():
    records = [{"label": 1, "caption": "a dog"}, {"label": 0, "caption": "a cat"}]
    np.testing.assert_array_equal(ClassCondition(("cat", "dog")).from_records(records)["label"], [1, 0])
    assert ClassCondition(()).from_records(records) == {}


def test_without_classes_every_condition_is_the_empty_one():
    condition = ClassCondition(())
    assert not condition.takes_prompts
    batch = condition.read(["", "", ""]) | {"image": np.zeros((3, 4, 4, 1))}
    context = condition.encode({}, batch)
    np.testing.assert_array_equal(context.tokens, condition.null({}, context).tokens)


def test_the_colour_map_is_the_least_squares_solution():
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(5, 4, 4, 3))
    images = rng.uniform(-1, 1, size=(5, 8, 8, 3))
    found = fit_rgb_map(latents, images)
    means = np.stack([images[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]).mean(0)
    design = np.concatenate([latents.reshape(-1, 3), np.ones((80, 1))], axis=1)
    expected = np.linalg.lstsq(design, means.reshape(-1, 3), rcond=None)[0]
    np.testing.assert_allclose(found["kernel"], expected[:3], atol=1e-4)
    np.testing.assert_allclose(found["bias"], expected[3], atol=1e-4)


def test_a_colour_map_survives_the_disk(tmp_path):
    assert read_rgb_map(tmp_path) is None and read_rgb_map("") is None
    written = {"kernel": np.arange(12, dtype=np.float32).reshape(4, 3) / 7, "bias": np.ones(3, np.float32)}
    write_rgb_map(written, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, read_rgb_map(tmp_path), written)


def test_patches_are_the_sample_s_own_values():
    x0 = np.arange(2 * 4 * 6 * 1, dtype=np.float32).reshape(2, 4, 6, 1)
    features = PatchFeatures((4, 6, 1), 2)
    tokens = features.encode({}, {}, x0)
    assert features.grid(x0.shape[1:]) == (2, 3) and tokens.shape == (2, 6, 4)
    np.testing.assert_array_equal(tokens[1, 4], x0[1, 2:4, 2:4, 0].ravel())
    with pytest.raises(UserError, match="patch_size=4"):
        PatchFeatures((4, 6, 1), 4)


def test_grey_pictures_are_shown_to_encoders_in_three_channels():
    space = Pixels(8, 1)
    assert space.shape == (8, 8, 1)
    assert space.to_rgb({}, np.zeros((2, 8, 8, 1))).shape == (2, 8, 8, 3)
