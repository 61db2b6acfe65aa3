"""A measurement that was cut off goes on where it was: what it has seen is written now and then."""

import io
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from absl import logging

from contextdiff_jax.evaluate.npz_pictures import DAMAGED
from contextdiff_jax.files import atomic
from contextdiff_jax.training.distributed import broadcast_bytes, is_primary

EVERY = 60.0  # least seconds between two writings
PATIENCE = 20  # times as long as a writing takes, where that is more: features of many pictures are large
IDENTITY = "identity"
LAYOUT = 3  # of the parts, what they take in and their states; a file of another version is left unread


class Part(Protocol):
    """What an evaluation remembers of a stream; accumulators of metrics are such."""

    def state(self) -> dict[str, np.ndarray]: ...

    def load(self, state: Mapping[str, np.ndarray]) -> None: ...


class Journal:
    """The states of an evaluation's parts in a file, which is read when the same evaluation starts again.

    With several processes, which all see every picture, the first writes and reads for all.

    Args:
        path: of the file.
        identity: what the figures follow from; a file of another evaluation is left unread, and written over.
        every: least seconds between two writings.
    """

    def __init__(self, path: Path, identity: str, every: float = EVERY):
        self._path, self._identity, self._every = path, f"{LAYOUT} {identity}", every
        self._parts: dict[str, Part] = {}
        self._found = self._read()
        self._due = time.monotonic() + every

    @property
    def found(self) -> bool:
        """Whether there is something to go on from."""
        return bool(self._found)

    def _read(self) -> dict[str, dict[str, np.ndarray]]:
        """{part: its state}; {} where there is none, or of another evaluation."""
        raw = self._path.read_bytes() if is_primary() and self._path.is_file() else b""
        found: dict[str, dict[str, np.ndarray]] = {}
        if not (raw := broadcast_bytes(raw)):
            return found
        try:
            with np.load(io.BytesIO(raw), allow_pickle=False) as file:
                if str(file[IDENTITY]) != self._identity:
                    return found
                for name in set(file.files) - {IDENTITY}:
                    part, _, key = name.rpartition("|")
                    found.setdefault(part, {})[key] = file[name]
        except (*DAMAGED, KeyError):  # damaged: all is measured anew
            return {}
        return found

    def follow(self, name: str, part: Part) -> None:
        """Remembers a part from now on; it takes on what the file holds of it."""
        if state := self._found.pop(name, None):
            part.load(state)
        self._parts[name] = part

    def tick(self) -> None:
        """Between two batches: writes where it is time."""
        if (start := time.monotonic()) < self._due:
            return
        if is_primary():
            try:
                self._write()
            except OSError as error:  # the evaluation itself can go on
                logging.warning("%s cannot be written (%s); cut off now, the evaluation begins anew", self._path, error)
        now = time.monotonic()
        self._due = now + max(self._every, PATIENCE * (now - start))

    def _write(self) -> None:
        states = {f"{name}|{key}": v for name, part in self._parts.items() for key, v in part.state().items()}
        # What was read and is not asked for yet stays.
        ahead = {f"{name}|{key}": v for name, state in self._found.items() for key, v in state.items()}
        with atomic(self._path) as temporary:
            np.savez(temporary, **{IDENTITY: np.array(self._identity)}, **states, **ahead)

    def end(self) -> None:
        """The evaluation is finished."""
        if is_primary():
            self._path.unlink(missing_ok=True)


class Count:
    """How many batches have been looked at."""

    def __init__(self) -> None:
        self.n = 0

    def state(self) -> dict[str, np.ndarray]:
        """Arrays that `load` takes."""
        return {"n": np.array(self.n)}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes the place of what was counted so far."""
        self.n = int(state["n"])


def not_seen(batches: Iterable[Any], journal: Journal | None, name: str, parts: Mapping[str, Part]) -> Iterator[Any]:
    """The batches that `parts` have not seen before the measurement was cut off; all of them without a journal.

    Args:
        batches: of one pass, the same ones each time.
        journal: which remembers the parts from now on.
        name: of the pass.
        parts: what takes in every batch, by name.
    """
    if journal is None:
        yield from batches
        return
    count = Count()
    for part, what in {"batches": count, **parts}.items():
        journal.follow(f"{name}/{part}", what)
    done = count.n
    for i, batch in enumerate(batches):
        if i < done:
            continue
        yield batch
        count.n += 1
        journal.tick()


class Batches:
    """Arrays of the batches that were measured, kept in order.

    Attributes:
        kept: one {name: array} for each batch.
    """

    def __init__(self) -> None:
        self.kept: list[dict[str, np.ndarray]] = []

    def state(self) -> dict[str, np.ndarray]:
        """Arrays that `load` takes."""
        return {f"{i}/{name}": value for i, batch in enumerate(self.kept) for name, value in batch.items()}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes the place of what was kept so far."""
        count = 1 + max((int(key.partition("/")[0]) for key in state), default=-1)
        self.kept = [{} for _ in range(count)]
        for key, value in state.items():
            place, _, name = key.partition("/")
            self.kept[int(place)][name] = value
