"""What every source of images offers."""

import abc
import dataclasses
import hashlib
from collections.abc import Iterable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Description:
    """What a source's images and labels are.

    Attributes:
        channels: C of the images.
        levels: values a pixel can take, 0..levels-1; bits per dimension depend on it.
        class_names: one for each value of a record's `label`; empty where records have none.
        object_names: one for each value of a record's `objects`, which stand in its `boxes`; empty where records have
            none.
        max_objects: places for objects in a record.
    """

    channels: int = 3
    levels: int = 256
    class_names: tuple[str, ...] = ()
    object_names: tuple[str, ...] = ()
    max_objects: int = 0

    @property
    def num_classes(self) -> int:
        """How many classes there are; 0 where records have no label."""
        return len(self.class_names)


def digest(facts: Iterable[tuple]) -> str:
    """A short hash of what tells records from others, one tuple each."""
    found = hashlib.blake2b(digest_size=6)
    for fact in facts:
        found.update(repr(fact).encode("utf-8", "surrogateescape"))
    return found.hexdigest()


class ImageSource(abc.ABC):
    """Random-access records with at least image (uint8 [H, W, channels]), caption (str) and index (int).

    Where there are classes, records also have label (int, 0..num_classes-1).
    """

    description = Description()

    @property
    def channels(self) -> int:
        """C of the images."""
        return self.description.channels

    @property
    def levels(self) -> int:
        """Values a pixel can take."""
        return self.description.levels

    @property
    def class_names(self) -> tuple[str, ...]:
        """One for each label; empty where records have none."""
        return self.description.class_names

    @property
    def num_classes(self) -> int:
        """0 where records have no label."""
        return self.description.num_classes

    @abc.abstractmethod
    def __len__(self) -> int:
        """How many records there are."""

    @abc.abstractmethod
    def __getitem__(self, index: int) -> dict[str, Any]:
        """Record `index`, always the same."""

    @property
    def identity(self) -> str:
        """What tells these records, their order included, from others; the same wherever they lie."""
        return f"{type(self).__name__}: {len(self)} records"

    def captions(self) -> list[str]:
        """The different captions of all records."""
        return sorted({self[i]["caption"] for i in range(len(self))})

    def whole(self, index: int) -> dict[str, Any]:
        """Record `index` before its image is cropped to a square: [H, W, channels], for crops elsewhere."""
        return self[index]

    def check_index(self, index: int) -> None:
        """IndexError outside 0..len-1 (no counting from the end: a negative index is a mistake here)."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {self!r}, which has {len(self)}")
