"""Crops and mirror images: what a record says of places stays with the pixels."""

import numpy as np
import pytest

from contextdiff_jax.data import OpenMojiSource
from contextdiff_jax.data.augment import Augmentation, Window, central_window, cropped, mirrored


def _scene(boxes, size=(60, 80)):
    """White rectangles on black, the i-th with mask value i + 1, and the record that says where they are."""
    image, mask = np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8)
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        image[y0:y1, x0:x1], mask[y0:y1, x0:x1] = 255, i + 1
    share = np.array(boxes, np.float32) / np.float32([size[1], size[0]] * 2)
    boxes = np.concatenate([share, np.zeros((1, 4), np.float32)])
    labels = np.array([*range(len(share)), -1], np.int32)
    return {"image": image, "mask": mask, "boxes": boxes, "labels": labels, "caption": "two", "index": 7}


def _drawn(mask, value):
    rows, columns = np.flatnonzero((mask == value).any(1)), np.flatnonzero((mask == value).any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


@pytest.mark.parametrize("seed", range(6))
def test_boxes_and_masks_follow_the_pixels(seed):
    record = _scene([(6, 8, 30, 40), (44, 20, 76, 50)])
    out = Augmentation(crop=0.6, mirror=True, image_size=40)(record, seed, example=3)
    assert out["image"].shape == (40, 40, 3) and out["mask"].shape == (40, 40)
    assert out["caption"] == "two" and out["index"] == 7
    assert ((out["image"][..., 0] > 127) != (out["mask"] > 0)).mean() < 0.01  # a pixel on an edge may fall either way
    for row in range(2):
        if out["labels"][row] >= 0:
            assert np.abs(out["boxes"][row] * 40 - _drawn(out["mask"], row + 1)).max() <= 1
        else:
            assert not out["boxes"][row].any()
    assert out["labels"][2] == -1 and not out["boxes"][2].any()


def test_an_object_outside_is_no_longer_listed():
    record = _scene([(0, 0, 20, 20), (40, 40, 56, 56)])
    out = cropped(record, Window(30, 20, 40), 40)
    assert out["labels"].tolist() == [-1, 1, -1]
    np.testing.assert_allclose(out["boxes"], [[0, 0, 0, 0], [0.25, 0.5, 0.65, 0.9], [0, 0, 0, 0]], atol=1e-6)
    # Of the first, a window from (10, 10) on keeps a quarter: just enough.
    assert cropped(record, Window(10, 10, 40), 40)["labels"].tolist() == [0, 1, -1]


def test_mirroring_twice_changes_nothing():
    record = OpenMojiSource("pairs", "train", 32)[5]
    once = mirrored(record)
    assert not np.array_equal(once["image"], record["image"])
    left, right = record["boxes"][:, 0], record["boxes"][:, 2]
    np.testing.assert_allclose(once["boxes"][:, 0], 1 - right, atol=1e-6)
    np.testing.assert_allclose(once["boxes"][:, 2], 1 - left, atol=1e-6)
    twice = mirrored(once)
    np.testing.assert_array_equal(twice["image"], record["image"])
    np.testing.assert_allclose(twice["boxes"], record["boxes"], atol=1e-6)


def test_crops_reach_every_place_and_keep_to_their_sizes():
    augment = Augmentation(crop=0.5, mirror=False, image_size=8)
    ramp = np.broadcast_to(np.arange(0, 240, 2, dtype=np.uint8)[None, :, None], (60, 120, 3))
    seen = np.array([augment({"image": ramp}, 0, i)["image"][4, [0, -1], 0].astype(float) for i in range(300)]) / 2
    sides = (seen[:, 1] - seen[:, 0]) * 8 / 7  # from centre to centre of the outer pixels
    assert 28 < sides.min() < 34 and 56 < sides.max() < 62
    assert seen[:, 0].min() < 6 and seen[:, 1].max() > 114


def test_the_whole_shorter_side_is_only_moved_along():
    augment = Augmentation(crop=1.0, mirror=False, image_size=20)
    image = np.random.default_rng(0).integers(0, 256, (20, 31, 3), np.uint8)
    image = np.repeat(image[:, :1], 31, axis=1)  # every column alike: a crop of the full height changes nothing
    np.testing.assert_allclose(augment({"image": image}, 0, 0)["image"].astype(int), image[:, :20], atol=1)


def test_the_middle_and_odd_numbers_of_channels():
    assert central_window(60, 80) == Window(10, 0, 60)
    image = np.arange(6 * 6 * 5, dtype=np.uint8).reshape(6, 6, 5)
    np.testing.assert_array_equal(cropped({"image": image}, Window(0, 0, 6), 6)["image"], image)
    grey = image[..., :1]
    np.testing.assert_array_equal(cropped({"image": grey}, Window(1, 2, 3), 3)["image"], grey[2:5, 1:4])
