"""Masks and windows against plain numpy."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from contextdiff_jax.data.one_clip import window_starts
from contextdiff_jax.editing import masks
from contextdiff_jax.editing.edit import given_mask
from contextdiff_jax.editing.windows import over_windows
from contextdiff_jax.errors import UserError


def test_a_mask_is_pooled_resized_normalised_and_thresholded():
    maps = np.random.default_rng(0).random((3, 8, 8)).astype(np.float32)
    for size in ((8, 8), (4, 4), (12, 16)):
        expected, ranged = np.zeros((2, 3, *size))
        for f in range(3):
            padded = np.pad(maps[f], 1, constant_values=-np.inf)
            pooled = np.max([padded[i : i + 8, j : j + 8] for i in range(3) for j in range(3)], axis=0)
            resized = torch.nn.functional.interpolate(torch.tensor(pooled)[None, None], size)[0, 0].numpy()
            expected[f] = resized / resized.max() > 0.9
            ranged[f] = (resized - pooled.min()) / (resized.max() - pooled.min()) > 0.5
        np.testing.assert_array_equal(masks.mask(jnp.asarray(maps), size, 0.9), expected)
        np.testing.assert_array_equal(masks.mask(jnp.asarray(maps), size, 0.5, "range"), ranged)
        nearly_flat = jnp.asarray(8.0 + maps)
        assert masks.mask(nearly_flat, size, 0.5).all()
        np.testing.assert_array_equal(masks.mask(nearly_flat, size, 0.5, "range"), ranged)
    for scale in ("maximum", "range"):
        assert not masks.mask(jnp.zeros((1, 8, 8)), (8, 8), 0.3, scale).any()


def test_a_clips_own_mask_covers_whatever_the_object_touches():
    own = np.zeros((2, 8, 8), bool)
    own[0, 3, 5] = True
    inside = given_mask(own, "clip", 2, (4, 4))
    assert inside[0, 1, 2] == 1 and inside.sum() == 1
    np.testing.assert_array_equal(given_mask(own, "around", 2, (4, 4)), 1 - inside)
    assert given_mask(None, "clip", 2, (4, 4)).all()
    assert masks.shrink(jnp.asarray(inside), (2, 2))[0].tolist() == [[0, 1], [0, 0]]  # nor where a map is smaller
    np.testing.assert_array_equal(masks.shrink(jnp.asarray(inside), (3, 3)), masks.resize_nearest(inside, (3, 3)))


def test_windows_cover_the_clip_and_agree_where_they_overlap():
    assert window_starts(8, 8, 4).tolist() == [0]
    assert window_starts(3, 3, 4).tolist() == [0]  # one window has nothing to overlap with
    assert window_starts(20, 8, 4).tolist() == [0, 4, 8, 12]
    assert window_starts(9, 8, 4).tolist() == [0, 1]
    x = np.random.default_rng(1).normal(size=(11, 2)).astype(np.float32)
    call = lambda part: {"y": part["x"] - part["x"].mean(axis=0)}  # depends on the window's other frames
    found = over_windows(call, 11, 4, 2)({"x": jnp.asarray(x)})["y"]
    total, count = np.zeros_like(x), np.zeros((11, 1))
    for first in window_starts(11, 4, 2):
        total[first : first + 4] += x[first : first + 4] - x[first : first + 4].mean(axis=0)
        count[first : first + 4] += 1
    assert (count >= 1).all() and (count > 1).any()
    np.testing.assert_allclose(found, total / count, atol=1e-6)
    assert over_windows(call, 4, 4, 2) is call
    for length, window, overlap in ((3, 4, 2), (8, 4, 4)):
        with pytest.raises(UserError, match="window"):
            window_starts(length, window, overlap)
