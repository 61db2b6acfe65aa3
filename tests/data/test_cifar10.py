"""CIFAR-10 from generated binary files, and through tensorflow_datasets where that is installed."""

import functools
import re
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from data_helpers import config, from_records

from contextdiff_jax import data
from contextdiff_jax.data import cifar10
from contextdiff_jax.errors import UserError

_FILES = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
_PER_FILE = 7
_ALONE = dict(seed=0, process_index=0, process_count=1, from_records=from_records)


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A folder of six small files, and what they hold: name -> (images [7, 32, 32, 3], labels [7])."""
    monkeypatch.setattr(cifar10, "_RECORDS_PER_FILE", _PER_FILE)
    rng, content = np.random.default_rng(0), {}
    for name in _FILES:
        images = rng.integers(0, 256, (_PER_FILE, 32, 32, 3), dtype=np.uint8)
        labels = rng.integers(0, 10, _PER_FILE)
        content[name] = images, labels
        # The format in words: one byte of label, 1024 of red row by row, 1024 of green, 1024 of blue.
        with open(tmp_path / name, "wb") as file:
            for image, label in zip(images, labels, strict=True):
                file.write(bytes([label]))
                for channel in range(3):
                    file.write(bytes(int(v) for row in image for v in row[:, channel]))
    (tmp_path / "batches.meta.txt").write_text("\n".join(cifar10._CLASSES) + "\n")
    return tmp_path, content


def _section(path, **changes):
    return config(source="cifar10", path=str(path), image_size=32, **changes)


def test_reads_what_was_written(written):
    folder, content = written
    for split, names in (("train", _FILES[:5]), ("test", _FILES[5:])):
        source = data.source(_section(folder), split)
        images = np.concatenate([content[name][0] for name in names])
        labels = np.concatenate([content[name][1] for name in names])
        assert len(source) == len(images)
        for i in range(len(source)):
            record = source[i]
            np.testing.assert_array_equal(record["image"], images[i])
            assert record["label"] == labels[i] and record["index"] == i
            assert record["caption"].endswith(source.class_names[labels[i]])
    assert data.held_out(_section(folder))[0] == "test"
    assert (source.channels, source.levels, source.num_classes) == (3, 256, 10)
    assert data.describe(_section(folder)) == source.description


def test_reads_the_archive_s_own_folder(written, tmp_path_factory):
    folder, _ = written
    parent = tmp_path_factory.mktemp("unpacked")
    folder.rename(parent / "cifar-10-batches-bin")
    assert len(data.source(_section(parent), "train")) == 35


def test_flips_about_half_of_the_training_images(written):
    section, flipped = _section(written[0], horizontal_flip=True), []
    source = data.source(section, "train")
    batches = data.build(section, "train", **_ALONE, batch_size=35, augment=True)
    for _ in range(4):
        batch = next(batches)
        assert batch["label"].dtype == np.int32
        for image, index, label in zip(batch["image"], batch["index"], batch["label"], strict=True):
            record = source[int(index)]
            plain = record["image"] / np.float32(127.5) - 1
            flipped.append(not np.array_equal(image, plain))
            np.testing.assert_array_equal(image[:, ::-1] if flipped[-1] else image, plain)
            assert label == record["label"]
    assert 40 < sum(flipped) < 100


def _truncate(folder):
    (folder / "data_batch_3.bin").write_bytes((folder / "data_batch_3.bin").read_bytes()[:-1])


def _remove(folder):
    (folder / "data_batch_5.bin").unlink()


def _spoil(folder):
    path = folder / "data_batch_2.bin"
    path.write_bytes(bytes([11]) + path.read_bytes()[1:])


def _pickles(folder):
    for path in folder.glob("*.bin"):
        path.rename(path.with_suffix(""))


def _empty(folder):
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    "damage, message",
    [
        (_truncate, r"data_batch_3\.bin has 21510 bytes instead of 21511"),
        (_remove, r"data_batch_5\.bin is missing"),
        (_spoil, r"data_batch_2\.bin has the label 11"),
        (_pickles, r"as pickles, which are not read; get the binary version, cifar-10-binary\.tar\.gz"),
        (_empty, r"neither .* nor cifar-10-batches-bin in it holds data_batch_1\.bin"),
    ],
)
def test_damaged_folders(written, damage, message):
    damage(written[0])
    with pytest.raises(UserError, match=message) as caught:
        data.source(_section(written[0]), "train")
    assert "\n" not in str(caught.value)


def test_bad_values(written):
    with pytest.raises(UserError, match="data.image_size: 16 is refused; cifar10 has 32 x 32"):
        data.source(config(source="cifar10", path=str(written[0]), image_size=16), "train")
    with pytest.raises(UserError, match="split 'val' is unknown for cifar10; accepted: train, test"):
        data.source(_section(written[0]), "val")
    with pytest.raises(UserError, match=re.escape(f"{written[0] / 'nowhere'} is no folder")):
        data.source(_section(written[0] / "nowhere"), "train")


def test_without_tensorflow_datasets_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match="pip install tensorflow-datasets importlib_resources tensorflow"):
        data.source(_section(""), "train")


def test_mocked_tfds_feeds_batches():
    with tfds.testing.mock_data(num_examples=12):
        section = _section("", horizontal_flip=True)
        batch = next(
            data.build(section, "train", **_ALONE, batch_size=8)
        )
    assert batch["image"].shape == (8, 32, 32, 3) and batch["image"].dtype == np.float32
    assert -1 <= batch["image"].min() < -0.5 and 0.5 < batch["image"].max() <= 1
    assert batch["label"].shape == (8,) and set(batch["label"]) <= set(range(10))


@pytest.mark.parametrize("prepared_as", ["array_record", "tfrecord"])
def test_tfds_prepared_from_the_same_files_gives_the_same_records(prepared_as, written, tmp_path_factory, monkeypatch):
    """tensorflow_datasets' own reader of the binary files is the oracle of ours; only its download is replaced."""
    pytest.importorskip("tensorflow", reason="preparing a set, unlike reading it, needs tensorflow")
    folder, _ = written
    parent = tmp_path_factory.mktemp("unpacked")
    (parent / "cifar-10-batches-bin").symlink_to(folder)
    download = lambda manager, url: str(parent)
    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", download)
    prepared = str(tmp_path_factory.mktemp("prepared"))
    builder = functools.partial(tfds.builder, data_dir=prepared)
    monkeypatch.setattr(tfds, "builder", builder)
    if prepared_as == "tfrecord":
        builder("cifar10").download_and_prepare()
    for split in ("train", "test"):
        source, ours = data.source(_section(""), split), data.source(_section(folder), split)
        as_set = lambda records: {(records[i]["image"].tobytes(), records[i]["caption"]) for i in range(len(records))}
        assert len(source) == len(ours) and as_set(source) == as_set(ours)  # they shuffle once, when preparing
