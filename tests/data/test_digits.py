"""Handwritten digits: the data themselves, the split, the scale."""

import chex
import numpy as np
import pytest
from data_helpers import config, from_records
from sklearn.datasets import load_digits

from contextdiff_jax import data
from contextdiff_jax.data.digits import SPLITS, DigitsSource
from contextdiff_jax.errors import UserError


def test_every_image_is_in_exactly_one_split():
    original = load_digits()
    expected = {(i.astype(np.uint8).tobytes(), int(k)) for i, k in zip(original.images, original.target, strict=True)}
    records = [source[i] for source in map(DigitsSource, SPLITS) for i in range(len(source))]
    found = [(record["image"].tobytes(), record["label"]) for record in records]
    assert len(found) == len(expected) == 1797 and set(found) == expected
    assert [len(DigitsSource(split)) for split in SPLITS] == [1437, 180, 180]


def test_every_split_has_every_digit():
    for split in SPLITS:
        source = DigitsSource(split)
        counts = np.bincount([source[i]["label"] for i in range(len(source))], minlength=10)
        assert counts.min() > len(source) / 20 and counts.max() < len(source) / 5


def test_records_are_pinned():
    """A model is judged on the same held-out images by every version."""
    source = DigitsSource("test")
    assert [source[i]["caption"] for i in range(4)] == [f"the digit {i}" for i in (4, 5, 6, 3)]
    record = source[0]
    assert record["image"].shape == (8, 8, 1) and record["image"].dtype == np.uint8 and record["index"] == 0
    assert source.class_names[record["label"]] == record["caption"]
    with pytest.raises(IndexError):
        source[180]


def test_batches_have_labels_and_the_scale_of_17_levels():
    section = config(source="digits", image_size=8)
    batches = data.build(
        section, "train", batch_size=64, seed=0, process_index=0, process_count=1, from_records=from_records
    )
    batch = next(batches)
    chex.assert_shape(batch["image"], (64, 8, 8, 1))
    assert batch["label"].dtype == np.int32 and batch["label"].shape == (64,)
    levels = (batch["image"] + 1) * 8
    np.testing.assert_array_equal(levels, np.rint(levels))
    assert levels.min() == 0 and levels.max() == 16
    source = data.source(section, "train")
    for image, label, index in zip(levels, batch["label"], batch["index"], strict=True):
        np.testing.assert_array_equal(image, source[int(index)]["image"])
        assert label == source[int(index)]["label"]


def test_description_needs_no_data():
    section = config(source="digits", image_size=8)
    known, source = data.describe(section), data.source(section, "val")
    assert (known.channels, known.levels, known.num_classes) == (1, 17, 10) and known == source.description
    assert data.held_out(section)[0] == "test"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"image_size": 16}, "data.image_size: 16 is refused; digits has 8 x 8 images, set it to 8"),
        ({"image_size": 8, "horizontal_flip": True}, "data.horizontal_flip: digits"),
    ],
)
def test_bad_values(changes, message):
    with pytest.raises(UserError, match=message):
        data.source(config(source="digits", **changes), "train")
    with pytest.raises(UserError, match="split 'unseen' is unknown for digits; accepted: train, val, test"):
        DigitsSource("unseen")
