"""NaN and infinity in the loss: found, named, stopped."""

from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from contextdiff_jax.errors import UserError
from contextdiff_jax.training.step import Guard

_MOST = 64  # record indices in one message


class NonFiniteLoss(UserError):
    """The loss or its gradient became NaN or infinite; the state is that of the step before."""


class Watch:
    """Remembers which records the latest steps saw, until the device has said that all was well.

    Attributes:
        guard: the step's own memory of the first bad step, on the devices.
    """

    def __init__(self, guard: Guard):
        self.guard = guard
        self._indices: dict[int, np.ndarray] = {}

    def note(self, step: int, batch: dict[str, np.ndarray]) -> None:
        """Keeps the record indices of this process's rows of the batch of `step` (counted from 1)."""
        self._indices[step] = np.asarray(batch["index"])

    def check(self, newest_in_words: Callable[[], str]) -> None:
        """Waits for the steps so far; `newest_in_words` says what a new start would continue from.

        Raises:
            NonFiniteLoss: one of them was bad. Nothing of it is in the state.
        """
        bad_step = int(self.guard.bad_step)
        if not bad_step:
            self._indices.clear()
            return
        indices = self._indices[bad_step]
        if jax.process_count() > 1:
            indices = multihost_utils.process_allgather(indices, tiled=True)
        rows = np.asarray(self.guard.bad_rows)
        # Processes that share rows (tensor parallelism) gather them several times.
        culprits = indices[: rows.size][rows]
        what = (
            f"the loss of records {_listed(culprits)} is"
            if culprits.size
            else "the gradient or the update is"
        )
        raise NonFiniteLoss(
            f"step {bad_step}: {what} NaN or infinite; batch indices {_listed(np.unique(indices))}; "
            f"{newest_in_words()}; look at those records, or lower optim.lr or optim.clip_norm"
        )


def _listed(indices: np.ndarray) -> str:
    """Indices as text, at most `_MOST` of them."""
    more = f" and {indices.size - _MOST} more" if indices.size > _MOST else ""
    return f"[{', '.join(map(str, indices[:_MOST]))}{more}]"
