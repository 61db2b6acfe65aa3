"""Fashion-MNIST from tiny idx files written byte by byte."""

import gzip
import pathlib

import numpy as np
import pytest
from data_helpers import config

from contextdiff_jax import data
from contextdiff_jax.data import fashion
from contextdiff_jax.errors import UserError
from tests.set_files import write_fashion


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A folder with two compressed and two plain files, and what they hold."""
    return tmp_path, write_fashion(tmp_path, monkeypatch)


def _section(path, **changes):
    return config(source="fashion", path=str(path), image_size=28, **changes)


def test_reads_what_was_written(written):
    folder, content = written
    for split in ("train", "test"):
        source, (images, labels) = data.source(_section(folder), split), content[split]
        assert len(source) == len(images)
        for i, record in enumerate(map(source.__getitem__, range(len(source)))):
            np.testing.assert_array_equal(record["image"][..., 0], images[i])
            assert record["label"] == labels[i] and record["index"] == i
    assert data.held_out(_section(folder))[0] == "test"
    assert data.describe(_section("nowhere")) == source.description
    assert (source.channels, source.levels, source.num_classes) == (1, 256, 10)


def test_half_the_size_is_the_mean_of_four_pixels(written):
    folder, content = written
    source = data.source(config(source="fashion", path=str(folder), image_size=14), "train")
    images = content["train"][0].astype(np.float64)
    means = sum(images[:, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4
    for i, expected in enumerate(np.floor(means + 0.5)):
        assert source[i]["image"].dtype == np.uint8
        np.testing.assert_array_equal(source[i]["image"][..., 0], expected)
    assert "14 x 14" in source.identity and source.identity != data.source(_section(folder), "train").identity


def test_captions_are_those_of_the_records(written):
    source = data.source(_section(written[0]), "test")
    assert source.captions() == sorted({source[i]["caption"] for i in range(len(source))})


def test_captions():
    assert [f"a photo of {fashion.noun_phrase(name)}" for name in ("ankle boot", "dress", "T-shirt/top")] == [
        "a photo of an ankle boot",
        "a photo of a dress",
        "a photo of a T-shirt/top",
    ]


def _edit(change):
    def damage(folder):
        path = folder / "train-images-idx3-ubyte"
        path.write_bytes(change(path.read_bytes()))

    return damage


@pytest.mark.parametrize(
    "damage, message",
    [
        (_edit(lambda raw: raw[:-1]), "train-images-idx3-ubyte holds 4719 bytes instead of 4720"),
        (_edit(lambda raw: raw[:3] + b"\1" + raw[4:]), "is no idx file of 6 x 28 x 28 bytes"),
        (_edit(lambda raw: raw[:-1] + bytes([raw[-1] ^ 1])), "is not the published file .SHA-256"),
        (lambda folder: (folder / "train-labels-idx1-ubyte").unlink(), "has neither train-labels-idx1-ubyte nor"),
        (lambda folder: _as_gz(folder, lambda packed: packed[:50]), "ubyte.gz cannot be read .Compressed file"),
        (lambda folder: _as_gz(folder, lambda packed: b"?" * 50), "idx3-ubyte.gz cannot be read .Not a gzipped file"),
    ],
)
def test_damaged_files(written, damage, message):
    damage(written[0])
    with pytest.raises(UserError, match=f"data.path: .*{message}.*apt-get install dataset-fashion-mnist") as caught:
        data.source(_section(written[0]), "train")
    assert "\n" not in str(caught.value)


def _as_gz(folder: pathlib.Path, change):
    path = folder / "train-images-idx3-ubyte"
    path.with_suffix(".gz").write_bytes(change(gzip.compress(path.read_bytes())))
    path.unlink()


def test_bad_values(written):
    with pytest.raises(UserError, match="image_size: 32 is refused; fashion has 28 x 28"):
        data.source(config(source="fashion", path=str(written[0]), image_size=32), "train")
    with pytest.raises(UserError, match="set it to 28 or 14$"):
        data.source(config(source="fashion", path=str(written[0]), image_size=7), "train")
    with pytest.raises(UserError, match="split 'val' is unknown for fashion; accepted: train, test"):
        data.source(_section(written[0]), "val")
    for path, message in (("", "is empty"), (written[0] / "none", "is no folder")):
        with pytest.raises(UserError, match=f"data.path: .*{message}"):
            data.source(_section(path), "train")
