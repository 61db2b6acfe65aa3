"""How far long work has come: a bar in a terminal, a line a minute elsewhere."""

import sys
import time
from types import TracebackType
from typing import Self, TextIO

from tqdm import tqdm

LINE_EVERY = 60.0  # seconds, where nobody watches a terminal


class Progress:
    """Counts finished pieces of work on standard error.

        with Progress("sampling", total=64, unit="img") as progress:
            progress.update(16)

    Work that ends within a minute says nothing where standard error is no terminal.

    Args:
        what: what is being done.
        total: pieces in all.
        unit: of the pieces, e.g. img or step.
        done: pieces that were there before.
        before: what may come before the first piece, such as compiling; a terminal says so until then.
        stream: where it goes; None for standard error.
    """

    def __init__(
        self, what: str, total: int, unit: str, done: int = 0, before: str = "", stream: TextIO | None = None
    ):
        self._what, self._total, self._unit, self._first, self._done = what, total, unit, done, done
        self._stream = stream or sys.stderr
        self._tty = self._stream.isatty()
        how = dict(file=self._stream, disable=not self._tty, dynamic_ncols=True)
        self._bar = tqdm(desc=f"{what} ({before})" if before else what, total=total, unit=unit, initial=done, **how)
        self._start = self._said = time.monotonic()

    def update(self, count: int = 1) -> None:
        """`count` more pieces are finished."""
        self._done += count
        self._bar.set_description(self._what, refresh=False)
        self._bar.update(count)
        now = time.monotonic()
        if not self._tty and now - self._said >= LINE_EVERY:
            self._said = now
            left = (now - self._start) / max(1, self._done - self._first) * (self._total - self._done)
            line = f"{self._what} {self._done}/{self._total} {self._unit}, ETA {tqdm.format_interval(left)}"
            print(line, file=self._stream, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()
