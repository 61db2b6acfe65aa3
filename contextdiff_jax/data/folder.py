"""A folder of the user's own images with captions.

Two layouts are read: `metadata.jsonl` (one object a line, with "file_name" and "text" or "caption") as
Hugging Face's imagefolder has it, or `name.txt` beside `name.jpg`, in subfolders as well. Where there
is a metadata.jsonl, no .txt is looked at.
"""

import concurrent.futures
import hashlib
import os
import pathlib
import unicodedata
import warnings
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps

from contextdiff_jax.data import captions_on_disk, checks
from contextdiff_jax.data.base import ImageSource
from contextdiff_jax.errors import UserError

SPLITS = ("train", "val")
SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"))
_VAL_SHARE = 0.05
_MIN_FOR_VAL = 20  # in a smaller folder every image is for training
_NAMED = 10  # names that a message lists before "and N more"
_SCAN_THREADS = 8


class ImageFolderSource(ImageSource):
    """Random-access captioned images of one folder, center-cropped and resized (Lanczos) to squares.

    Every image of the split is decoded once at the start; what cannot be read is left out, counted in one
    warning, and kept in `skipped`. The split depends on the file's name alone: from 20 images on, adding more
    moves none.

    Args:
        path: the folder.
        split: train or val (about 1 in 20; empty, hence refused, below 20 images).
        image_size: side in pixels, 8 at least.
        max_bad_fraction: share of unreadable images from which on to stop.

    Attributes:
        names: file names relative to the folder, by record.
        skipped: (file name, reason) of every image left out.

    Raises:
        UserError: no such folder, no images, images without caption, a malformed line, too many unreadable.
    """

    def __init__(self, path: str, split: str, image_size: int, *, max_bad_fraction: float = 0.01):
        self.split = checks.split(split, SPLITS, "folder")
        self.image_size = checks.image_size(image_size)
        if not 0 <= max_bad_fraction <= 1:
            raise UserError(f"data.max_bad_fraction: {max_bad_fraction!r} is not a share; accepted: 0 to 1")
        self.path = _existing_folder(path)
        captions = captions_on_disk.read(self.path, _image_names(self.path))
        names = [name for name in captions if _split_of(name, len(captions)) == split]
        if not names:
            few = f"its {len(captions)} images give an empty {split} split"
            raise UserError(f"data.path: {self.path}: {few}; add images ({_MIN_FOR_VAL} at least for val)")
        self.skipped = self._find_unreadable(names, max_bad_fraction)
        bad = {name for name, _ in self.skipped}
        self.names = tuple(name for name in names if name not in bad)
        self._captions = tuple(captions[name] for name in self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"ImageFolderSource({str(self.path)!r}, {self.split!r}, {self.image_size})"

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Record `index`: image uint8 [H, W, 3], caption str, index int, name str.

        Raises:
            UserError: the file changed since the start and cannot be read any more.
        """
        self.check_index(index)
        name = self.names[index]
        try:
            image = read_image(self.path / name, self.image_size)
        except Exception as error:
            raise UserError(f"{self.path / name}: cannot be read any more: {_reason(error)}") from error
        return {"image": image, "caption": self._captions[index], "index": int(index), "name": name}

    def _find_unreadable(self, names: list[str], max_bad_fraction: float) -> tuple[tuple[str, str], ...]:
        """Decodes everything once, in threads (the decoders let go of the interpreter lock)."""
        with concurrent.futures.ThreadPoolExecutor(_SCAN_THREADS) as pool:
            reasons = pool.map(lambda name: _why_unreadable(self.path / name), names)
            bad = tuple((name, reason) for name, reason in zip(names, reasons, strict=True) if reason)
        if not bad:
            return bad
        count = f"{len(bad)} of {len(names)} {self.split} images in {self.path} cannot be read"
        listed = _listing([f"{name} ({reason})" for name, reason in bad])
        if len(bad) == len(names) or len(bad) > max_bad_fraction * len(names):
            limit = f"more than data.max_bad_fraction={max_bad_fraction} allows"
            raise UserError(f"data.path: {count}, {limit}: {listed}")
        warnings.warn(f"{count} and are skipped: {listed}", stacklevel=3)
        return bad


def read_image(path: pathlib.Path, image_size: int) -> np.ndarray:
    """One image file as uint8 [image_size, image_size, 3]: upright, flattened on white, center-cropped."""
    with PIL.Image.open(path) as image:
        # JPEG only: decode at a fraction of the size where that still leaves twice the pixels needed.
        image.draft("RGB", (2 * image_size, 2 * image_size))
        return square(image, image_size)


def square(image: PIL.Image.Image, image_size: int) -> np.ndarray:
    """An image as uint8 [image_size, image_size, 3]: upright, flattened on white, center-cropped."""
    upright = PIL.ImageOps.exif_transpose(image)
    return np.asarray(PIL.ImageOps.fit(to_rgb(upright), (image_size, image_size), PIL.Image.Resampling.LANCZOS))


def to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Any mode to 8-bit RGB: 16-bit greys are scaled (not clipped), transparency is laid on white."""
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.float64) / 257.0
        return PIL.Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return PIL.Image.alpha_composite(PIL.Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _existing_folder(path: str) -> pathlib.Path:
    if not str(path):
        raise UserError("data.path: is empty; give the folder of images, --config.data.path=FOLDER")
    folder = pathlib.Path(path).expanduser()
    if not folder.is_dir():
        kind = "is a file, not a folder" if folder.exists() else "does not exist"
        raise UserError(f"data.path: {folder} {kind}; give the folder of images")
    return folder


def _image_names(folder: pathlib.Path) -> list[str]:
    """Relative names of all images, sorted; hidden files and folders are left out."""
    names = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and pathlib.PurePath(name).suffix.lower() in SUFFIXES:
                names.append((pathlib.Path(root) / name).relative_to(folder).as_posix())
    if not names:
        raise UserError(f"data.path: {folder} holds no images; accepted: {', '.join(sorted(SUFFIXES))}")
    return sorted(names)


def _split_of(name: str, total: int) -> str:
    """The split of a file; composed and decomposed spellings of one name are the same."""
    key = unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape")
    share = int.from_bytes(hashlib.blake2b(key, digest_size=4).digest(), "little") / 2**32
    return "val" if share < _VAL_SHARE and total >= _MIN_FOR_VAL else "train"


def _why_unreadable(path: pathlib.Path) -> str:
    """Why an image cannot be decoded; empty if it can. JPEGs are decoded small, but to the last byte."""
    try:
        with PIL.Image.open(path) as image:
            image.draft("RGB", (1, 1))
            image.load()
    except Exception as error:  # decoders raise almost anything on damaged files
        return _reason(error)
    return ""


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PIL.UnidentifiedImageError):
        return "not an image"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _listing(names: list[str]) -> str:
    more = f", and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
