"""From a random-access source to an iterator of this process's batches, by Grain.

Batches are formed of record *indices*; reading follows. So the global batch of step i does not depend on the
number of processes, skipping ahead reads nothing, and an iterator's state is one step number.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np

from contextdiff_jax.data.base import ImageSource
from contextdiff_jax.data.sources import source
from contextdiff_jax.errors import UserError

FromRecords = Callable[[Sequence[dict[str, Any]]], dict[str, np.ndarray]]
_INTEGERS = ("index", "label", "object", "background")


def build(
    cfg_data: Any,
    split: str,
    *,
    batch_size: int,
    seed: int,
    process_index: int,
    process_count: int,
    from_records: FromRecords | None,
    repeat: bool = True,
    shuffle: bool = True,
    records: ImageSource | None = None,
) -> grain.DatasetIterator:
    """This process's rows of every global batch, as a checkpointable iterator (`get_state`, `set_state`).

    Process p of P holds the contiguous rows [p * B / P, (p + 1) * B / P) of each global batch of B. Every
    epoch is shuffled anew. Without `repeat` every record comes once and the last batch may be short.

    Args:
        cfg_data: the config's `data` section.
        split: train, or one of the source's others.
        batch_size: B, of all processes together; divisible by process_count.
        seed: of the order of records (and of flips); the records' own seed is cfg_data.seed.
        from_records: n records -> the fields of their condition, such as {"tokens": int32 [n, L], "token_mask": bool
            [n, L]}; None adds none.
        records: what to read instead of the config's source, e.g. its stored latents.

    Returns:
        Iterator of numpy dicts: image float32 [b, H, W, C], the first level at -1 and the last at 1, or
        latent float32 [b, h, w, 2 C]; the condition's fields; index int32 [b]; label int32 [b] where the source has
        classes; and for openmoji object, background int32 [b].

    Raises:
        UserError: bad batch size, or what `source` raises.
    """
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"data.batch_size: {batch_size} is no positive multiple of the {process_count} processes"
        )
    for name in ("num_threads", "prefetch"):
        if cfg_data[name] < 0:
            raise UserError(f"data.{name}: {cfg_data[name]} is negative; accepted: whole numbers from 0")
    records = source(cfg_data, split) if records is None else records
    flip = cfg_data.horizontal_flip and split == "train"

    def local_rows(global_rows: np.ndarray) -> tuple[slice, np.ndarray]:
        n = len(global_rows)
        rows = slice(process_index * n // process_count, (process_index + 1) * n // process_count)
        return rows, global_rows[rows]

    def read(step: int, global_rows: np.ndarray) -> dict[str, np.ndarray]:
        rows, indices = local_rows(global_rows)
        batch = collate([records[int(i)] for i in indices], from_records, records.levels)
        if flip:
            flipped = _coin_tosses(seed, step, len(global_rows))[rows]
            batch["image"][flipped] = batch["image"][flipped, :, ::-1]
        return batch

    order = grain.MapDataset.range(len(records)).seed(seed)
    if shuffle:
        order = order.shuffle()
    if repeat:
        order = order.repeat()
    batches = order.batch(batch_size, drop_remainder=False).map_with_index(read)
    options = grain.ReadOptions(num_threads=cfg_data.num_threads, prefetch_buffer_size=cfg_data.prefetch)
    return iter(batches.to_iter_dataset(options))


def collate(
    records: Sequence[dict[str, Any]], from_records: FromRecords | None, levels: int = 256
) -> dict[str, np.ndarray]:
    """Stacks records: images uint8 0..levels-1 become float32 in [-1, 1], conditions become fields."""
    if "latent" in records[0]:
        batch = {"latent": np.stack([record["latent"] for record in records]).astype(np.float32)}
    else:
        images = np.stack([record["image"] for record in records])
        batch = {"image": images.astype(np.float32) / np.float32((levels - 1) / 2) - np.float32(1.0)}
    if from_records is not None:
        batch.update(from_records(records))
    for name in _INTEGERS:
        if name in records[0]:
            batch[name] = np.array([record[name] for record in records], np.int32)
    return batch


def _coin_tosses(seed: int, step: int, n: int) -> np.ndarray:
    """n booleans that belong to a step of the global stream, whoever reads which row."""
    digest = hashlib.shake_128(f"flip/{seed}/{step}".encode()).digest(n)
    return np.frombuffer(digest, np.uint8) < 128
