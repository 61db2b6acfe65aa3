"""What drawing for users needs beside the sampler: batches of a stream, remembered prompts, steps that are told."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from contextdiff_jax.samplers.sampling import Plan
from contextdiff_jax.training import sharding
from contextdiff_jax.types import Array, Context

CONTEXTS = 256  # encoded prompts that are remembered
OnStep = Callable[[int, int, np.ndarray], None]  # (step, steps, x0_hat [B, ...]) of a batch


class Drawn(NamedTuple):
    """A batch of a stream.

    Attributes:
        images: [B, H, W, C] in [-1, 1], their rows split over the devices.
        rows: which of the prompts the first len(rows) pictures belong to; what follows fills the batch up.
    """

    images: Array
    rows: np.ndarray

    def whole(self) -> np.ndarray:
        """The pictures that were asked for, float32 [len(rows), H, W, C], on every process."""
        return sharding.gather(self.images)[: len(self.rows)]


class Steps:
    """Tells `on_step` of every time of a plan once, in order."""

    def __init__(self, plan: Plan, on_step: OnStep):
        self._step = {t: i for i, (t, _) in enumerate(plan.moves, 1)}
        self._on_step, self._last = on_step, 0

    def __call__(self, t: Any, x0_hat: Any) -> None:
        # Heun's method asks twice for the times between.
        if (step := self._step[int(t)]) > self._last:
            self._last = step
            self._on_step(step, len(self._step), np.asarray(x0_hat))


class Contexts:
    """Encoded prompts: the encoder is frozen, so each is encoded once and remembered, the last used longest.

    Args:
        encode: prompts -> their context on the devices, [B, ...], rows split.
    """

    def __init__(self, encode: Callable[[list[Any]], Context]):
        self._encode = encode
        self._kept: OrderedDict[str, Context] = OrderedDict()

    def clear(self) -> None:
        """Forgets all, when the encoder has changed."""
        self._kept.clear()

    def of(self, prompts: list[Any]) -> Context:
        """The encoded prompts [B, ...], whole on the host."""
        # Layouts are lists: prompts are told apart by how they are written.
        named = {repr(prompt): prompt for prompt in prompts}
        missing = [prompt for name, prompt in named.items() if name not in self._kept]
        if missing:
            # Filled up to the size of the batch: one compilation.
            filled = missing + missing[-1:] * (len(prompts) - len(missing))
            encoded = jax.tree.map(sharding.gather, self._encode(filled))
            self._kept |= {repr(p): jax.tree.map(lambda v, i=i: v[i].copy(), encoded) for i, p in enumerate(missing)}
        found = [self._kept[repr(prompt)] for prompt in prompts]
        for name in named:
            self._kept.move_to_end(name)
        while len(self._kept) > max(CONTEXTS, len(prompts)):
            self._kept.popitem(last=False)
        return jax.tree.map(lambda *rows: np.stack(rows), *found)
