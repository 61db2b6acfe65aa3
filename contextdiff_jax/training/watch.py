"""NaN and infinity in the loss: found, named, stopped."""

from collections.abc import Callable
from typing import NoReturn

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

    Args:
        guard: at the start.
        block: which block of every batch this process notes, q of `sharding.data_shard`.
    """

    def __init__(self, guard: Guard, block: int = 0):
        self.guard, self._block = guard, block
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
            self._indices = dict(list(self._indices.items())[-1:])
            return
        culprits = self._all_indices(bad_step)[np.flatnonzero(self.guard.bad_rows)]
        what = f"the loss of records {_listed(culprits)} is" if culprits.size else "the gradient is"
        self.stop(bad_step, what, newest_in_words())

    def stop(self, step: int, what: str, newest: str) -> NoReturn:
        """Raises NonFiniteLoss for a step that is still remembered: the last, or one since the last check."""
        indices = np.unique(self._all_indices(step))
        raise NonFiniteLoss(
            f"step {step}: {what} NaN or infinite; batch indices {_listed(indices)}; {newest}; "
            "look at those records, or lower optim.lr or optim.clip_norm"
        )

    def _all_indices(self, step: int) -> np.ndarray:
        """Record indices of the global batch, in the order of its rows."""
        indices = self._indices[step]
        if jax.process_count() == 1:
            return indices
        return in_rows(*multihost_utils.process_allgather((indices, np.int32(self._block))))


def in_rows(indices: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """The rows of a batch in their order, [Q n], of what each process has of it, [P, n], and which of the Q blocks that
    is, [P]; processes that share rows have the same block."""
    of_each = np.unique(blocks, return_index=True)[1]
    return indices[of_each].reshape(-1)


def _listed(indices: np.ndarray) -> str:
    """Indices as text, at most `_MOST` of them."""
    more = f" and {indices.size - _MOST} more" if indices.size > _MOST else ""
    return f"[{', '.join(map(str, indices[:_MOST]))}{more}]"
