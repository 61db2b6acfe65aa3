"""Fashion-MNIST from its four idx files: 28 x 28 grey pictures of ten kinds of clothing.

H. Xiao, K. Rasul and R. Vollgraf, 2017, MIT licence, https://github.com/zalandoresearch/fashion-mnist. Debian's package
`dataset-fashion-mnist` puts the files into /usr/share/datasets/fashion-mnist.
"""

import gzip
import hashlib
import pathlib
import struct
import zlib
from typing import Any

import numpy as np

from contextdiff_jax.data import checks
from contextdiff_jax.data.base import Description, ImageSource
from contextdiff_jax.data.vocabulary import noun_phrase
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import user_path

SPLITS = ("train", "test")
SIZE, HALF = 28, 14
CLASSES = ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_COUNTS = {"train": 60_000, "test": 10_000}
_STEMS = {"train": "train", "test": "t10k"}
_IMAGES, _LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
# SHA-256 of what the files hold, once unpacked: packages compress them anew.
_CHECKSUMS = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
_UNSIGNED_BYTE = 8  # the type code of idx
_REMEDY = "get the files of https://github.com/zalandoresearch/fashion-mnist, or apt-get install dataset-fashion-mnist"


class FashionSource(ImageSource):
    """Random-access Fashion-MNIST: image uint8 [S, S, 1], label, caption ("a photo of a dress") and index.

    Args:
        path: folder of the four files, compressed (.gz) or not.
        split: train (60,000) or test (10,000).
        image_size: S, 28 as published, or 14: each pixel the rounded mean of four.

    Raises:
        UserError: unknown split, another image size, missing files, or files that are not the published ones.
    """

    description = Description(channels=1, class_names=CLASSES)

    def __init__(self, path: str, split: str, image_size: int = SIZE):
        self.split = checks.split(split, SPLITS, "fashion")
        checks.only_image_size(image_size, SIZE, "fashion", smaller=(HALF,))
        folder, count = _existing(path), _COUNTS[split]
        images = _read(folder, f"{_STEMS[split]}-{_IMAGES}", (count, SIZE, SIZE))[..., None]
        self._images = images if image_size == SIZE else _halved(images)
        self._labels = _read(folder, f"{_STEMS[split]}-{_LABELS}", (count,))
        self._path = folder

    def __len__(self) -> int:
        return len(self._images)

    def __repr__(self) -> str:
        return f"FashionSource({str(self._path)!r}, {self.split!r})"

    @property
    def identity(self) -> str:
        """The split, and the size where it is not the published one."""
        smaller = "" if self._images.shape[1] == SIZE else f", {HALF} x {HALF}"
        return f"fashion {self.split}{smaller}: {len(self)} records"

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Record `index`: image uint8 [S, S, 1], caption str, index int, label int."""
        self.check_index(index)
        label = int(self._labels[index])
        caption = _caption(label)
        return {"image": self._images[index], "caption": caption, "index": int(index), "label": label}

    def captions(self) -> list[str]:
        """The different captions of all records."""
        return sorted(_caption(label) for label in np.unique(self._labels))


def _halved(images: np.ndarray) -> np.ndarray:
    """uint8 [N, 28, 28, 1] -> [N, 14, 14, 1]."""
    sums = images.reshape(len(images), HALF, 2, HALF, 2, 1).sum((2, 4), dtype=np.uint16)
    return ((sums + 2) // 4).astype(np.uint8)


def _caption(label: int) -> str:
    return f"a photo of {noun_phrase(CLASSES[label])}"


def _existing(path: str) -> pathlib.Path:
    if not str(path):
        raise UserError(f"data.path: is empty; {_REMEDY}, and give their folder, --config.data.path=FOLDER")
    folder = user_path(path)
    if not folder.is_dir():
        raise UserError(f"data.path: {folder} is no folder; {_REMEDY}")
    return folder


def _read(folder: pathlib.Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The array of an idx file: two zero bytes, type, number of axes, their lengths as big-endian int32, the values."""
    path = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
    if path is None:
        raise UserError(f"data.path: {folder} has neither {name} nor {name}.gz; {_REMEDY}")
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"data.path: {path} cannot be read ({error}); {_REMEDY}") from error
    head = struct.pack(f">BBBB{len(shape)}I", 0, 0, _UNSIGNED_BYTE, len(shape), *shape)
    if len(raw) != (expected := len(head) + int(np.prod(shape))):
        raise UserError(f"data.path: {path} holds {len(raw)} bytes instead of {expected}; {_REMEDY}")
    if not raw.startswith(head):
        raise UserError(f"data.path: {path} is no idx file of {' x '.join(map(str, shape))} bytes; {_REMEDY}")
    if (found := hashlib.sha256(raw).hexdigest()) != _CHECKSUMS[name]:
        raise UserError(f"data.path: {path} is not the published file (SHA-256 {found[:16]}...); {_REMEDY}")
    return np.frombuffer(raw, np.uint8, offset=len(head)).reshape(shape)
