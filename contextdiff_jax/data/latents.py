"""Latents that `--mode=encode` has computed once: ArrayRecord files with a table of contents.

    <folder>/latents.json                          what was encoded, and by which autoencoder
    <folder>/latent_rgb.json                       the linear map from latents to colours
    <folder>/train/00000.array_record ...          records of one shard each, a shard is whole or absent

A record is {latent: float16 [h, w, 2 C], caption, and label, object, background, objects, boxes where the images had
them}.
"""

import bisect
import functools
import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from array_record.python import array_record_module
from flax import serialization

from contextdiff_jax.data.base import Description, ImageSource
from contextdiff_jax.data.sources import describe
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import atomic, read_json, write_json

CONTENTS = "latents.json"
KEPT = ("caption", "label", "object", "background", "objects", "boxes")
SHARD_SIZE = 256  # images: what a kill can cost
# Of the contents: what decides every latent, and what the numbers of its classes mean.
IDENTITY = ("data", "classes", "seed", "image_size", "shape", "autoencoder", "dtype")
RECORDS = "records"  # {split: identity of the images}; with it, those of a part are spread over the whole
_LATER = ("classes", "dtype", RECORDS)  # what earlier versions did not write, and is then not compared
_OPEN_SHARDS = 64  # per source: systems allow 256 open files or more
# The shards' origin is lost with their table of contents.
_ALL_AGAIN = "delete its folder and run --mode=encode again"
_SHARD_AGAIN = "delete this file and run --mode=encode again, which encodes what is missing"


class LatentSource(ImageSource):
    """Random-access latents of one split. Neither the images nor their folder are looked at, unless that is another.

    Shards are opened when they are read, a limited number at a time; threads may read at the same time.

    Args:
        folder: what `--mode=encode` wrote.
        split: train or val.
        shape: (h, w, C) of a latent.
        description: of the images that were encoded.
        expected: `contents_of` the run, to compare with what was encoded; None compares the shape only.
        images: see `check`.

    Raises:
        UserError: no latents, of other data or another autoencoder, not of this split or shape, damaged, or an
            encoding that has not been finished.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str,
        shape: tuple[int, int, int],
        description: Description,
        expected: dict[str, Any] | None = None,
        images: Callable[[str], str] | None = None,
    ):
        self.folder, self.split, self.description = Path(folder), split, description
        contents = check(folder, expected or {}, images)
        self._shape, needed = tuple(contents["shape"]), (*shape[:2], 2 * shape[2])
        if self._shape != needed:
            raise UserError(
                f"space.latents: {str(folder)!r} holds latents of shape {self._shape}, this model needs {needed}; "
                "encode again into another folder, or set data.image_size as it was"
            )
        if split not in contents["splits"]:
            accepted = ", ".join(contents["splits"])
            raise UserError(f"space.latents: {str(folder)!r} has no split {split!r}; there are: {accepted}")
        self._autoencoder, self._images = contents["autoencoder"], contents.get(RECORDS, {}).get(split, "")
        self._count, size = contents["splits"][split], contents["shard_size"]
        self._starts = range(0, self._count, size)
        self._files = [shard_path(self.folder, split, i) for i in range(len(self._starts))]
        if missing := [f.name for f in self._files if not f.is_file()]:
            raise UserError(
                f"space.latents: {str(folder)!r} lacks {len(missing)} of {len(self._files)} shards of {split} (first "
                f"{missing[0]}); run --mode=encode again, it continues where it stopped"
            )
        for start, file in zip(self._starts, self._files, strict=True):
            _check_count(file, min(size, self._count - start))
        # A reader that falls out of the cache is closed once no thread holds it any more.
        self._reader = functools.lru_cache(_OPEN_SHARDS)(_open)

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"LatentSource({str(self.folder)!r}, {self.split!r})"

    @property
    def identity(self) -> str:
        """Split, number, autoencoder, and which images they were."""
        images = f" ({self._images})" if self._images else ""
        return f"latents {self.split}: {len(self)} records, autoencoder {self._autoencoder}{images}"

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Record `index`: latent float16 [h, w, 2 C], caption str, index int, and the images' integers.

        Raises:
            UserError: the shard is damaged.
        """
        self.check_index(index)
        shard = bisect.bisect_right(self._starts, index) - 1
        file, row = self._files[shard], index - self._starts[shard]
        try:
            record = serialization.msgpack_restore(self._reader(file).read([row])[0])
            fits = record["latent"].shape == self._shape and isinstance(record["caption"], str)
        except Exception as error:  # decoders raise almost anything on damaged files
            raise _damaged(file, _reason(error)) from error
        if not fits:
            raise _damaged(file, f"record {row} is no captioned latent of shape {self._shape}")
        return record | {"index": int(index)}


def _open(file: Path) -> Any:
    """A reader for random access; what is wrong with the file shows when it is read or closed."""
    return array_record_module.ArrayRecordReader(str(file), "readahead_buffer_size:0,max_parallelism:0")


def _check_count(file: Path, expected: int) -> None:
    """UserError unless a shard holds as many records as the contents say."""
    try:
        reader = _open(file)
        found = reader.num_records()
        reader.close()
    except RuntimeError as error:
        raise _damaged(file, _reason(error)) from error
    if found != expected:
        raise _damaged(file, f"{found} records instead of {expected}")


def _damaged(file: Path, reason: str) -> UserError:
    try:
        file.open("rb").close()
    except OSError as error:  # gone, no permission, too many open files: nothing to delete
        return UserError(f"{file} cannot be opened ({error.strerror}); make it readable, or run --mode=encode again")
    return UserError(f"{file} is damaged ({reason}); {_SHARD_AGAIN}")


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def held_out(folder: str | Path) -> str:
    """The split for evaluation: not train, unless there is no other."""
    contents = read_contents(Path(folder)) or {"splits": {}}
    return next((split for split in contents["splits"] if split != "train"), "train")


def shard_path(folder: Path, split: str, number: int) -> Path:
    """Where a shard is."""
    return folder / split / f"{number:05d}.array_record"


def write_shard(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Writes one shard, whole or not at all; of each record, its latent and `KEPT`.

    Raises:
        OSError: it cannot be written, whatever the library says of that.
    """
    with atomic(path) as temporary:
        writer = _of_the_system(array_record_module.ArrayRecordWriter, str(temporary), "group_size:1")
        for record in records:
            kept = {name: record[name] for name in KEPT if name in record}
            latent = np.asarray(record["latent"], np.float16)
            _of_the_system(writer.write, serialization.msgpack_serialize(kept | {"latent": latent}))
        _of_the_system(writer.close)


def _of_the_system(call: Callable, *arguments: Any) -> Any:
    """What a call of the library returns; its errors are those of the disk."""
    try:
        return call(*arguments)
    except RuntimeError as error:
        raise OSError(_reason(error)) from error


def contents_of(config: Any, space: Any, splits: dict[str, int]) -> dict[str, Any]:
    """The table of contents of a config's latents. No image is looked at, but the classes are; see `data.describe`.

    Args:
        config: the whole config; `data` says which images.
        space: the autoencoder's `Latents`: its shape and digest.
        splits: {split: number of records}; {} where only `IDENTITY` matters.

    Raises:
        UserError: the images are to be flipped, or their classes cannot be taken.
    """
    cfg_data, (height, width, channels) = config.data, space.shape
    for key, off in (("horizontal_flip", False), ("random_crop", 0.0)):
        if (value := cfg_data[key]) != off:
            raise UserError(f"config.data.{key}={value} cannot act on stored latents; set it to {off}")
    described = describe(cfg_data)
    names = repr((described.class_names, described.object_names))
    return {
        "classes": hashlib.sha256(names.encode()).hexdigest()[:16],
        "data": f"{cfg_data.source} {cfg_data.preset if cfg_data.source == 'openmoji' else _whole(cfg_data.path)}",
        "seed": cfg_data.seed,
        "image_size": cfg_data.image_size,
        "shape": [height, width, 2 * channels],
        "autoencoder": space.digest,
        "dtype": np.dtype(space.vae.dtype).name,
        "shard_size": SHARD_SIZE,
        "splits": splits,
    }


def check(folder: str | Path, expected: dict[str, Any], images: Callable[[str], str] | None = None) -> dict[str, Any]:
    """The table of contents of a folder, whose `IDENTITY` must be that of `expected`, as far as that has it.

    Args:
        folder: what `--mode=encode` wrote.
        expected: `contents_of` a run.
        images: split -> identity of its images where the run says that they lie. With it, those that were only moved
            are no others; it is asked where they lie elsewhere than when they were encoded.

    Raises:
        UserError: no latents, damaged contents, or other latents; it names what differs.
    """
    contents = read_contents(Path(folder))
    if contents is None:
        raise UserError(f"space.latents: {str(folder)!r} holds no latents; fill it with --mode=encode")
    compared = [key for key in IDENTITY if key in expected]
    if images is not None and _differing(contents, expected, ["data"]) and _only_moved(contents, expected, images):
        compared.remove("data")
    if differing := _differing(contents, expected, compared):
        raise UserError(
            f"space.latents: {str(folder)!r} holds other latents ({differing}); set what differs as it was, or "
            "name another folder and fill it with --mode=encode"
        )
    return contents


def _only_moved(contents: dict[str, Any], expected: dict[str, Any], images: Callable[[str], str]) -> bool:
    """Whether the images of another place are those that were encoded."""
    (kind, _, then), (kind_now, _, now) = (str(c["data"]).partition(" ") for c in (contents, expected))
    if kind != kind_now or kind == "openmoji" or not now or not contents.get(RECORDS):
        return False
    if not Path(now).exists():
        logging.warning("%s is not there: its images are taken for those that were encoded, in %s", now, then)
        return True
    return all(images(split) == recorded for split, recorded in contents[RECORDS].items())


def read_contents(folder: Path) -> dict[str, Any] | None:
    """The table of contents, or None where there is none.

    Raises:
        UserError: it is damaged, or the folder is a file.
    """
    path = folder / CONTENTS
    if folder.exists() and not folder.is_dir():
        raise UserError(f"space.latents: {str(folder)!r} is a file; name a folder")
    if not path.is_file():
        return None
    contents = read_json(path, _ALL_AGAIN)
    if wrong := _wrong_entry(contents):
        raise UserError(f"{path} is damaged ({wrong}); {_ALL_AGAIN}")
    return contents


def _wrong_entry(contents: Any) -> str:
    """What is wrong with a table of contents; empty if nothing is."""
    if not isinstance(contents, dict):
        return f"it holds {type(contents).__name__} instead of a table"
    is_int = lambda value: isinstance(value, int) and not isinstance(value, bool)
    is_count = lambda value: is_int(value) and value > 0
    valid = {
        "data": lambda value: isinstance(value, str),
        "seed": is_int,
        "image_size": is_count,
        "shape": lambda value: isinstance(value, list) and len(value) == 3 and all(map(is_count, value)),
        "autoencoder": lambda value: isinstance(value, str),
        "classes": lambda value: isinstance(value, str),
        "shard_size": is_count,
        "dtype": lambda value: isinstance(value, str),
        RECORDS: lambda value: isinstance(value, dict) and all(isinstance(v, str) for v in value.values()),
        "splits": lambda value: isinstance(value, dict) and value and all(map(is_count, value.values())),
    }
    for name, is_valid in valid.items():
        if name not in contents and name in _LATER:
            continue
        if name not in contents:
            return f"it has no {name}"
        if not is_valid(contents[name]):
            return f"{name} is {contents[name]!r}"
    return ""


def _differing(found: dict[str, Any], expected: dict[str, Any], keys: Iterable[str]) -> str:
    """What differs, in words. Where both say which images they are of, it does not matter where those lie."""
    if RECORDS in found and RECORDS in expected:
        keys = [key for key in keys if key != "data"]
    return "; ".join(
        f"{key}: there {found.get(key)!r}, now {expected.get(key)!r}"
        for key in keys
        if _comparable(found.get(key)) != _comparable(expected.get(key)) and not (key in _LATER and key not in found)
    )


def _comparable(value: Any) -> Any:
    """Earlier versions wrote the folder of the images ("folder pictures") as it was given, from where one stood."""
    return f"folder {_whole(value.removeprefix('folder '))}" if str(value).startswith("folder ") else value


def _whole(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path)) if path else path


def write_contents(folder: Path, contents: dict[str, Any]) -> dict[str, Any]:
    """Writes the table of contents, or checks it against what is there, which it returns.

    Raises:
        UserError: the folder holds other latents, or shards of unknown origin.
    """
    # Looked for first: another process may write the contents, and then shards, at this moment.
    shards = any(folder.glob("*/[0-9]*.array_record"))
    found = read_contents(folder)
    if found is None and shards:
        raise UserError(f"{folder} holds shards without the {CONTENTS} that says of what; {_ALL_AGAIN}")
    if found is None:
        write_json(contents, folder / CONTENTS)
    elif differing := _differing(found, contents, sorted(found.keys() | contents.keys())):
        raise UserError(f"{folder} holds other latents ({differing}); give another --config.space.latents")
    return found or contents
