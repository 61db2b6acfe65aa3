"""Pictures in npz files, read a few at a time: 50,000 of them are never in memory."""

import dataclasses
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image

from contextdiff_jax.data.images import to_rgb
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import user_path

DAMAGED = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)  # of archives, locked ones too
BLOCK_BYTES = 1 << 27  # that are read at once, at the most
OF_STATISTICS = ("mu", "sigma", "mu_s", "sigma_s", "contextdiff")  # arrays that are no pictures, see statistics.py
KINDS = ((3,), (4,), (1,), ())  # channels of arrays of pictures, the likeliest first; () of [N, H, W]


@dataclasses.dataclass(frozen=True)
class Stored:
    """An array of pictures in an archive.

    Attributes:
        name: of the archive's member.
        shape: [N, H, W] of grey pictures, or [N, H, W, C] with 1, 3 or 4 channels.
        fortran: whether its first axis runs fastest.
    """

    name: str
    shape: tuple[int, ...]
    fortran: bool


def find(path: Path) -> Stored:
    """The array of pictures in an npz: colours go before grey, beside which masks and the like may stand.

    Raises:
        UserError: no npz file, no such array, or several of one kind.
    """
    found = _arrays(path)
    if not found:
        raise UserError(f"{str(path)!r} has no array of pictures; expected uint8 [N, height, width, 3], as arr_0")
    found = next(kind for k in KINDS if (kind := [array for array in found if array.shape[3:] == k]))
    if len(found) > 1:
        names = ", ".join(array.name.removesuffix(".npy") for array in found)
        raise UserError(f"{str(path)!r} has {len(found)} arrays of pictures ({names}); keep one of them in the file")
    return found[0]


def has_pictures(path: str | Path) -> bool:
    """Whether an npz has arrays of pictures, be it several.

    Raises:
        UserError: no npz file.
    """
    return bool(_arrays(user_path(path)))


def _arrays(path: Path) -> list[Stored]:
    """All that may be pictures."""
    found = []
    try:
        with zipfile.ZipFile(path) as archive:
            for name in (n for n in archive.namelist() if n.removesuffix(".npy") not in OF_STATISTICS):
                with archive.open(name) as handle:
                    shape, fortran, dtype = _header(handle)
                if dtype == np.uint8 and _are_pictures(shape):
                    found.append(Stored(name, shape, fortran))
    except DAMAGED as error:
        raise UserError(f"{str(path)!r} is no npz file ({error}); give a folder of pictures or an npz") from error
    return found


def rows(path: Path, size: int) -> Iterator[np.ndarray]:
    """Blocks of pictures uint8 [<= size, H, W, 3]: grey ones in three channels, transparent ones on white.

    Raises:
        UserError: as `find`, and a file that is damaged or cut short.
    """
    stored = find(path)
    one = int(np.prod(stored.shape[1:]))
    size = max(1, min(size, BLOCK_BYTES // one))
    for block in _columnwise(path, stored, size) if stored.fortran else _rowwise(path, stored, size, one):
        yield _as_rgb(block)


def _header(handle) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, fortran, dtype); afterwards the handle stands at the first value."""
    version = np.lib.format.read_magic(handle)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(handle)


def _are_pictures(shape: tuple[int, ...]) -> bool:
    """[N, H, W, C]; or [N, H, W], which is not one picture [H, W, C]."""
    return (len(shape) == 4 and shape[3:] in KINDS) or (len(shape) == 3 and shape[-1] > 4)


def _rowwise(path: Path, stored: Stored, size: int, one: int) -> Iterator[np.ndarray]:
    with zipfile.ZipFile(path) as archive, archive.open(stored.name) as handle:
        _header(handle)
        for start in range(0, stored.shape[0], size):
            count = min(size, stored.shape[0] - start)
            try:
                data = handle.read(count * one)
            except DAMAGED as error:
                raise UserError(f"{str(path)!r} is damaged ({error}); write it again") from error
            if len(data) < count * one:
                raise UserError(f"{str(path)!r} is cut short at picture {start + len(data) // one}; write it again")
            yield np.frombuffer(data, np.uint8).reshape(count, *stored.shape[1:])


def _columnwise(path: Path, stored: Stored, size: int) -> Iterator[np.ndarray]:
    """Of an array in Fortran's order, whose first picture is spread over all of the file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            array = file[stored.name.removesuffix(".npy")]
    except DAMAGED as error:
        raise UserError(f"{str(path)!r} is damaged ({error}); write it again") from error
    for start in range(0, len(array), size):
        yield np.ascontiguousarray(array[start : start + size])


def _as_rgb(block: np.ndarray) -> np.ndarray:
    """[B, H, W], or [B, H, W, C] -> [B, H, W, 3]."""
    if block.ndim == 4 and block.shape[-1] == 4:
        return np.stack([np.asarray(to_rgb(PIL.Image.fromarray(picture))) for picture in block])
    return np.repeat(block.reshape(*block.shape[:3], -1), 3, axis=-1) if block.shape[3:] != (3,) else block
