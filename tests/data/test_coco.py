"""COCO's files, written small: which objects and pictures are taken, and where their boxes lie."""

import json

import numpy as np
import PIL.Image
import pytest
from data_helpers import config

from contextdiff_jax import data
from contextdiff_jax.data import images
from contextdiff_jax.data.augment import Augmentation
from contextdiff_jax.errors import UserError
from tests.set_files import write_coco


@pytest.fixture
def written(tmp_path):
    """Picture 7 with three objects, picture 8 with two, picture 9 with nine."""
    write_coco(tmp_path)
    return tmp_path


def _section(path, **changes):
    return config(source="coco", path=str(path), image_size=60, **changes)


def test_the_usual_choice(written):
    source = data.source(_section(written), "train")
    names = source.description.object_names
    assert names == ("person", "car", "sky-other") and not source.class_names and len(source) == 1
    record = source[0]
    assert record["objects"].tolist() == [0, 1, 2, -1, -1, -1, -1, -1] and record["objects"].dtype == np.int32
    assert record["boxes"].shape == (8, 4) and record["boxes"].dtype == np.float32
    expected = [[0, 0, 20, 30], [30, 20, 60, 50], [0, 0, 60, 20]]  # from x = 10 to 70, the middle square
    np.testing.assert_allclose(record["boxes"][:3] * 60, expected, atol=1e-4)
    assert not record["boxes"][3:].any() and record["caption"] == "person, car, sky-other"
    assert (record["image"][22:48, 32:58] > 240).all() and (record["image"][22:48, :28] < 15).all()
    assert source.captions() == [record["caption"]]
    assert data.held_out(_section(written))[0] == "val"
    assert data.describe(_section(written)) == source.description
    assert data.describe(_section("gone", class_names=("a", "b"))).object_names == ("a", "b")


def test_classes_have_the_numbers_that_are_known(written):
    known = ("sky-other", "person", "car")
    source = data.source(_section(written, class_names=known), "train")
    assert source.description.object_names == known and source[0]["objects"][:3].tolist() == [1, 2, 0]
    assert source[0]["caption"] == "person, car, sky-other"
    with pytest.raises(UserError, match=r"other classes than data.class_names \(without cat; with car, sky-other\)"):
        data.source(_section(written, class_names=("person", "cat")), "train")
    _change(written, lambda t: t["categories"].append({"id": 2, "name": "bicycle"}))
    with pytest.raises(UserError, match=r"train of .* has other classes than val \(with bicycle\)"):
        data.source(_section(written), "train")
    _change(written, lambda t: t["categories"][2].update(name="car"))
    with pytest.raises(UserError, match="two categories called car"):
        data.source(_section(written), "train")


def test_boxes_count_the_pixels_as_they_are_stored(written, monkeypatch):
    turned, picture = PIL.Image.Exif(), written / "train2017" / f"{7:012}.jpg"
    as_it_was = data.source(_section(written), "train")
    expected, whole = as_it_was[0]["image"].astype(int), as_it_was.whole(0)["image"].astype(int)
    turned[0x0112] = 6
    PIL.Image.open(picture).save(picture, quality=95, exif=turned)
    source = data.source(_section(written), "train")
    np.testing.assert_allclose(source[0]["image"], expected, atol=5)
    np.testing.assert_allclose(source.whole(0)["image"], whole, atol=5)
    with monkeypatch.context() as patch:  # known from before
        patch.setattr(images, "stored_sides", lambda path: pytest.fail(f"{path} is opened again"))
        assert data.source(_section(written), "train").identity == source.identity
    PIL.Image.open(picture).crop((0, 0, 60, 60)).save(picture)
    with pytest.raises(UserError, match=r"0007.jpg \(is 60 x 60, annotated as 80 x 60\)"):
        data.source(_section(written), "train")


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
        (lambda f: _change(f, lambda t: t["annotations"][0].update(category_id=[1])), "of 17 .* without image_id, cat"),
        (lambda f: _change(f, lambda t: t["annotations"][0].update(image_id={})), "of 17 .* without image_id, cat"),
        (lambda f: _change(f, lambda t: t["images"][0].update(height=None)), "images without id, .* or of wrong kinds"),
        (lambda f: _change(f, lambda t: t["categories"][0].update(id=[3])), "categories without id, name, or of wrong"),
        (lambda f: (f / "train2017" / f"{7:012}.jpg").unlink(), "1 of 1 pictures .* are missing or wrong, more than"),
        (lambda f: _change(f, lambda t: t["annotations"].clear()), "no picture of train has 3 to 8 objects"),
    ],
)
def test_damaged_files_are_named(written, damage, message):
    damage(written)
    with pytest.raises(UserError, match=message) as caught:
        data.source(_section(written), "train")
    assert "\n" not in str(caught.value)


def test_a_picture_that_cannot_be_decoded_is_skipped_and_named(written, tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco")
    write_coco(folder, whole=(7, 10, 11))
    before = data.source(_section(folder), "train").identity
    picture = folder / "train2017" / f"{10:012}.jpg"
    picture.write_bytes(picture.read_bytes()[:200])
    with pytest.warns(UserWarning, match=r"1 of 3 pictures .* skipped: 000000000010.jpg \(.*[Tt]runcated"):
        source = data.source(_section(folder, max_bad_fraction=0.4), "train")
    assert len(source) == 2 and source[1]["index"] == 1
    assert before.startswith("coco train: 3 records of 3 classes (") and source.identity != before
    with pytest.raises(UserError, match="more than data.max_bad_fraction=0.01 allows: 000000000010.jpg"):
        data.source(_section(folder), "train")


def test_a_few_wrong_annotations_are_counted_and_skipped(written):
    _change(written, lambda table: table["annotations"].append({"image_id": 7}))
    with pytest.warns(UserWarning, match="1 of 18 annotations .* skipped: an entry without image_id"):
        assert len(data.source(_section(written, max_bad_fraction=0.1), "train")) == 1
    with pytest.raises(UserError, match="split 'test' is unknown for coco; accepted: train, val"):
        data.source(_section(written), "test")
    with pytest.raises(UserError, match="data.path: 'nowhere' is no folder"):
        data.source(_section("nowhere"), "train")
