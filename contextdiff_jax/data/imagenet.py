"""ImageNet of ILSVRC 2012 through tensorflow_datasets, which prepares it from the set's own archives.

The source `folder` reads the same from a folder with a subfolder for each class.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image

from contextdiff_jax.data import checks, class_words, images, tfds
from contextdiff_jax.data.base import Description, ImageSource
from contextdiff_jax.data.vocabulary import noun_phrase
from contextdiff_jax.errors import UserError

NAME = "imagenet2012"
SPLITS = {"train": "train", "val": "validation"}  # its test split has no labels
_CLASSES = 1000
_INSTEAD = "take data.source='folder' with data.labels='subfolders' and its train folder as data.path"


class ImagenetSource(ImageSource):
    """Random-access ImageNet: image uint8 [H, W, 3], the middle square; label, caption ("a photo of a zebra"), index.

    Args:
        split: train (1,281,167) or val (50,000).
        image_size: side in pixels, 8 at least.
        class_names: as `describe` gives them.

    Raises:
        UserError: unknown split, tensorflow_datasets missing, the set not prepared as ArrayRecord, or another number
            of names than its 1000 classes.
    """

    def __init__(self, split: str, image_size: int, class_names: Sequence[str]):
        self.split = checks.split(split, tuple(SPLITS), NAME)
        self.image_size = checks.image_size(image_size)
        self.description = Description(class_names=tuple(class_names))
        self._read, self._length = tfds.reader(NAME, SPLITS[split], _INSTEAD, in_memory=False)
        if len(class_names) != _CLASSES:
            raise UserError(
                f"data.class_names: {len(class_names)} names for the {_CLASSES} classes of {NAME}; leave them empty, "
                "and they are read with the data"
            )

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        return f"ImagenetSource({self.split!r}, {self.image_size})"

    @property
    def identity(self) -> str:
        """The split."""
        return f"{NAME} {self.split}: {len(self)} records"

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Record `index`: image uint8 [H, W, 3], caption str, index int, label int."""
        return self._record(index, lambda image: images.square(image, self.image_size))

    def whole(self, index: int) -> dict[str, Any]:
        """Record `index` with its image as it is, uint8 [H, W, 3]."""
        return self._record(index, np.asarray)

    def _record(self, index: int, shown: Any) -> dict[str, Any]:
        self.check_index(index)
        record = self._read(int(index))
        label = int(record["label"])
        caption = _caption(self.class_names[label])
        image = shown(PIL.Image.fromarray(record["image"]))
        return {"image": image, "caption": caption, "index": int(index), "label": label}

    def captions(self) -> list[str]:
        """Those of all classes; no record is read for them."""
        return sorted({_caption(name) for name in self.class_names})


def _caption(name: str) -> str:
    return f"a photo of {noun_phrase(name)}"


def describe(known: Sequence[str], words: str) -> Description:
    """The classes: those that a run knows, or their WordNet numbers, or the words of a file for them.

    Raises:
        UserError: tensorflow_datasets is missing, or the file lacks a class.
    """
    return Description(class_names=tuple(known) or class_words.named(tfds.labels(NAME, _INSTEAD), words))
