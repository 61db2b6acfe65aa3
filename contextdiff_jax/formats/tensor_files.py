"""Safetensors files, read by offset and written as a stream: one tensor at a time is in memory.

The library `safetensors` checks every file; its readers map a whole file, whose pages then count as this process's
memory, and its writer wants all tensors at once. Layout: 8 bytes with the length n of the header, n bytes of JSON,
data.
"""

import contextlib
import dataclasses
import json
import math
import mmap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from contextdiff_jax.errors import UserError

STEMS = ("model", "diffusion_pytorch_model")  # names of a network's file: transformers', diffusers'
DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
CHUNK = 1 << 22  # bytes that are read at once where values are converted
OWN_PAGES = 1 << 20  # bytes from which an array has pages of its own


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor in a file.

    Attributes:
        file: where it is.
        code: safetensors' name of its dtype, a key of `DTYPES` where we can read it.
        shape: PyTorch's.
        offset: of its first byte in the file.
    """

    file: Path
    code: str
    shape: tuple[int, ...]
    offset: int


@contextlib.contextmanager
def opened(file: Path) -> Iterator[BinaryIO]:
    """A file of weights, to be read within.

    Raises:
        UserError: it cannot be read; says why.
    """
    try:
        with open(file, "rb") as handle:
            yield handle
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror or error}); make it a readable file") from error


def read_header(file: Path) -> dict[str, Stored]:
    """What a file holds, by name; no data are read.

    Raises:
        UserError: it is damaged or incomplete, or cannot be read.
    """
    with opened(file) as handle:
        try:
            with safe_open(file, framework="numpy"):
                pass  # refuses headers that lie and files that were cut off
        except SafetensorError as error:
            pointer = handle.read(40).startswith(b"version https://git-lfs")
            found = "is a Git LFS pointer" if pointer else f"is damaged ({error})"
            raise UserError(f"{file} {found}; download it again") from error
        size = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(size))
    header.pop("__metadata__", None)
    return {
        name: Stored(file, entry["dtype"], tuple(entry["shape"]), 8 + size + entry["data_offsets"][0])
        for name, entry in header.items()
    }


def read_metadata(file: Path) -> dict[str, str]:
    """What a file says of itself, for a file whose header has been read."""
    with opened(file) as handle:
        size = int.from_bytes(handle.read(8), "little")
        return json.loads(handle.read(size)).get("__metadata__") or {}


def read_tensor(stored: Stored, axes: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The values of a tensor, with its axes in the order `axes`; needs `CHUNK` bytes beside the result."""
    source, dtype = DTYPES[stored.code], np.dtype(dtype)
    out = _empty([stored.shape[axis] for axis in axes], dtype)
    with opened(stored.file) as handle:
        handle.seek(stored.offset)
        if dtype == source and axes == tuple(range(len(axes))):
            handle.readinto(_bytes(out))
            return out
        view = np.atleast_1d(out.transpose(np.argsort(axes).astype(int)))
        row = math.prod(view.shape[1:])
        step = max(1, CHUNK // (row * source.itemsize or 1))
        for start in range(0, len(view), step):
            rows = min(step, len(view) - start)
            chunk = np.empty((rows, *view.shape[1:]), source)
            handle.readinto(_bytes(chunk))
            view[start : start + rows] = chunk
    return out


def _empty(shape: list[int], dtype: np.dtype) -> np.ndarray:
    """An array to be filled.

    Large ones are pages of their own, which go back to the system at once when freed, unlike malloc's; and they are
    aligned, so that jax on a CPU takes them over without a copy.
    """
    size = math.prod(shape) * dtype.itemsize
    memory = mmap.mmap(-1, size) if size >= OWN_PAGES else np.empty(size, np.uint8)
    return np.frombuffer(memory, np.uint8).view(dtype).reshape(shape)


def write_file(
    path: Path, shapes: dict[str, tuple[int, ...]], dtype: np.dtype, value_of: Callable[[str], np.ndarray]
) -> None:
    """Writes tensors one after another.

    Args:
        path: the file.
        shapes: name -> shape, in the order of writing.
        dtype: of all of them, one of `DTYPES`.
        value_of: name -> value in that shape and dtype, called when its turn comes.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": CODES[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data are aligned
    with open(path, "wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        for name in shapes:
            handle.write(_bytes(value_of(name)))


def _bytes(array: np.ndarray) -> np.ndarray:
    """The memory of a contiguous array."""
    return array.reshape(-1).view(np.uint8)
