"""The loss on held-out records is that of the network as it is used, without dropout."""

import jax
import jax.numpy as jnp
import numpy as np
from small_models import text_to_image

from contextdiff_jax import task as task_lib
from contextdiff_jax.training import Setup
from contextdiff_jax.training.validation import Validation


def setup_with(dropout):
    """The smallest network that has dropout."""
    config = text_to_image()
    config.condition.kind, config.adapter.enabled, config.sample.guidance = "none", False, 1.0
    config.model.self_attention_levels = config.model.cross_attention_levels = ()
    config.model.dropout, config.train.validate_every, config.train.validate_batches = dropout, 1, 1
    return Setup.of(task_lib.build(config))


def test_validation_leaves_dropout_out_and_training_does_not():
    dropped, whole = setup_with(0.5), setup_with(0.0)
    rng = np.random.default_rng(0)  # the network's output starts as zero, which would hide it
    shapes = dropped.abstract.params
    params = jax.tree.map(lambda p: jnp.asarray(0.1 * rng.normal(size=p.shape), p.dtype), shapes)
    found, expected = Validation(dropped)(params), Validation(whole)(params)
    assert found == expected and found["validation_loss"] > 0

    task = dropped.task
    batch = task.draw(next(dropped.held_out_batches()[1]), jax.random.key(0))
    loss = jax.jit(lambda key, train: task.loss(params, dropped.frozen, batch, key, train=train)[0], static_argnums=1)
    first, second = jax.random.key(1), jax.random.key(2)
    np.testing.assert_array_equal(loss(first, False), loss(second, False))
    assert np.all(loss(first, True) != loss(second, True))
