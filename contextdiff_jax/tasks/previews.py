"""Pictures for held-out captions that a training shows as it goes on."""

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from contextdiff_jax import data
from contextdiff_jax.samplers import sampling
from contextdiff_jax.tasks.records import held_out
from contextdiff_jax.training import distributed
from contextdiff_jax.types import Array, Batch, Params

SHOWN = 16  # pictures of a preview


class Previews:
    """What a diffusion task draws for captions that stay the same.

    Args:
        task: a `tasks.diffusion.DiffusionTask`; of clips it is never asked to draw.
    """

    def __init__(self, task: Any):
        self.task = task

    @cached_property
    def prompts(self) -> list[Any]:
        """Of held-out records spread over all of them, the same on every process."""
        read = lambda: held_out(self.task.config, self.task.parts)
        records = distributed.the_same(read, lambda found: found[1].identity)[1]
        shown = data.chosen(len(records), SHOWN, self.task.config.data.seed)
        return self.task.parts.prompts([records[i] for i in shown])

    @cached_property
    def _draw(self) -> Callable[..., Array]:
        section = self.task.config.sample
        task = self.task.under(section.sampler)
        plan, numbers = (of(section) for of in (partial(sampling.Plan.of, task), sampling.Numbers.of))

        def draw(params: Params, frozen: Params, condition: Batch, keys: Array) -> Array:
            context = task.encode(params, frozen, condition)
            return sampling.sample(task, params, frozen, context, keys, numbers, plan=plan)

        return jax.jit(draw)

    def drawn(self, params: Params, frozen: Params, key: Array) -> tuple[np.ndarray, list[str]]:
        """(pictures [N, H, W, C] whole on every process, what they were drawn for in words)."""
        parts, count = self.task.parts, len(self.prompts)
        condition, keys = parts.condition.read(self.prompts), jax.random.split(key, count)
        size, images = min(self.task.config.sample.batch_size, count), []
        for start in range(0, count, size):
            rows = np.minimum(np.arange(start, start + size), count - 1)  # the last batch is filled up: one compilation
            part = self._draw(params, frozen, {k: v[rows] for k, v in condition.items()}, keys[rows])
            images.append(multihost_utils.process_allgather(part, tiled=True))
        return np.concatenate(images)[:count], parts.captions(self.prompts)
