"""What the condition c of a sample may be: a text, a class, or nothing. Each turns fields of a batch into a Context."""

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.errors import UserError
from contextdiff_jax.types import Array, Batch, Context, Params


class Condition(Protocol):
    """How the library sees a condition.

    Attributes:
        params: parameters of the frozen encoder; {} where there is none.
        takes_prompts: whether it says anything at all.
    """

    params: Params
    takes_prompts: bool

    def tokenize(self, captions: list[str]) -> dict[str, np.ndarray]:
        """Fields that the data pipeline adds to a batch for its captions."""

    def read(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Fields of a batch for what a user asks for."""

    def encode(self, params: Params, batch: Batch) -> Context:
        """Features of the condition fields of a batch, float32."""

    def null(self, params: Params, batch_size: int) -> Context:
        """The empty condition."""


class TextCondition:
    """A text, by a frozen text encoder. Fields: tokens int32 [B, L], token_mask bool [B, L]."""

    takes_prompts = True

    def __init__(self, encoder: Any):
        self.encoder, self.params = encoder, encoder.params

    def tokenize(self, captions: list[str]) -> dict[str, np.ndarray]:
        """tokens and token_mask."""
        return self.encoder.tokenize(captions)

    def read(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """tokens and token_mask."""
        return self.encoder.tokenize(list(prompts))

    def encode(self, params: Params, batch: Batch) -> Context:
        """Text features, float32."""
        context = self.encoder.encode_text(params, batch["tokens"], batch["token_mask"])
        return context.replace(tokens=context.tokens.astype(jnp.float32), pooled=context.pooled.astype(jnp.float32))

    def null(self, params: Params, batch_size: int) -> Context:
        """The empty text, encoded once and repeated."""
        context = self.encode(params, jax.tree.map(jnp.asarray, self.encoder.null_tokens()))
        return jax.tree.map(lambda v: jnp.broadcast_to(v, (batch_size, *v.shape[1:])), context)


class ClassCondition:
    """One of K classes, as a one-hot vector: the networks' first dense layer is the embedding. Field: label int32 [B].

    The place behind the last class stands for no class at all; without names it is the only one.

    Args:
        names: of the classes; () for unconditional data.
    """

    params: Params = {}

    def __init__(self, names: Sequence[str]):
        self.names = tuple(names)
        self.takes_prompts = bool(self.names)

    def tokenize(self, captions: list[str]) -> dict[str, np.ndarray]:
        """Nothing: records bring their label."""
        return {}

    def read(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """The label of each prompt, which is a class's name or number.

        Raises:
            UserError: a prompt that is neither.
        """
        if not self.takes_prompts:
            return {"label": np.zeros(len(prompts), np.int32)}
        return {"label": np.array([self._label(prompt) for prompt in prompts], np.int32)}

    def _label(self, prompt: str) -> int:
        word = prompt.strip()
        if word in self.names:
            return self.names.index(word)
        if word.isdecimal() and int(word) < len(self.names):
            return int(word)
        shown = ", ".join(self.names[:12]) + (", ..." if len(self.names) > 12 else "")
        raise UserError(f"prompt {prompt!r} is no class; accepted: 0 to {len(self.names) - 1}, or {shown}")

    def encode(self, params: Params, batch: Batch) -> Context:
        """One token with the one-hot label."""
        size = len(jax.tree.leaves(batch)[0])
        return self._one_hot(batch["label"] if self.takes_prompts else jnp.zeros(size, jnp.int32))

    def null(self, params: Params, batch_size: int) -> Context:
        """No class."""
        return self._one_hot(jnp.full(batch_size, len(self.names), jnp.int32))

    def _one_hot(self, label: Array) -> Context:
        code = jax.nn.one_hot(label, len(self.names) + 1)
        return Context(tokens=code[:, None], pooled=code, mask=jnp.ones((len(label), 1), bool))
