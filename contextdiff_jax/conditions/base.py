"""What the library asks of a condition."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from contextdiff_jax.types import Batch, Context, Params

Record = dict[str, Any]


class Condition(Protocol):
    """How the library sees a condition.

    Attributes:
        params: parameters of the frozen encoder; {} where there is none.
        takes_prompts: whether it says anything at all.
        trained: whether its network is trained with the denoiser; it then has `init(key) -> Params`, and `encode` and
            `null` are given the trained parameters in place of the frozen ones.
    """

    params: Params
    takes_prompts: bool
    trained: bool

    def from_records(self, records: Sequence[Record]) -> dict[str, np.ndarray]:
        """Fields that the data pipeline adds to a batch, from the records of that batch."""

    def read(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Fields of a batch for what a user asks for."""

    def empty(self, batch_size: int) -> dict[str, np.ndarray]:
        """Fields of a batch that asks for nothing."""

    def encode(self, params: Params, fields: Batch) -> Context:
        """Features of the condition fields of a batch, float32."""

    def null(self, params: Params, context: Context) -> Context:
        """The condition that guidance moves away from: `context` with what was asked for left out, and what stays kept.

        A low-resolution picture stays where the text is dropped; so do the shapes.
        """
