"""What is drawn for a training step."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contextdiff_jax.conditions.spaces import Pixels
from contextdiff_jax.tasks import objective

CONFIG = SimpleNamespace(
    loss=SimpleNamespace(num_times=0, cond_drop_prob=0.25), data=SimpleNamespace(num_frames=1), space=None
)
DRAWS = 4000


@pytest.mark.parametrize("T, size", [(1000, 32), (8, 32), (4, 3), (3, 7)])
def test_times_of_a_batch_are_stratified_and_each_is_uniform(T, size):
    batch = {"image": jnp.zeros((size, 4, 4, 1))}
    draw = lambda key: objective.draw(CONFIG, T, (4, 4, 1), Pixels(4, 1), batch, key)
    drawn = jax.jit(jax.vmap(lambda key: {k: v for k, v in draw(key).items() if k in ("t", "drop_cond")}))(
        jax.random.split(jax.random.key(0), DRAWS)
    )
    t = np.asarray(drawn["t"])
    assert t.shape == (DRAWS, size) and t.dtype == np.int32 and (t.min(), t.max()) == (1, T)
    # One in each of `size` equal parts of 0..T.
    parts = np.arange(size) * T / size
    times = np.sort(t, axis=1) - 1
    assert (times >= np.floor(parts)).all() and (times <= parts + T / size).all()
    counts = np.bincount(t.ravel(), minlength=T + 1)[1:] * T / t.size
    np.testing.assert_allclose(counts, 1.0, atol=0.5 if T == 1000 else 0.05)
    np.testing.assert_allclose(t.mean(axis=0), (T + 1) / 2, atol=5 * T / np.sqrt(12 * DRAWS))  # whatever the row
    assert abs(np.mean(drawn["drop_cond"]) - 0.25) < 0.02
