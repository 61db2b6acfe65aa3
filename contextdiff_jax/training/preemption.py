"""SIGTERM, Ctrl-C and a terminal that is closed: finish the step, save, leave with status 0."""

import os
import signal
import stat
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """Notices SIGTERM, the first Ctrl-C and, unless it is ignored as by nohup, SIGHUP while it is entered; a context
    manager. A second Ctrl-C ends at once.

    With one process this is a signal handler. With several, JAX's coordination service hears SIGTERM in any of them
    and all agree on one step, so that none waits in a collective for another that has left. (Its own handler was
    installed by `jax.distributed.initialize` and must not be replaced; Ctrl-C is passed on to it.)

    Attributes:
        cause: what was heard, in words; "" so far.
    """

    def __init__(self):
        self.cause = ""
        self._previous = {}
        in_main = threading.current_thread() is threading.main_thread()
        alone = not jax.distributed.is_initialized()
        heard = [signal.SIGINT, *([signal.SIGTERM] if alone else [])]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            heard.append(signal.SIGHUP)
        self._signals = heard if in_main else []

    def __enter__(self) -> "StopRequest":
        self._previous = {number: signal.signal(number, self._on_signal) for number in self._signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.cause = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            # No print: this may interrupt one.
            os.write(2, b"\nCtrl-C: saving after this step; Ctrl-C again ends at once\n")
        elif number == signal.SIGHUP:
            _leave_the_terminal()
        if number != signal.SIGTERM and jax.distributed.is_initialized():
            os.kill(os.getpid(), signal.SIGTERM)

    def reached(self, step: int) -> bool:
        """Whether to stop after `step`; to be asked after every step, by every process."""
        if jax.distributed.is_initialized():
            if multihost_utils.reached_preemption_sync_point(step):
                self.cause = self.cause or "SIGTERM"
                return True
            return False
        return bool(self.cause)


def _leave_the_terminal() -> None:
    """What is printed to a terminal that is gone would fail, and end the training before it has saved."""
    for output in (1, 2):
        if stat.S_ISCHR(os.fstat(output).st_mode):
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, output)
            os.close(nothing)
