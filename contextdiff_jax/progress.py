"""How far long work has come: a bar in a terminal, a line a minute elsewhere."""

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self, TextIO, TypeVar

from tqdm import tqdm

LINE_EVERY = 60.0  # seconds, where nobody watches a terminal
LOOK_EVERY = 1.0  # seconds between two looks at the clock
Piece = TypeVar("Piece")


class Progress:
    """Counts finished pieces of work on standard error, with a clock that goes on while one of them is made.

        with Progress("sampling", total=64, unit="img") as progress:
            progress.update(16)

    Work that ends within a minute says nothing where standard error is no terminal.

    Args:
        what: what is being done.
        total: pieces in all.
        unit: of the pieces, e.g. img or step.
        done: pieces that were there before.
        before: what may come before the first piece, such as compiling; that is said until `began` or the first update.
        stream: where it goes; None for standard error.
    """

    def __init__(
        self, what: str, total: int, unit: str, done: int = 0, before: str = "", stream: TextIO | None = None
    ):
        self._what, self._total, self._unit, self._first, self._done = what, total, unit, done, done
        self._before, self._stream = before, stream or sys.stderr
        self._tty = self._stream.isatty()
        how = dict(file=self._stream, disable=not self._tty, dynamic_ncols=True)
        self._bar = tqdm(desc=f"{what} ({before})" if before else what, total=total, unit=unit, initial=done, **how)
        self._start = self._said = self._updated = time.monotonic()
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._clock = threading.Thread(target=self._look, daemon=True)

    def began(self) -> None:
        """What came before is over; the clock of the pieces starts here."""
        if self._before:
            with self._lock:
                self._before, self._start = "", time.monotonic()
                self._bar.set_description(self._what)

    def each(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """The same, the first of which says that the work has begun."""
        for piece in pieces:
            self.began()
            yield piece

    def update(self, count: int = 1) -> None:
        """`count` more pieces are finished."""
        with self._lock:
            self._before, self._done, self._updated = "", self._done + count, time.monotonic()
            self._bar.set_description(self._what, refresh=False)
            self._bar.update(count)
            self._say()

    def _look(self) -> None:
        """A second thread: shows how time passes while nothing is finished."""
        while not self._ended.wait(LOOK_EVERY):
            with self._lock:
                if self._tty:
                    self._bar.refresh()
                self._say()

    def _say(self) -> None:
        """A line, where there is no terminal and it is time for one."""
        now = time.monotonic()
        if self._tty or now - self._said < LINE_EVERY:
            return
        self._said, made = now, self._done - self._first
        passed = tqdm.format_interval(now - self._start)
        left = (self._updated - self._start) / max(1, made) * (self._total - self._done) - (now - self._updated)
        when = f"ETA {tqdm.format_interval(max(0.0, left))}" if made else f"for {passed}"
        line = f"{self._what} {self._done}/{self._total} {self._unit}, {when}"
        line = f"{self._what}: {self._before} for {passed}" if self._before else line
        print(line, file=self._stream, flush=True)

    def __enter__(self) -> Self:
        self._clock.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._clock.join()
        self._bar.close()
