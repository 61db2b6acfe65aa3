"""Handwritten digits, 8 x 8 with 17 levels of grey, that come with scikit-learn.

They are the test part of E. Alpaydin and C. Kaynak's Optical Recognition of Handwritten Digits, UCI Machine Learning
Repository, CC BY 4.0.
"""

import functools
from typing import Any

import numpy as np

from contextdiff_jax.data import checks
from contextdiff_jax.data.base import Description, ImageSource

SPLITS = ("train", "val", "test")
SIZE = 8
_HELD_OUT = 180  # images each of val and test, of 1,797
_ORDER_SEED = 0


class DigitsSource(ImageSource):
    """Random-access digits: image uint8 [8, 8, 1] in 0..16, label, caption ("the digit 7") and index.

    The split is fixed: 1,437 train, 180 val, 180 test, no image in two of them.

    Args:
        split: train, val or test.
        image_size: 8, the only size there is.

    Raises:
        UserError: unknown split, another image size.
    """

    description = Description(channels=1, levels=17, class_names=tuple(f"the digit {i}" for i in range(10)))

    def __init__(self, split: str, image_size: int = SIZE):
        self.split = checks.split(split, SPLITS, "digits")
        checks.only_image_size(image_size, SIZE, "digits")
        images, labels = _load()
        rows = _rows(split, len(images))
        self._images, self._labels = images[rows], labels[rows]

    def __len__(self) -> int:
        return len(self._images)

    def __repr__(self) -> str:
        return f"DigitsSource({self.split!r})"

    @property
    def identity(self) -> str:
        """The split."""
        return f"digits {self.split}: {len(self)} records"

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Record `index`: image uint8 [8, 8, 1], caption str, index int, label int."""
        self.check_index(index)
        label = int(self._labels[index])
        caption = self.class_names[label]
        return {"image": self._images[index], "caption": caption, "index": int(index), "label": label}


@functools.cache
def _load() -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [1797, 8, 8, 1] and labels [1797]."""
    import sklearn.datasets  # a second to import, which only this source should cost

    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    return images.astype(np.uint8).reshape(-1, SIZE, SIZE, 1), labels


def _rows(split: str, total: int) -> np.ndarray:
    """Row numbers of a split. RandomState's stream, unlike Generator's, is the same in every numpy."""
    order = np.random.RandomState(_ORDER_SEED).permutation(total)
    held_out = {"val": order[:_HELD_OUT], "test": order[_HELD_OUT : 2 * _HELD_OUT], "train": order[2 * _HELD_OUT :]}
    return held_out[split]
