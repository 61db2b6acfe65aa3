"""Is a checkpoint what was saved? Checksums of its files, fingerprints of its arrays.

Two independent witnesses. *Checksums* (SHA-256 of every file) are written beside the files once the
checkpoint is committed; they are checked before anything is read and can name the damaged file.
*Fingerprints* of the arrays are computed where they lie before the save and travel inside the checkpoint;
they are compared after every restore. A kill between commit and checksums therefore costs nothing: such a
checkpoint is accepted exactly if its fingerprints match.
"""

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.errors import UserError
from contextdiff_jax.training.sharding import leaf_name
from contextdiff_jax.types import Array

CHECKSUMS = "checksums.json"
_THREADS = 8  # that read and hash files at a time
_CHUNK = 2**16  # numbers of an array on the host that are looked at together


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digests(paths: Iterable[Path]) -> Iterator[str]:
    """The digests of files, in their order, several of which are read at a time."""
    with ThreadPoolExecutor(_THREADS) as threads:
        yield from threads.map(file_digest, paths)


def json_digest(value: Any) -> str:
    """SHA-256 of a value's canonical JSON, hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_checksums(directory: Path) -> None:
    """Writes the checksum file of a committed checkpoint: whole and on the disk, or not at all."""
    files = sorted(p for p in directory.rglob("*") if p.is_file() and not p.name.startswith(CHECKSUMS))
    names = [str(p.relative_to(directory)) for p in files]
    digests = dict(zip(names, _digests(files), strict=True))
    temporary = directory / f"{CHECKSUMS}.tmp"
    with temporary.open("w", encoding="utf-8") as file:
        json.dump({"sha256": digests, "self": json_digest(digests)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, directory / CHECKSUMS)
    folder = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def has_checksums(directory: Path) -> bool:
    """False for a checkpoint whose run was killed between commit and checksums."""
    return (directory / CHECKSUMS).exists()


def find_damage(directory: Path, without: Collection[str] = ()) -> str | None:
    """What is wrong with the files of a checkpoint, in words; None if nothing that checksums can see.

    Without a checksum file only an empty folder counts as damaged here; the fingerprints decide later.

    Args:
        directory: of the checkpoint.
        without: items that are not looked at, because nobody is going to read them.

    Raises:
        UserError: a file that may not be read, which is no damage; says why.
    """
    try:
        os.listdir(directory)  # what follows takes a folder that it may not look into for an empty one
        return _damage(directory, without)
    except OSError as error:
        raise UserError(
            f"checkpoint {error.filename or directory} cannot be read ({error.strerror or error}); make it readable"
        ) from error


def _damage(directory: Path, without: Collection[str]) -> str | None:
    """What `find_damage` returns; OSError where something cannot be read."""
    if not any(p.is_file() for p in directory.rglob("*")):
        return "the folder is empty"
    if not has_checksums(directory):
        return None
    try:
        record = json.loads((directory / CHECKSUMS).read_text(encoding="utf-8"))
        digests = record["sha256"]
        if record["self"] != json_digest(digests):
            return f"{CHECKSUMS} is damaged"
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"{CHECKSUMS} is damaged"
    names = [name for name in digests if name.partition("/")[0] not in without]
    for name in names:
        if not (directory / name).is_file():
            return f"{name} is missing"
    for name, found in zip(names, _digests(directory / name for name in names), strict=True):
        if found != digests[name]:
            return f"{name} does not match its checksum"
    return None


def set_aside(directory: Path) -> Path:
    """Renames a damaged checkpoint to <step>.damaged-<n>, which is no step's name; nothing is deleted."""
    n = 0
    while (target := directory.with_name(f"{directory.name}.damaged-{n}")).exists():
        n += 1
    os.rename(directory, target)
    return target


def fingerprints(tree: Any) -> tuple[bool, dict[str, int]]:
    """Whether all numbers are finite, and a 32-bit fingerprint of every leaf by name.

    The fingerprint is the sum of all words, each times an odd number of its position, modulo 2^32: exact
    integer arithmetic, so that it does not depend on how the array is spread over devices. Every single
    flipped bit changes it, and so does exchanging unequal neighbours. Collective: every process must call it.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    # One small program per shape; a single one for hundreds of leaves takes long to compile.
    finite, values = zip(*jax.device_get([_started(leaf) for _, leaf in leaves]), strict=True)
    names = [leaf_name(path) for path, _ in leaves]
    return all(finite), dict(zip(names, map(int, values), strict=True))


def _started(leaf: Array) -> tuple[Any, Any]:
    """The fingerprint of a leaf, on its way where that can wait.

    Not on CPUs: hundreds of programs in flight, each of which lets its devices wait for one another, hang where devices
    share few threads. What NumPy or one CPU device holds takes no program at all.
    """
    if not isinstance(leaf, jax.Array) or (leaf.is_fully_addressable and _platforms(leaf) == ["cpu"]):
        return _of_host(np.asarray(leaf))
    found = _fingerprint(leaf)
    return found if jax.default_backend() != "cpu" else jax.device_get(found)


def _platforms(x: jax.Array) -> list[str]:
    return [device.platform for device in x.devices()]


def _of_host(x: np.ndarray) -> tuple[bool, int]:
    """`_fingerprint` of an array of the host, a chunk at a time."""
    x = np.ascontiguousarray(x, jax.dtypes.canonicalize_dtype(x.dtype)).reshape(-1)
    finite = all(np.isfinite(part).all() for part in _chunks(x))
    words, value, start = x.view({1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}[x.dtype.itemsize]), 0, 0
    for part in _chunks(words):
        odd = 2 * np.arange(start, start + len(part), dtype=np.uint64) + 1
        value, start = value + int(np.sum(part * odd, dtype=np.uint64)), start + len(part)
    return finite, value % 2**32


def _chunks(x: np.ndarray) -> Iterator[np.ndarray]:
    return (x[i : i + _CHUNK] for i in range(0, len(x), _CHUNK))


@jax.jit
def _fingerprint(x: Array) -> tuple[Array, Array]:
    """All finite bool [], and the fingerprint uint32 []; no reshape, which would gather a sharded array."""
    finite = jnp.all(jnp.isfinite(x))
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    bits = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.dtype.itemsize]
    words = jax.lax.bitcast_convert_type(x, bits).astype(jnp.uint32)
    position, stride = jnp.zeros(words.shape, jnp.uint32), 1
    for axis in reversed(range(words.ndim)):
        position += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * np.uint32(stride % 2**32)
        stride *= words.shape[axis]
    return finite, jnp.sum(words * (2 * position + 1), dtype=jnp.uint32)
