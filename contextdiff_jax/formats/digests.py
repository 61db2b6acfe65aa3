"""What tells the weights in one folder from those in another."""

import hashlib
from pathlib import Path

import numpy as np

from contextdiff_jax.formats.pretrained import stored_tensors
from contextdiff_jax.formats.tensor_files import DTYPES, read_tensor


def digest(folder: Path) -> str:
    """What tells a model's weights from others': a hash of all tensors as float32, however they are stored."""
    result = hashlib.sha256()
    for name, stored in sorted(stored_tensors(folder).items()):
        if stored.code in DTYPES:
            result.update(f"{name} {stored.shape}".encode())
            axes = tuple(range(len(stored.shape)))
            result.update(np.atleast_1d(read_tensor(stored, axes, np.float32)).reshape(-1).view(np.uint8))
    return result.hexdigest()[:16]


def of_text(text: str) -> str:
    """A hash of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def stamp(folder: Path) -> str:
    """What changes when one of a model's files is written: a hash of their names, sizes and times."""
    files = sorted({stored.file for stored in stored_tensors(folder).values()})
    states = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return of_text(repr(states))
