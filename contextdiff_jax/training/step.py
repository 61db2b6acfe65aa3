"""One training step: a pure function."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from contextdiff_jax import trees
from contextdiff_jax.training import sharding
from contextdiff_jax.training.optimizer import learning_rate
from contextdiff_jax.training.state import stream
from contextdiff_jax.types import Array, Batch, Params, TrainState

Step = Callable[[TrainState, "Guard", Params, Batch], tuple[TrainState, "Guard", dict[str, Array]]]


def is_maximum(metric: str) -> bool:
    """Whether the largest value of a metric counts, over the batch and between two log lines, and not the mean."""
    return metric.endswith("_max")


@flax.struct.dataclass
class Guard:
    """What a step is given beside the state and nothing saves: the run's key, and the first step whose loss or gradient
    was not finite, from which on the state is kept.

    Attributes:
        bad_step: that step, counted from 1, or 0; int32 [].
        bad_rows: the rows of its batch whose own loss was not finite, bool [B].
        root: data of the key that all randomness of the run comes from, uint32 [2]: an argument of the step, so that
            runs of other seeds are the same program.
    """

    bad_step: Array
    bad_rows: Array
    root: Array

    @classmethod
    def clear(cls, batch_size: int, seed: int | Array) -> "Guard":
        """Nothing has happened."""
        root = jax.random.key_data(stream(seed, "step"))
        return cls(jnp.zeros((), jnp.int32), jnp.zeros((batch_size,), bool), root)


def make_step(task: Any, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh) -> Step:
    """The step of a task, (state, guard, frozen, batch) -> (state, guard, metrics), to be jitted.

    All randomness of step n comes from fold_in(root, n), the guard's root, and is drawn for the global batch, so it
    depends neither on devices nor on when a run was interrupted. The loss is the mean over the global batch; with
    `optim.accum_steps` > 1 gradients are accumulated over equal microbatches, which gives the same mean.
    """
    config = task.config

    def step(
        state: TrainState, guard: Guard, frozen: Params, batch: Batch
    ) -> tuple[TrainState, Guard, dict[str, Array]]:
        root = jax.random.wrap_key_data(guard.root)
        key_draw, key_loss = jax.random.split(jax.random.fold_in(root, state.step))
        batch = task.draw(batch, key_draw)
        losses, metrics, grads = accumulate(task, state.params, frozen, batch, key_loss, mesh)
        metrics = {name: (jnp.max if is_maximum(name) else jnp.mean)(value) for name, value in metrics.items()}
        loss, grad_norm = jnp.mean(losses), optax.tree.norm(grads)

        def update() -> TrainState:
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            return TrainState(state.step + 1, params, update_ema(config.ema, state, params), opt_state)

        finite, seen = jnp.isfinite(loss) & jnp.isfinite(grad_norm), guard.bad_step > 0
        guard = guard.replace(
            bad_step=jnp.where(seen | finite, guard.bad_step, state.step + 1),
            bad_rows=jnp.where(seen | finite, guard.bad_rows, ~jnp.isfinite(losses)),
        )
        lr = learning_rate(config, state.step)
        # A branch, not a select per leaf: XLA would fuse the whole update into every one of them.
        state = jax.lax.cond(finite & ~seen, update, lambda: state)
        return state, guard, metrics | {"loss": loss, "grad_norm": grad_norm, "lr": lr}

    return step


def update_ema(config: ConfigDict, state: TrainState, params: Params) -> Params:
    """decay * ema + (1 - decay) * params; with warm-up the decay is min(decay, (1 + n) / (10 + n))."""
    n = state.step.astype(jnp.float32)
    decay = jnp.minimum(config.decay, (1 + n) / (10 + n)) if config.warmup else config.decay
    return optax.incremental_update(params, state.ema, 1.0 - decay)


def accumulate(
    task: Any, params: Params, frozen: Params, batch: Batch, key: Array, mesh: jax.sharding.Mesh
) -> tuple[Array, dict[str, Array], Params]:
    """Losses [B], the metrics and the gradient of the mean loss, over `optim.accum_steps` microbatches.

    Microbatch i takes the rows i, i + n, i + 2n, ... so that every device keeps its own rows.
    """
    num = task.config.optim.accum_steps

    fixed = frozen.get("fixed", {})

    def loss_fn(params: Params, part: Batch, key: Array) -> tuple[Array, tuple[Array, dict[str, Array]]]:
        losses, metrics = task.loss(trees.merge(fixed, params), frozen, part, key)
        losses = losses.astype(jnp.float32)
        return jnp.mean(losses), (losses, metrics)

    grad_fn = jax.grad(loss_fn, has_aux=True)
    if num == 1:
        grads, (losses, metrics) = grad_fn(params, batch, key)
        return losses, metrics, grads

    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, *sharding.ROWS))

    def split(value: Array) -> Array:
        parts = jnp.swapaxes(value.reshape(len(value) // num, num, *value.shape[1:]), 0, 1)
        return jax.lax.with_sharding_constraint(parts, rows)

    def body(total: Params, xs: tuple[Batch, Array]) -> tuple[Params, tuple[Array, dict[str, Array]]]:
        grads, aux = grad_fn(params, xs[0], jax.random.fold_in(key, xs[1]))
        return jax.tree.map(jnp.add, total, grads), aux

    zeros = jax.tree.map(jnp.zeros_like, params)
    total, (losses, metrics) = jax.lax.scan(body, zeros, (jax.tree.map(split, batch), jnp.arange(num)))
    return jnp.swapaxes(losses, 0, 1).reshape(-1), metrics, jax.tree.map(lambda g: g / num, total)
