"""Image files as arrays: one path from a file to pixels, for the scan at the start, for training and for `--image`."""

import pathlib
from collections.abc import Sequence

import numpy as np
import PIL.Image
import PIL.ImageOps
from absl import logging

from contextdiff_jax.data.listing import listed
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import user_path

SUFFIXES = frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"))
# Pictures too, but of kinds that Pillow reads on some machines and not on others.
_NOT_READ = frozenset((".avif", ".heic", ".heif", ".jxl", ".jp2", ".psd", ".svg", ".dng", ".cr2", ".nef", ".arw"))
_ORIENTATION = 0x0112  # of EXIF
_TURNS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}


def pictures_among(names: Sequence[str], where: str | pathlib.Path) -> list[str]:
    """Those of a folder's files that are read as pictures; a warning names those that are pictures of other kinds."""
    of_kind = lambda kinds: [name for name in names if pathlib.PurePosixPath(name).suffix.lower() in kinds]
    if others := of_kind(_NOT_READ):
        said = "%s: pictures of kinds that are not read are left out (%d): %s; convert them to png or jpeg"
        logging.warning(said, where, len(others), listed(others))
    return of_kind(SUFFIXES)


def read_image(path: pathlib.Path, image_size: int, *, turned: bool = True) -> np.ndarray:
    """One image file as uint8 [image_size, image_size, 3]: upright, flattened on white, center-cropped.

    Args:
        path: the file.
        image_size: side in pixels.
        turned: whether to turn it as its EXIF orientation says.

    Raises:
        Exception: whatever Pillow's decoders raise, which is almost anything.
    """
    with PIL.Image.open(path) as image:
        # JPEG only: decode at a fraction of the size where that still leaves twice the pixels needed.
        image.draft("RGB", (2 * image_size, 2 * image_size))
        return fitted(image, (image_size, image_size), turned=turned)


def read_whole(path: pathlib.Path, image_size: int, *, turned: bool = True) -> np.ndarray:
    """One image file as uint8 [H, W, 3], not cropped; far larger ones come at a fraction of their size.

    Args:
        path: the file.
        image_size: what the shorter side must keep.
        turned: whether to turn it as its EXIF orientation says.

    Raises:
        Exception: as `read_image`.
    """
    with PIL.Image.open(path) as image:
        image.draft("RGB", (2 * image_size, 2 * image_size))
        whole = to_rgb(upright(image) if turned else image)
        return np.asarray(whole.reduce(max(1, min(whole.size) // (2 * image_size))))


def square(image: PIL.Image.Image, image_size: int) -> np.ndarray:
    """An image as uint8 [image_size, image_size, 3]: upright, flattened on white, center-cropped."""
    return fitted(image, (image_size, image_size))


def fitted(image: PIL.Image.Image, size: tuple[int, int], *, turned: bool = True) -> np.ndarray:
    """An image as uint8 [height, width, 3]: upright unless not to be turned, flattened on white, center-cropped."""
    shown = to_rgb(upright(image) if turned else image)
    return np.asarray(PIL.ImageOps.fit(shown, size[::-1], PIL.Image.Resampling.LANCZOS))


def stored_sides(path: pathlib.Path) -> tuple[int, int]:
    """(width, height) of an image file in pixels, before any turning.

    Raises:
        Exception: as `read_image`.
    """
    with PIL.Image.open(path) as image:
        return image.size


def upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """The image turned as its EXIF orientation says; as it is stored where that cannot be read.

    Nothing else of the EXIF block is looked at: cameras write entries that Pillow refuses to copy.
    """
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION))
    except Exception:  # a damaged block, whose pixels are none the worse
        turn = None
    return image if turn is None else image.transpose(turn)


def to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Any mode to 8-bit RGB: 16-bit greys are scaled (not clipped), transparency is laid on white.

    Raises:
        ValueError: a mode whose white is not known.
    """
    # Pillow's mode "I" has 32 bits; of a PNG, which has none of 32, it holds 16.
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        kind = "floating-point numbers" if image.mode == "F" else "integers of 32 bits"
        raise ValueError(f"its pixels are {kind}, which do not say what white is; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.float64) / 257.0
        return PIL.Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return PIL.Image.alpha_composite(PIL.Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def reason(error: Exception) -> str:
    """In a few words, why an image cannot be read."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PIL.UnidentifiedImageError):
        return "not an image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def asked_for(path: str | pathlib.Path, size: tuple[int, int]) -> np.ndarray:
    """A picture that a user names as uint8 [height, width, 3], as `read_image` reads it.

    Raises:
        UserError: whatever is wrong with the file.
    """
    try:
        with PIL.Image.open(user_path(path)) as image:
            image.draft("RGB", (2 * size[1], 2 * size[0]))
            return fitted(image, size)
    except Exception as error:
        raise UserError(f"image {str(path)!r} cannot be read ({reason(error)}); give a picture file") from error
