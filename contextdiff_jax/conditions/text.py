"""A text as condition, by a frozen text encoder."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.conditions.base import Record
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import is_unicode
from contextdiff_jax.types import Batch, Context, Params


class TextCondition:
    """A text, by a frozen text encoder. Fields: tokens int32 [B, L], token_mask bool [B, L]."""

    takes_prompts, trained = True, False

    def __init__(self, encoder: Any):
        self.encoder, self.params = encoder, encoder.params

    def from_records(self, records: Sequence[Record]) -> dict[str, np.ndarray]:
        """tokens and token_mask of the captions."""
        return self.read([record["caption"] for record in records])

    def read(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """tokens and token_mask.

        Raises:
            UserError: a text with half a character.
        """
        for prompt in prompts:
            if not is_unicode(prompt):
                raise UserError(f"prompt {prompt!r} is no Unicode text; give it as UTF-8")
        return self.encoder.tokenize(list(prompts))

    def empty(self, batch_size: int) -> dict[str, np.ndarray]:
        """tokens and token_mask of the empty text."""
        return {name: np.repeat(field, batch_size, axis=0) for name, field in self.encoder.null_tokens().items()}

    def encode(self, params: Params, fields: Batch) -> Context:
        """Text features, float32."""
        context = self.encoder.encode_text(params, fields["tokens"], fields["token_mask"])
        return context.replace(tokens=context.tokens.astype(jnp.float32), pooled=context.pooled.astype(jnp.float32))

    def null(self, params: Params, context: Context) -> Context:
        """The empty text, encoded once and repeated."""
        empty = self.encode(params, jax.tree.map(jnp.asarray, self.empty(1)))
        repeated = lambda name: jnp.broadcast_to(getattr(empty, name), getattr(context, name).shape)
        return context.replace(tokens=repeated("tokens"), pooled=repeated("pooled"), mask=repeated("mask"))
