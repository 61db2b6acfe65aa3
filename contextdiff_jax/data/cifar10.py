"""CIFAR-10, from the files of its binary version in a folder or through tensorflow_datasets."""

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from contextdiff_jax.data import checks, tfds
from contextdiff_jax.data.base import Description, ImageSource
from contextdiff_jax.data.vocabulary import noun_phrase
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import user_path

SPLITS = ("train", "test")
SIZE = 32
_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_FILES = {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)}
_FOLDER = "cifar-10-batches-bin"  # what the archive unpacks to
_RECORD_BYTES = 1 + 3 * SIZE * SIZE  # label, then the red, the green and the blue plane
_RECORDS_PER_FILE = 10_000
_ARCHIVE = "the binary version, cifar-10-binary.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html"


class Cifar10Source(ImageSource):
    """Random-access CIFAR-10: image uint8 [32, 32, 3], label, caption ("a photo of a frog") and index.

    Args:
        path: folder of the binary version (data_batch_1.bin, ..., test_batch.bin, or cifar-10-batches-bin/ with
            them); empty: tensorflow_datasets, see `tfds`.
        split: train (50,000) or test (10,000).
        image_size: 32, the only size there is.

    Raises:
        UserError: unknown split, another image size, missing or damaged files, tensorflow_datasets missing.
    """

    description = Description(class_names=_CLASSES)

    def __init__(self, path: str, split: str, image_size: int = SIZE):
        self.split = checks.split(split, SPLITS, "cifar10")
        checks.only_image_size(image_size, SIZE, "cifar10")
        self.path = path
        self._read, self._length = _from_files(path, split) if path else _from_tfds(split)

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        return f"Cifar10Source({self.path!r}, {self.split!r})"

    @property
    def identity(self) -> str:
        """The split."""
        return f"cifar10 {self.split}: {len(self)} records"

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Record `index`: image uint8 [32, 32, 3], caption str, index int, label int."""
        self.check_index(index)
        image, label = self._read(int(index))
        return {"image": image, "caption": _caption(_CLASSES[label]), "index": int(index), "label": label}

    def captions(self) -> list[str]:
        """Those of all classes; no record is read for them."""
        return sorted(map(_caption, _CLASSES))


def _caption(name: str) -> str:
    return f"a photo of {noun_phrase(name)}"


Reader = Callable[[int], tuple[np.ndarray, int]]


def _from_files(path: str, split: str) -> tuple[Reader, int]:
    """Reader of the records in the binary files, and their number."""
    folder = _folder_of_files(path)
    records = np.concatenate([_read_file(folder / name) for name in _FILES[split]])
    images = records[:, 1:].reshape(-1, 3, SIZE, SIZE).transpose(0, 2, 3, 1)  # planes to channels last

    def read(index: int) -> tuple[np.ndarray, int]:
        return np.ascontiguousarray(images[index]), int(records[index, 0])

    return read, len(records)


def _folder_of_files(path: str) -> pathlib.Path:
    """The folder that holds the binary files: `path`, or the archive's own folder in it."""
    folder = user_path(path)
    first = _FILES["train"][0]
    for candidate in (folder, folder / _FOLDER):
        if (candidate / first).is_file():
            return candidate
    for candidate in (folder, folder / "cifar-10-batches-py"):
        if (candidate / "data_batch_1").is_file():
            raise UserError(f"data.path: {candidate} holds CIFAR-10 as pickles, which are not read; get {_ARCHIVE}")
    if not folder.is_dir():
        raise UserError(f"data.path: {folder} is no folder; unpack {_ARCHIVE}, and give the folder it makes")
    raise UserError(f"data.path: neither {folder} nor {_FOLDER} in it holds {first}; unpack {_ARCHIVE}, there")


def _read_file(path: pathlib.Path) -> np.ndarray:
    """The records of one file, uint8 [10000, 3073]."""
    if not path.is_file():
        raise UserError(f"data.path: {path} is missing; unpack {_ARCHIVE}, again")
    expected = _RECORDS_PER_FILE * _RECORD_BYTES
    if (size := path.stat().st_size) != expected:
        raise UserError(f"data.path: {path} has {size} bytes instead of {expected}; unpack {_ARCHIVE}, again")
    records = np.fromfile(path, np.uint8).reshape(-1, _RECORD_BYTES)
    if (label := records[:, 0].max()) >= len(_CLASSES):
        raise UserError(f"data.path: {path} has the label {label}, which CIFAR-10 has not; unpack {_ARCHIVE}, again")
    return records


def _from_tfds(split: str) -> tuple[Reader, int]:
    """Reader of tensorflow_datasets' records, and their number."""
    instead = f"unpack {_ARCHIVE}, and give its folder as data.path"
    records, count = tfds.reader("cifar10", split, instead, in_memory=True)

    def read(index: int) -> tuple[np.ndarray, int]:
        record = records(index)
        return record["image"], int(record["label"])

    return read, count
