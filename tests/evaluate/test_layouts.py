"""Objects in their boxes: by hand, on real renders with the shipped judge, and on renders of other layouts."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from contextdiff_jax import data
from contextdiff_jax.evaluate.groups import Seen
from contextdiff_jax.evaluate.layouts import crops, iou, layout_figures, slid
from contextdiff_jax.models.recogniser import load_recogniser


def test_overlap_by_hand():
    assert iou((0, 0, 0.5, 0.5), (0, 0, 0.5, 0.5)) == 1
    assert iou((0, 0, 0.5, 0.5), (0.5, 0, 1, 1)) == 0
    np.testing.assert_allclose(iou((0, 0, 0.4, 0.4), (0.2, 0.2, 0.6, 0.6)), 0.04 / 0.28)


def test_a_picture_is_right_with_all_of_its_objects():
    images, places = np.zeros((2, 4, 4, 3), np.uint8), [0, 2]
    seen = lambda **marks: Seen("layouts", "", ["a", "b"], places, images, {k: np.array(v) for k, v in marks.items()})
    one_half = seen(object=[1.0, 0.5, 0.5], iou=[0.7, 0.4, 1.0])
    assert one_half.verdicts.tolist() == [True, False]
    assert seen(object=[0.0, 1.0, 1.0], iou=[1.0, 1.0, 1.0]).verdicts.tolist() == [False, True]
    both = seen(object=[1.0, 1.0, 1.0], background=[1.0, 0.0, 0.0], both=[1.0, 0.0, 0.0])
    assert both.verdicts.tolist() == [True, False]
    assert seen().verdicts is None and seen(object=[1.0, 1.0, np.nan]).verdicts is None


def test_slid_boxes_begin_with_the_box_and_stay_inside():
    boxes = slid((0.1, 0.5, 0.4, 0.9))
    assert boxes[0] == (0.1, 0.5, 0.4, 0.9) and len(set(boxes)) == len(boxes) > 10
    assert all(0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1 for x0, y0, x1, y1 in boxes)


def test_a_crop_shows_the_box_with_its_margin():
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[10:30, 20:40] = 255
    shown, _ = crops(pixels, [(0.25, 0.25, 0.5, 0.75), (0, 0, 1, 1)], 28)
    assert shown.shape == (28, 28, 3) and (shown[5:23, 5:23] == 255).all() and (shown[:3] == 0).all()
    (at_the_edge,) = crops(pixels[10:30, 20:40], [(0, 0, 1, 1)], 8)
    assert (at_the_edge == 255).all()


@pytest.fixture(scope="module")
def renders():
    section = ConfigDict(
        dict(source="openmoji", preset="demo_pairs", path="", image_size=32, seed=0)
        | dict(horizontal_flip=False, random_crop=0.0)
    )
    source = data.source(section, "test")
    records = [source[i] for i in range(10)]
    layouts = [list(zip(r["objects"].tolist(), map(tuple, r["boxes"].tolist()), strict=True)) for r in records]
    return np.stack([r["image"] for r in records]), layouts


def test_renders_keep_to_their_own_layouts_and_not_to_others(renders):
    images, layouts = renders
    judge = load_recogniser("demo")
    own = layout_figures(images, layouts, judge)
    other = layout_figures(images, layouts[1:] + layouts[:1], judge)
    assert (own["n"], own["objects"]) == (10, 20) and own["object"] > 0.8 and own["iou"] > 0.5
    assert other["object"] < 0.4 and other["iou"] < own["iou"] - 0.1
    blank = layout_figures(np.full_like(images, 128), layouts, judge)
    assert blank["object"] < 0.3
    assert layout_figures(images[:3], layouts[:3], judge)["n"] == 3 and judge._chances._cache_size() == 1


def test_pictures_count_alike_however_many_objects_they_show(renders):
    images, layouts = renders
    figures = layout_figures(images[:3], [layouts[0], [], layouts[2][:1]], load_recogniser("demo"))
    assert (figures["n"], figures["objects"]) == (2, 3)
