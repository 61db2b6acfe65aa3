"""A folder of the user's own images with captions, with classes, or with both.

Captions are read as Hugging Face's imagefolder has them (`metadata.jsonl` or `.csv`, with "file_name" and "text" or
"caption"), or from `name.txt` beside `name.jpg`; see `captions_on_disk`. Classes are the first folders below the root.
"""

import hashlib
import os
import pathlib
import warnings
from collections.abc import Sequence
from typing import Any

from contextdiff_jax.data import captions_on_disk, checks, class_words, images
from contextdiff_jax.data.base import Description, ImageSource, digest
from contextdiff_jax.data.listing import differing, files_below, is_folder, left_out, listed
from contextdiff_jax.data.scan import scan
from contextdiff_jax.data.vocabulary import noun_phrase
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import composed, is_unicode, persistently, user_path

SPLITS = ("train", "val")
LABELS = ("none", "subfolders")
_VAL_SHARE = 0.05
_MIN_FOR_VAL = 20  # in a smaller folder every image is for training


class TooFewImages(UserError):
    """A split of a folder has no image, because the folder is so small: the one reason to evaluate on another."""


class ImageFolderSource(ImageSource):
    """Random-access captioned images of one folder, center-cropped and resized (Lanczos) to squares.

    Every image of the split is decoded once and that is remembered (see `scan`); what cannot be read is left out,
    counted in one warning, and kept in `skipped`. The split depends on the file's name alone: from 20 images on,
    adding more moves none.

    Args:
        path: the folder.
        split: train or val (about 1 in 20; empty, hence refused, below 20 images).
        image_size: side in pixels, 8 at least.
        max_bad_fraction: share of unreadable images from which on to stop.
        labels: subfolders takes the first folder of each name for a class, and its name for a missing caption.
        class_names: the classes that a run knows; () takes those of the folder.
        words: file of words for the folders' names, see `class_words`; "" takes the names themselves.

    Attributes:
        names: file names relative to the folder, by record.
        skipped: (file name, reason) of every image left out.

    Raises:
        UserError: no such folder, no images, images without caption or class, a malformed line, too many unreadable.
    """

    def __init__(
        self,
        path: str,
        split: str,
        image_size: int,
        *,
        max_bad_fraction: float = 0.01,
        labels: str = "none",
        class_names: Sequence[str] = (),
        words: str = "",
    ):
        self.split = checks.split(split, SPLITS, "folder")
        self.image_size = checks.image_size(image_size)
        if not 0 <= max_bad_fraction <= 1:
            raise UserError(f"data.max_bad_fraction: {max_bad_fraction!r} is not a share; accepted: 0 to 1")
        self.path = existing_folder(path)
        classes = classes_of(path, labels, class_names, words)
        self.description = Description(class_names=tuple(classes.values()))
        self._labels = {folder: label for label, folder in enumerate(classes)}
        captions = self._captions_of_all()
        # The order of the records does not depend on how a system spells their names.
        names = sorted((name for name in captions if _split_of(name, len(captions)) == split), key=composed)
        if not names:
            few = f"its {len(captions)} images give an empty {split} split"
            small = len(captions) < _MIN_FOR_VAL
            remedy = f"{_MIN_FOR_VAL} at least for val" if small else "about 1 in 20 is for val, by its name"
            raise TooFewImages(f"data.path: {self.path}: {few}; add images ({remedy})")
        seen = scan(self.path, names)
        self.skipped = tuple((name, seen[name].reason) for name in names if seen[name].reason)
        reasons, what = [f"{name} ({why})" for name, why in self.skipped], f"{split} images in {self.path}"
        left_out(reasons, len(names), f"{what} cannot be read", max_bad_fraction, "save them again, or remove them")
        self.names = tuple(name for name in names if not seen[name].reason)
        self._check_trained()
        self._captions = tuple(captions[name] for name in self.names)
        self._digest = digest((composed(name), seen[name].size, composed(captions[name])) for name in self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"ImageFolderSource({str(self.path)!r}, {self.split!r}, {self.image_size})"

    @property
    def identity(self) -> str:
        """Split, number, and a digest of names, sizes in bytes and captions."""
        return f"folder {self.split}: {len(self)} images ({self._digest})"

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Record `index`: image uint8 [H, W, 3], caption str, index int, name str; label int where there are classes.

        Raises:
            UserError: the file changed since the start and cannot be read any more.
        """
        return self._record(index, images.read_image)

    def whole(self, index: int) -> dict[str, Any]:
        """Record `index` with its image as it is, uint8 [H, W, 3]; errors are the same."""
        return self._record(index, images.read_whole)

    def _record(self, index: int, read: Any) -> dict[str, Any]:
        self.check_index(index)
        name = self.names[index]
        try:
            image = persistently(lambda: read(self.path / name, self.image_size))
        except Exception as error:
            raise UserError(f"{self.path / name}: cannot be read any more: {images.reason(error)}") from error
        record = {"image": image, "caption": self._captions[index], "index": int(index), "name": name}
        return record | ({"label": self._labels[_class_of(name)]} if self._labels else {})

    def captions(self) -> list[str]:
        """The different captions of all images, none of which is read for it."""
        return sorted(set(self._captions))

    def _captions_of_all(self) -> dict[str, str]:
        """{name: caption} of all images of the folder, sorted by name."""
        names = files_below(self.path)
        image_names = images.pictures_among(names, self.path)
        if not image_names:
            raise UserError(f"data.path: {self.path} holds no images; accepted: {', '.join(sorted(images.SUFFIXES))}")
        captions = captions_on_disk.read(self.path, image_names, names)
        if self.class_names:
            self._check_classes(image_names)
            spelled = {composed(folder) for folder in self._labels}
            if outside := [name for name in captions if composed(_class_of(name)) not in spelled]:
                problem = f"a table names {outside[0]}, which is in no class subfolder"
                raise UserError(f"data.path: {problem} of {self.path}; take it out of the table")
            class_of = lambda name: self.class_names[self._labels[_class_of(name)]]
            by_class = {name: f"a photo of {noun_phrase(_in_words(class_of(name)))}" for name in image_names}
            return dict(sorted((by_class | captions).items()))
        if problem := captions_on_disk.missing(self.path, image_names, names, captions):
            raise UserError(f"data.path: {problem}")
        return captions

    def _check_classes(self, image_names: list[str]) -> None:
        """Every image has a class and every class an image."""
        found = {_class_of(name) for name in image_names}
        if "" in found:
            outside = next(name for name in image_names if not _class_of(name))
            raise UserError(f"data.path: {outside} in {self.path} is in no class subfolder; move it into one")
        if empty := sorted(self._labels.keys() - found):
            raise UserError(
                f"data.path: the class subfolder {listed(empty)} of {self.path} holds no images; add some, or remove it"
            )

    def _check_trained(self) -> None:
        """Says which classes have no image to train on."""
        absent = sorted(self._labels.keys() - {_class_of(name) for name in self.names})
        if self.split == "train" and absent:
            why = f"about 1 image in {round(1 / _VAL_SHARE)} is held out by its name"
            warnings.warn(
                f"{self.path} has no image to train on in the class subfolder {listed(absent)} ({why}); add some",
                stacklevel=3,
            )


def existing_folder(path: str) -> pathlib.Path:
    """The folder that `data.path` names.

    Raises:
        UserError: it is empty, missing or a file.
    """
    if not str(path):
        raise UserError("data.path: is empty; give the folder of images, --config.data.path=FOLDER")
    folder = user_path(path)
    if not folder.is_dir():
        kind = "is a file, not a folder" if folder.exists() else "does not exist"
        raise UserError(f"data.path: {folder} {kind}; give the folder of images")
    return folder


def classes_of(path: str, labels: str, known: Sequence[str] = (), words: str = "") -> dict[str, str]:
    """{subfolder: name of the class}, of a folder's first subfolders, in the order of the classes that are known, else
    of their own names; {} where labels are "none".

    Args:
        path: the folder.
        labels: none or subfolders.
        known: names that a run has been trained with; () where there are none yet.
        words: file of words for the subfolders' names; "" takes the names themselves. It may be gone where names are
            known.

    Raises:
        UserError: no subfolder, names that are no text or have no words, or others than those known.
    """
    if labels not in LABELS:
        raise UserError(f"data.labels: {labels!r} is unknown; accepted: {', '.join(LABELS)}")
    if labels == "none":
        return {}
    folder = existing_folder(path)
    folders = _class_folders(folder)
    if len(folders) == len(known) and words and not user_path(words).is_file():
        return dict(zip(folders, known, strict=True))
    names = class_words.named(folders, words)
    if not known:
        return dict(zip(folders, names, strict=True))
    if problem := differing(known, names):
        raise UserError(f"data.path: {folder} has other classes than data.class_names ({problem}); put them back")
    found = {composed(name): folder for folder, name in zip(folders, names, strict=True)}
    return {found[composed(name)]: name for name in known}


def _class_folders(folder: pathlib.Path) -> tuple[str, ...]:
    """The names of the first subfolders, sorted."""
    try:
        with os.scandir(folder) as entries:
            names = tuple(sorted(e.name for e in entries if not e.name.startswith(".") and is_folder(e)))
    except OSError as error:
        raise UserError(f"data.path: {folder} cannot be read ({error.strerror}); make it readable") from error
    if not names:
        raise UserError(f"data.path: {folder} has no subfolders to take classes from; set data.labels to none")
    if strange := [os.fsencode(name) for name in names if not is_unicode(name)]:
        raise UserError(f"data.path: the class subfolder {strange[0]!r} of {folder} is not UTF-8; rename it")
    spellings: dict[str, list[str]] = {}
    for name in names:
        spellings.setdefault(composed(name), []).append(name)
    if twice := next((found for found in spellings.values() if len(found) > 1), None):
        raise UserError(
            f"data.path: {folder} has the class subfolder {twice[0]!r} twice, with its accents written in two ways "
            f"({' and '.join(map(ascii, twice))}); put the images into one of them"
        )
    return names


def _in_words(class_name: str) -> str:
    """A class as a caption says it; one of underscores alone keeps its name."""
    words = class_name.replace("_", " ")
    return words if words.strip() else class_name


def _class_of(name: str) -> str:
    """The first folder of a name; empty where it is in none."""
    return name.partition("/")[0] if "/" in name else ""


def _split_of(name: str, total: int) -> str:
    """The split of a file; composed and decomposed spellings of one name are the same."""
    key = composed(name).encode("utf-8", "surrogateescape")
    share = int.from_bytes(hashlib.blake2b(key, digest_size=4).digest(), "little") / 2**32
    return "val" if share < _VAL_SHARE and total >= _MIN_FOR_VAL else "train"
