"""The loss on records beside the training: always the same records and the same noise, so that it compares."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax import trees
from contextdiff_jax.errors import UserError
from contextdiff_jax.training import sharding
from contextdiff_jax.training.setup import Setup
from contextdiff_jax.training.state import stream
from contextdiff_jax.types import Array, Batch, Params


class Validation:
    """`train.validate_batches` held-out batches and what the averaged parameters lose on them.

    Times, noise and dropped conditions are drawn as in a training step, from keys of their own that never change; the
    network's own dropout is off, as it is when the model is used.
    Over a set smaller than these batches, records come more than once, each time with other noise. Where no record can
    be held out, those of the training are looked at, and the figures are named so.

    Attributes:
        about: which records these are, in words.

    Raises:
        UserError: a task without held-out records.
    """

    def __init__(self, setup: Setup):
        config, self._setup = setup.task.config, setup
        if not hasattr(setup.task, "held_out_batches"):
            raise UserError(
                f"config.train.validate_every={config.train.validate_every}: the task {config.task!r} has no held-out "
                "records; set it to 0"
            )
        split, batches = setup.held_out_batches()
        self._name = "training_records" if split == "train" else "validation"
        count = config.train.validate_batches * config.data.batch_size
        self.about = f"{self._name}_loss is of {count} records of the split {split!r}" + (
            ": NONE IS HELD OUT, these are trained on" if split == "train" else ", which are not trained on"
        )
        self._batches = [next(batches) for _ in range(config.train.validate_batches)]
        if hasattr(batches, "close"):
            batches.close()
        self._losses = jax.jit(partial(_losses, setup.task), out_shardings=sharding.replicated(setup.mesh))

    def __call__(self, ema: Params) -> dict[str, float]:
        """validation_loss, and validation_stderr: the spread of the records' losses over the root of their number; of
        records that are trained on, training_records_loss and its stderr."""
        setup, root = self._setup, stream(self._setup.task.config.seed, "validation")
        losses = [
            np.asarray(self._losses(ema, setup.frozen, setup.put(batch), jax.random.fold_in(root, i)))
            for i, batch in enumerate(self._batches)
        ]
        losses = np.concatenate(losses).astype(np.float64)
        spread = losses.std(ddof=1) / np.sqrt(losses.size) if losses.size > 1 else float("nan")
        return {f"{self._name}_loss": float(losses.mean()), f"{self._name}_stderr": float(spread)}


def _losses(task, params: Params, frozen: Params, batch: Batch, key: Array) -> Array:
    """One loss per example, [B]."""
    key_draw, key_loss = jax.random.split(key)
    params = trees.merge(frozen.get("fixed", {}), params)
    batch = task.draw(batch, key_draw)
    return task.loss(params, frozen, batch, key_loss, train=False)[0].astype(jnp.float32)
