"""COCO's files, written small: which objects and pictures are taken, and where their boxes lie."""

import json

import numpy as np
import PIL.Image
import pytest
from data_helpers import config

from contextdiff_jax import data
from contextdiff_jax.data.augment import Augmentation
from contextdiff_jax.errors import UserError

_THINGS = [{"id": 3, "name": "car"}, {"id": 1, "name": "person"}]
_STUFF = [{"id": 157, "name": "sky-other"}, {"id": 183, "name": "other"}]
# Picture 7 is 80 x 60. Of its boxes (x, y, w, h), the small one, the crowd and the collective class do not count.
_BOXES = [(1, (10, 0, 20, 30)), (3, (40, 20, 30, 30)), (157, (0, 0, 80, 20)), (3, (1, 1, 5, 5)), (183, (0, 0, 80, 60))]


@pytest.fixture
def written(tmp_path):
    """Picture 7 with three objects, picture 8 with two, picture 9 with nine."""
    (tmp_path / "annotations").mkdir()
    images = [{"id": i, "file_name": f"{i:012}.jpg", "height": 60, "width": 80} for i in (9, 7, 8)]
    entries = [(7, *entry, 0) for entry in _BOXES] + [(7, 1, (0, 0, 40, 40), 1)]
    entries += [(8, 1, (0, 0, 40, 40), 0)] * 2 + [(9, 1, (0, 0, 40, 40), 0)] * 9
    row = lambda i, c, box, crowd: dict(image_id=i, category_id=c, bbox=list(box), iscrowd=crowd, segmentation=[[1, 2]])
    for split in ("train", "val"):
        for kind, classes in (("instances", _THINGS), ("stuff", _STUFF)):
            own = [row(*entry) for entry in entries if entry[1] in {c["id"] for c in classes}]
            table = {"images": images, "annotations": own, "categories": classes}
            (tmp_path / "annotations" / f"{kind}_{split}2017.json").write_text(json.dumps(table))
        (tmp_path / f"{split}2017").mkdir()
        pixels = np.zeros((60, 80, 3), np.uint8)
        pixels[20:50, 40:70] = 255  # the car
        for image in images:
            PIL.Image.fromarray(pixels).save(tmp_path / f"{split}2017" / image["file_name"], quality=95)
    return tmp_path


def _section(path, **changes):
    return config(source="coco", path=str(path), image_size=60, **changes)


def test_the_usual_choice(written):
    source = data.source(_section(written), "train")
    assert source.class_names == ("person", "car", "sky-other") and len(source) == 1
    record = source[0]
    assert record["objects"].tolist() == [0, 1, 2, -1, -1, -1, -1, -1] and record["objects"].dtype == np.int32
    assert record["boxes"].shape == (8, 4) and record["boxes"].dtype == np.float32
    expected = [[0, 0, 20, 30], [30, 20, 60, 50], [0, 0, 60, 20]]  # from x = 10 to 70, the middle square
    np.testing.assert_allclose(record["boxes"][:3] * 60, expected, atol=1e-4)
    assert not record["boxes"][3:].any() and record["caption"] == "person, car, sky-other"
    assert (record["image"][22:48, 32:58] > 240).all() and (record["image"][22:48, :28] < 15).all()
    assert data.held_out(_section(written))[0] == "val"
    assert data.describe(_section(written)).class_names == source.class_names
    assert data.describe(_section("gone", class_names=("a", "b"))).class_names == ("a", "b")


def test_crops_and_mirrors_take_the_boxes_along(written):
    source = data.source(_section(written, random_crop=0.8, horizontal_flip=True), "train")
    augment = Augmentation(crop=0.8, mirror=True, image_size=60)
    for example in range(8):
        record = augment(source.whole(0), 0, example)
        car = record["boxes"][1] * 60
        bright = record["image"][..., 0] > 127
        columns, rows = np.flatnonzero(bright.any(0)), np.flatnonzero(bright.any(1))
        drawn = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert record["objects"][1] == 1 and np.abs(car - drawn).max() <= 1.5


def _change(folder, change, name="instances_train2017.json"):
    path = folder / "annotations" / name
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda f: (f / "annotations" / "stuff_train2017.json").unlink(), "stuff_train2017.json is missing; get"),
        (lambda f: (f / "annotations" / "stuff_train2017.json").write_text("{"), "stuff_train2017.json is dam"),
        (lambda f: _change(f, lambda t: t.pop("annotations")), "has no list of annotations"),
        (lambda f: _change(f, lambda t: t["images"][0].pop("width")), "an entry of images without id, file_name"),
        (lambda f: _change(f, lambda t: t["annotations"][0].update(image_id=1)), r"1 of 17 .* image 1, which"),
        (lambda f: _change(f, lambda t: t["annotations"][0].update(category_id=5)), r"1 of 17 .* category 5, which"),
        (lambda f: _change(f, lambda t: t["annotations"][0].update(bbox=[50, 0, 40, 9])), "outside its image 7"),
        (lambda f: _change(f, lambda t: t["annotations"][0].update(bbox=[0, 0, "x"])), "four numbers in bbox"),
        (lambda f: (f / "train2017" / f"{7:012}.jpg").unlink(), "1 of 1 pictures .* are missing or wrong, more than"),
        (lambda f: _change(f, lambda t: t["annotations"].clear()), "no picture of train has 3 to 8 objects"),
    ],
)
def test_damaged_files_are_named(written, damage, message):
    damage(written)
    with pytest.raises(UserError, match=message) as caught:
        data.source(_section(written), "train")
    assert "\n" not in str(caught.value)


def test_a_few_wrong_annotations_are_counted_and_skipped(written):
    _change(written, lambda table: table["annotations"].append({"image_id": 7}))
    with pytest.warns(UserWarning, match="1 of 18 annotations .* skipped: an entry without image_id"):
        assert len(data.source(_section(written, max_bad_fraction=0.1), "train")) == 1
    with pytest.raises(UserError, match="split 'test' is unknown for coco; accepted: train, val"):
        data.source(_section(written), "test")
    with pytest.raises(UserError, match="data.path: 'nowhere' is no folder"):
        data.source(_section("nowhere"), "train")
