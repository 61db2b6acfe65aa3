"""One of K classes as condition, or nothing at all."""

import difflib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.conditions.base import Record
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import composed
from contextdiff_jax.types import Array, Batch, Context, Params


class ClassCondition:
    """One of K classes, as a one-hot vector: the networks' first dense layer is the embedding. Field: label int32 [B].

    The place behind the last class stands for no class at all; without names it is the only one.

    Args:
        names: of the classes; () for unconditional data.
    """

    params: Params = {}
    trained = False

    def __init__(self, names: Sequence[str]):
        self.names = tuple(names)
        self.takes_prompts = bool(self.names)
        self._numbers = {composed(name): number for number, name in enumerate(self.names)}

    def from_records(self, records: Sequence[Record]) -> dict[str, np.ndarray]:
        """The records' own labels."""
        if not self.takes_prompts:
            return {}
        return {"label": np.array([record["label"] for record in records], np.int32)}

    def read(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """The label of each prompt, which is a class's name or number.

        Raises:
            UserError: a prompt that is neither.
        """
        if not self.takes_prompts:
            return self.empty(len(prompts))
        return {"label": np.array([self._label(prompt) for prompt in prompts], np.int32)}

    def name_of(self, number: int) -> str:
        """The name of a class from its number.

        Raises:
            UserError: a number out of range.
        """
        if not 0 <= number < len(self.names):
            raise self._unknown(number)
        return self.names[number]

    def _label(self, prompt: str) -> int:
        for word in (composed(prompt), composed(prompt).strip()):  # a folder's name may end in a blank
            if word in self._numbers:
                return self._numbers[word]
        if word.isdecimal() and int(word) < len(self.names):
            return int(word)
        raise self._unknown(prompt)

    def _unknown(self, asked: str | int) -> UserError:
        """What to say of something that is no class."""
        shown = ", ".join(self.names[:12]) + (", ..." if len(self.names) > 12 else "")
        near = difflib.get_close_matches(str(asked).strip(), self.names, n=3)
        nearest = f"; nearest: {', '.join(near)}" if near else ""
        return UserError(f"prompt {asked!r} is no class; accepted: 0 to {len(self.names) - 1}, or {shown}{nearest}")

    def empty(self, batch_size: int) -> dict[str, np.ndarray]:
        """The label of no class."""
        return {"label": np.full(batch_size, len(self.names), np.int32)}

    def encode(self, params: Params, fields: Batch) -> Context:
        """One token with the one-hot label."""
        size = len(jax.tree.leaves(fields)[0])
        return self._one_hot(fields["label"] if self.takes_prompts else jnp.zeros(size, jnp.int32))

    def null(self, params: Params, context: Context) -> Context:
        """No class."""
        none = self._one_hot(jnp.full(len(context.tokens), len(self.names), jnp.int32))
        return context.replace(tokens=none.tokens, pooled=none.pooled, mask=none.mask)

    def _one_hot(self, label: Array) -> Context:
        code = jax.nn.one_hot(label, len(self.names) + 1)
        return Context(tokens=code[:, None], pooled=code, mask=jnp.ones((len(label), 1), bool))
