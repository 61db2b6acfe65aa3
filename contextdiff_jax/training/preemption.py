"""SIGTERM: finish the step, save, leave with status 0."""

import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """Notices SIGTERM while it is entered; a context manager.

    With one process this is a signal handler. With several, JAX's coordination service hears the signal in
    any of them and all agree on one step, so that none waits in a collective for another that has left. (Its
    own handler was installed by `jax.distributed.initialize` and must not be replaced.)
    """

    def __init__(self):
        self._asked = False
        self._previous = None
        in_main = threading.current_thread() is threading.main_thread()
        self._handles_signal = in_main and not jax.distributed.is_initialized()

    def __enter__(self) -> "StopRequest":
        if self._handles_signal:
            self._previous = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        if self._handles_signal:
            signal.signal(signal.SIGTERM, self._previous)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self._asked = True

    def reached(self, step: int) -> bool:
        """Whether to stop after `step`; to be asked after every step, by every process."""
        if jax.distributed.is_initialized():
            self._asked |= multihost_utils.reached_preemption_sync_point(step)
        return self._asked
