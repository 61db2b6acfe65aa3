"""Scalars in TensorBoard's event files."""

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def _without(name: str) -> Iterator[None]:
    """A module that is not imported yet counts as not installed."""
    hidden = name not in sys.modules
    if hidden:
        sys.modules[name] = None
    try:
        yield
    finally:
        if hidden:
            del sys.modules[name]


# tensorboardX imports PyTorch where it finds it, for what is not used here: nearly half the time of every start.
with _without("torch"):
    from tensorboardX import event_file_writer, summary
    from tensorboardX.proto import event_pb2


class TensorBoard:
    """Scalars for TensorBoard, written by the thread that calls: one of its own would die of a full disk unseen.

    Args:
        folder: of the event files; made.
        first: what earlier files hold for this step and later ones does not count.
    """

    def __init__(self, folder: Path, first: int):
        self._folder, self._first = folder, first
        self._writer: event_file_writer.EventsWriter | None = None

    def write(self, step: int, values: dict[str, float]) -> None:
        """One value per name.

        Raises:
            OSError: the file cannot be written; later ones may.
        """
        if self._writer is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._writer = event_file_writer.EventsWriter(str(self._folder / "events"))
            log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._event(self._first, session_log=log)
        for name, value in values.items():
            self._event(step, summary=summary.scalar(name, value))
        self._writer.flush()

    def _event(self, step: int, **content: Any) -> None:
        self._writer.write_event(event_pb2.Event(wall_time=time.time(), step=step, **content))

    def close(self) -> None:
        """Ends the file."""
        if self._writer is not None:
            with contextlib.suppress(OSError):  # it has been reported
                self._writer.close()
