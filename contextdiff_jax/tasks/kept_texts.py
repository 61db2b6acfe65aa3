"""Captions of a finite set, encoded once before the training: their encoder is frozen, so nothing else can come of it.

A batch then holds the row of each caption in a table on the devices, and the step runs no text encoder.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.errors import UserError
from contextdiff_jax.types import Array, Batch, Context

FIELD, TABLE = "text", "texts"  # in a batch: int32 [B]; in what is frozen: the encoded texts, [limit + 1, ...]
CHUNK = 64  # texts encoded at once


class KeptTexts:
    """The captions and their rows; row 0 is the empty text, and what is left of the table stays empty too.

    Args:
        captions: of the training records.
        limit: `condition.kept_texts`; the table's size does not depend on the data.
        read: texts -> the fields that the condition encodes.

    Raises:
        UserError: more different captions than that.
    """

    def __init__(self, captions: Sequence[str], limit: int, read: Callable[[list[str]], Batch]):
        self._texts = ["", *sorted(set(captions) - {""})]
        if len(self._texts) > limit + 1:
            raise UserError(
                f"config.condition.kept_texts={limit}, but the training records have {len(self._texts) - 1} different "
                f"captions; set it to {len(self._texts) - 1} or more, or to 0, which encodes the texts of every batch"
            )
        self._texts += [""] * (limit + 1 - len(self._texts))
        self._row = {text: row for row, text in reversed(list(enumerate(self._texts)))}
        self._read = read

    def fields(self, records: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
        """{"text": int32 [B]}."""
        return {FIELD: np.array([self._row[record["caption"]] for record in records], np.int32)}

    def encoded(self, encode: Callable[[Batch], Context], whole: jax.sharding.Sharding) -> Context:
        """The table, [limit + 1, ...], on the host.

        Args:
            encode: fields [n, ...] -> their context; compiled once.
            whole: a copy on every device.
        """
        run, starts = jax.jit(encode, out_shardings=whole), range(0, len(self._texts), CHUNK)
        chunks = [self._texts[start : start + CHUNK] for start in starts]
        found = [run(self._read(chunk + [""] * (CHUNK - len(chunk)))) for chunk in chunks]
        return jax.tree.map(lambda *v: np.concatenate([np.asarray(part) for part in v])[: len(self._texts)], *found)


def looked_up(table: Context, rows: Array) -> Context:
    """The contexts of a batch, from rows int32 [B]."""
    return jax.tree.map(lambda v: v[rows], table)


def empty_like(table: Context, context: Context) -> Context:
    """The empty text in the place of every text of a batch."""
    return jax.tree.map(lambda v, like: jnp.broadcast_to(v[:1], like.shape), table, context)
