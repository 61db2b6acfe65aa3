"""Latents that `--mode=encode` has computed once: ArrayRecord files with a table of contents.

    <folder>/latents.json                          what was encoded, and by which autoencoder
    <folder>/latent_rgb.json                       the linear map from latents to colours
    <folder>/train/00000.array_record ...          records of one shard each, a shard is whole or absent

A record is {latent: float16 [h, w, 2 C], caption, and label, object, background where the images had them}.
"""

import bisect
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module
from flax import serialization

from contextdiff_jax.data.base import Description, ImageSource
from contextdiff_jax.encoders.pretrained import read_json
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import atomic, write_json

CONTENTS = "latents.json"
KEPT = ("caption", "label", "object", "background")


class LatentSource(ImageSource):
    """Random-access latents of one split.

    Args:
        folder: what `--mode=encode` wrote.
        split: train or val.
        shape: (h, w, C) of a latent.
        description: of the images that were encoded.

    Raises:
        UserError: no latents, not of this split or shape, or an encoding that has not been finished.
    """

    def __init__(self, folder: str | Path, split: str, shape: tuple[int, int, int], description: Description):
        self.folder, self.split, self.description = Path(folder), split, description
        contents = read_contents(self.folder)
        if contents is None:
            raise UserError(f"space.latents: {str(folder)!r} holds no latents; fill it with --mode=encode")
        found, expected = tuple(contents["shape"]), (*shape[:2], 2 * shape[2])
        if found != expected:
            raise UserError(
                f"space.latents: {str(folder)!r} holds latents of shape {found}, this model needs {expected}; "
                "encode again into another folder, or set data.image_size as it was"
            )
        if split not in contents["splits"]:
            accepted = ", ".join(contents["splits"]) or "none"
            raise UserError(f"space.latents: {str(folder)!r} has no split {split!r}; there are: {accepted}")
        count, size = contents["splits"][split], contents["shard_size"]
        self._starts = list(range(0, count, size))
        self._count = count
        files = [shard_path(self.folder, split, i) for i in range(len(self._starts))]
        if missing := [f.name for f in files if not f.is_file()]:
            raise UserError(
                f"space.latents: {str(folder)!r} lacks {len(missing)} of {len(files)} shards of {split} (first "
                f"{missing[0]}); run --mode=encode again, it continues where it stopped"
            )
        self._readers = [array_record_module.ArrayRecordReader(str(file)) for file in files]

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"LatentSource({str(self.folder)!r}, {self.split!r})"

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Record `index`: latent float16 [h, w, 2 C], caption str, index int, and the images' integers."""
        self.check_index(index)
        shard = bisect.bisect_right(self._starts, index) - 1
        raw = self._readers[shard].read([index - self._starts[shard]])[0]
        return serialization.msgpack_restore(raw) | {"index": int(index)}


def held_out(folder: str | Path) -> str:
    """The split for evaluation: not train, unless there is no other."""
    contents = read_contents(Path(folder)) or {"splits": {}}
    return next((split for split in contents["splits"] if split != "train"), "train")


def shard_path(folder: Path, split: str, number: int) -> Path:
    """Where a shard is."""
    return folder / split / f"{number:05d}.array_record"


def write_shard(path: Path, records: list[dict[str, Any]]) -> None:
    """Writes one shard, whole or not at all."""
    with atomic(path) as temporary:
        writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1")
        for record in records:
            kept = {name: record[name] for name in KEPT if name in record}
            latent = np.asarray(record["latent"], np.float16)
            writer.write(serialization.msgpack_serialize(kept | {"latent": latent}))
        writer.close()


def read_contents(folder: Path) -> dict[str, Any] | None:
    """The table of contents, or None where there is none."""
    path = folder / CONTENTS
    return read_json(path) if path.is_file() else None


def write_contents(folder: Path, contents: dict[str, Any]) -> None:
    """Writes the table of contents, or checks it against what is there.

    Raises:
        UserError: the folder holds other latents.
    """
    found = read_contents(folder)
    if found is None:
        write_json(contents, folder / CONTENTS)
        return
    differing = [
        f"{key}: there {found.get(key)!r}, now {contents.get(key)!r}"
        for key in sorted(found.keys() | contents.keys())
        if found.get(key) != contents.get(key)
    ]
    if differing:
        raise UserError(f"{folder} holds other latents ({'; '.join(differing)}); give another --config.space.latents")
