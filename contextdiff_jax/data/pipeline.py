"""From a random-access source to an iterator of this process's batches, by Grain.

The examples of a run are one endless stream: the records, shuffled anew in every epoch. A batch is a piece of it, and
batches are formed of record *indices*; reading follows. So the global batch of step i does not depend on the number of
processes, skipping ahead reads nothing, and an iterator's state is the number of examples drawn, whatever the batch
size.
"""

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import grain
import numpy as np

from contextdiff_jax.data.augment import Augmentation
from contextdiff_jax.data.base import ImageSource
from contextdiff_jax.data.sources import augmentation, source
from contextdiff_jax.errors import UserError

FromRecords = Callable[[Sequence[dict[str, Any]]], dict[str, np.ndarray]]
Tokenize = Callable[[list[str]], dict[str, np.ndarray]]
_INTEGERS = ("index", "label", "object", "background")


def build(
    cfg_data: Any,
    split: str,
    *,
    batch_size: int,
    seed: int,
    process_index: int,
    process_count: int,
    from_records: FromRecords | None = None,
    tokenize: Tokenize | None = None,
    repeat: bool = True,
    shuffle: bool = True,
    augment: bool = False,
    records: ImageSource | None = None,
    indices: Sequence[int] | None = None,
) -> "Batches":
    """This process's rows of every global batch, as a checkpointable iterator (`get_state`, `set_state`).

    Process p of P holds the contiguous rows [p * B / P, (p + 1) * B / P) of each global batch of B. Every
    epoch is shuffled anew. Without `repeat` every record comes once and the last batch may be short.

    Args:
        cfg_data: the config's `data` section.
        split: train, or one of the source's others.
        batch_size: B, of all processes together; divisible by process_count.
        seed: of the order of records (and of crops and flips); the records' own seed is cfg_data.seed.
        from_records: n records -> the fields of their condition, such as {"tokens": int32 [n, L], "token_mask": bool
            [n, L]}; None adds none.
        tokenize: n captions -> the same, where the condition is a text; instead of from_records.
        augment: whether the config's random crops and flips are applied: for training alone.
        records: what to read instead of the config's source, e.g. its stored latents.
        indices: of the records that are read, in this order; None for all.

    Returns:
        Iterator of numpy dicts: image float32 [b, H, W, C], the first level at -1 and the last at 1, or
        latent float32 [b, h, w, 2 C]; the condition's fields; index int32 [b]; label int32 [b] where the source has
        classes; and for openmoji object, background int32 [b].

    Raises:
        UserError: bad batch size, both from_records and tokenize, or what `source` raises.
    """
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"data.batch_size: {batch_size} is no positive multiple of the {process_count} processes"
        )
    if tokenize is not None:
        if from_records is not None:
            raise UserError("from_records and tokenize both say what a batch has beside its images; give one of them")
        from_records = lambda records: tokenize([record["caption"] for record in records])
    records = source(cfg_data, split) if records is None else records
    read_record = _reader(records, augmentation(cfg_data) if augment else None, seed)
    order = grain.MapDataset.source(range(len(records)) if indices is None else indices).seed(seed)
    order = order.shuffle() if shuffle else order
    order = order.repeat() if repeat else order

    def read(first: int, size: int) -> dict[str, np.ndarray]:
        """This process's rows of the batch of `size` examples from `first` on."""
        rows = range(first + process_index * size // process_count, first + (process_index + 1) * size // process_count)
        return collate([read_record(int(order[i]), i) for i in rows], from_records, records.levels)

    return Batches(read, len(order), batch_size, reading(cfg_data), records.identity)


class Batches:
    """An iterator over batches that remembers how many examples it has given, not how many batches.

    Args:
        read: (first example, number of examples) -> the batch.
        total: number of examples; sys.maxsize for an endless stream.
        batch_size: examples of a batch, of all processes together; the last may have fewer.
        options: Grain's threads and buffer.
        identity: what tells these records from others.
    """

    def __init__(
        self, read: Callable[[int, int], Any], total: int, batch_size: int, options: grain.ReadOptions, identity: str
    ):
        self._read, self._total, self._batch_size = read, total, batch_size
        self._options, self._identity = options, identity
        self._go_to(0)

    def _go_to(self, example: int) -> None:
        size, left = self._batch_size, self._total - example
        count = left // size if self._total == sys.maxsize else -(-left // size)
        # Not a method of this object: a cycle of references would keep its reader threads alive.
        piece = partial(_piece, self._read, example, size, self._total)
        batches = grain.MapDataset.range(count).map(piece)
        self._first, self._iterator = example, iter(batches.to_iter_dataset(self._options))

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Any:
        return next(self._iterator)

    def get_state(self) -> dict[str, Any]:
        """{"examples": how many have been given, "records": the identity of the records}."""
        given = self._first + self._iterator.get_state()["next_index"] * self._batch_size
        return {"examples": min(given, self._total), "records": self._identity}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to where the state was taken, with this iterator's own batch size.

        Args:
            state: of `get_state`; without "records" they are not compared. A state that counts batches
                ("next_index", as earlier versions wrote) is taken to mean batches of this size.

        Raises:
            UserError: the state is of other records.
        """
        then = state.get("records", self._identity)
        # Earlier versions wrote counts alone, where a digest stands behind them now.
        if then != self._identity and not self._identity.startswith(f"{then} ("):
            raise UserError(
                f"data: the records are not those that this run has seen: then {then}, now {self._identity}; put them "
                "back as they were, or go on with what is there now by --allow_config_change"
            )
        self._go_to(state["examples"] if "examples" in state else state["next_index"] * self._batch_size)


def _piece(read: Callable[[int, int], Any], start: int, size: int, total: int, number: int) -> Any:
    """Batch `number` of those that begin at example `start`."""
    first = start + number * size
    return read(first, min(size, total - first))


def in_threads(read: Callable[[Any], Any], items: Sequence[Any], cfg_data: Any) -> Iterator[Any]:
    """`read(item)` of each item in turn, read ahead by the threads that the config's `data` section allows."""
    return iter(grain.MapDataset.source(items).map(read).to_iter_dataset(reading(cfg_data)))


def reading(cfg_data: Any) -> grain.ReadOptions:
    """Threads and buffer of a reader; each thread reads one batch at a time, and the buffer holds finished ones.

    Raises:
        UserError: a negative number.
    """
    for name in ("num_threads", "prefetch"):
        if cfg_data[name] < 0:
            raise UserError(f"data.{name}: {cfg_data[name]} is negative; accepted: whole numbers from 0")
    threads, prefetch = cfg_data.num_threads, cfg_data.prefetch
    if max(prefetch, 1) < threads:
        idle = f"only {prefetch} threads can ever work" if prefetch else "nothing is read ahead, and all by one thread"
        warnings.warn(
            f"data.num_threads={threads} with data.prefetch={prefetch}: {idle}; set data.prefetch to {threads} or "
            f"more, or data.num_threads to {prefetch}",
            stacklevel=2,
        )
        threads = prefetch
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)


def _reader(records: ImageSource, augment: Augmentation | None, seed: int) -> Callable[[int, int], dict[str, Any]]:
    """(index of the record, number of the example) -> the record, changed at random where that is asked for."""
    if not augment:
        return lambda index, example: records[index]
    read = records.whole if augment.crop else records.__getitem__
    return lambda index, example: augment(read(index), seed, example)


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
