"""ImageNet through tensorflow_datasets, whose stand-in makes the records up; nothing is downloaded."""

import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from data_helpers import config

from contextdiff_jax import data
from contextdiff_jax.errors import UserError


def _section(**changes):
    return config(source="imagenet2012", image_size=24, **changes)


def test_records_are_squares_of_named_classes(tmp_path):
    section = _section()
    numbers = data.describe(section).class_names
    assert len(numbers) == 1000 and numbers[:2] == ("n01440764", "n01443537")
    (tmp_path / "words.txt").write_text("\n".join(f"{number} thing {i}" for i, number in enumerate(numbers)))
    section.class_words = str(tmp_path / "words.txt")
    with tfds.testing.mock_data(num_examples=3):
        with pytest.raises(UserError, match="data.class_names: 2 names for the 1000 classes of imagenet2012"):
            data.source(_section(class_names=("a", "b")), "val")
        split, source = data.held_out(section)
        record, whole = source[2], source.whole(2)
    assert split == "val" and len(source) == 3 and source.class_names[7] == "thing 7"
    assert record["image"].shape == (24, 24, 3) and record["image"].dtype == np.uint8 and whole["image"].ndim == 3
    assert record["caption"] in source.captions() and len(source.captions()) == 1000
    assert record["label"] == whole["label"] and record["caption"] == f"a photo of a thing {record['label']}"
    section.update(class_names=("a", "b"), class_words="gone")
    assert data.describe(section).class_names == ("a", "b")


def test_what_cannot_be_had_is_said(monkeypatch):
    with pytest.raises(UserError, match="split 'test' is unknown for imagenet2012; accepted: train, val"):
        data.source(_section(class_names=("a",)), "test")

    class Prepared:
        info = type("Info", (), {"file_format": tfds.core.FileFormat.TFRECORD})

        def is_prepared(self):
            return True

    monkeypatch.setattr(tfds, "builder", lambda name: Prepared())
    with pytest.raises(UserError, match=r"prepared as TFRecord, .* or take data.source='folder'"):
        data.source(_section(class_names=("a",)), "val")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match="imagenet2012 needs tensorflow_datasets; pip install"):
        data.source(_section(class_names=("a",)), "train")
