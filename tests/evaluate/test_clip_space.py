"""What CLIPScore sees in a CLIP space: cropped pictures and prefixed captions; what the space itself sees stays."""

import jax
import numpy as np
import pytest
from measure_helpers import pictures

from contextdiff_jax.encoders import ASSETS, load_clip
from contextdiff_jax.evaluate import feature_spaces
from contextdiff_jax.evaluate.feature_spaces import open_space
from contextdiff_jax.evaluate.metrics.clip_score import PREFIX


@pytest.fixture(scope="module")
def space():
    return open_space("clip:builtin:clip_mini")


def test_pictures_are_cropped_for_captions_alone(space):
    wide = pictures(2, 0, side=48)[:, :40]
    assert np.abs(space.cropped(wide) - space.pooled(wide)).max() > 1e-2
    square = pictures(2, 0, side=32)
    assert space.cropped(square) is space.pooled(square)  # one pass where they are the same


def test_captions_that_are_cut_are_counted(space):
    read = space.captioned
    assert read.prefix == "" and read.max_length == 32
    assert read.too_long(["a frog", "a frog " * 40]).tolist() == [False, True]
    whole, cut = read.embed(["a frog " * 40, "a frog " * 39])
    np.testing.assert_array_equal(whole, cut)


def test_the_papers_prefix_is_put_before_captions_of_other_models(tmp_path):
    (tmp_path / "model").symlink_to(ASSETS / "clip_mini")
    assert open_space(f"clip:{tmp_path / 'model'}").captioned.prefix == PREFIX == "A photo depicts "


def test_captions_need_the_text_tower_alone_on_the_devices(space):
    model = load_clip("builtin:clip_mini")
    text = {name: part for name, part in space._params.items() if not name.startswith("vis")}
    assert len(text) < len(space._params) and all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(text))
    ours = feature_spaces._text_embedding(model, text)(["a frog"])
    np.testing.assert_array_equal(ours, space.captioned.embed(["a frog"]))
