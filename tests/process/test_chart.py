"""Charts carry samples in and out of the shifted coordinates."""

import chex
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.process import chart

x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)))
f = lambda x, t: jnp.tanh(x) + 0.1 * t
b = lambda x0, t: 0.01 * t * jnp.sin(x0)


def test_the_plain_chart_is_the_identity():
    y, x0_hat = chart.plain(f).predict(x, 3)
    chex.assert_trees_all_equal(y, x)
    chex.assert_trees_all_equal(x0_hat, f(x, 3))
    chex.assert_trees_all_equal(chart.plain(f).commit(y, x0_hat, 2), x)


def test_commit_undoes_predict_at_the_same_time():
    y, x0_hat = chart.contextual(f, b).predict(x, 3)
    chex.assert_trees_all_close(y, x - b(x0_hat, 3))
    chex.assert_trees_all_close(chart.contextual(f, b).commit(y, x0_hat, 3), x, rtol=1e-6)


def test_move_is_predict_update_commit():
    update = lambda y, x0_hat: 0.5 * y + x0_hat
    for c in (chart.plain(f), chart.contextual(f, b)):
        moved, x0_hat = c.move(x, 3, 1, update)
        y, expected_x0_hat = c.predict(x, 3)
        chex.assert_trees_all_close(x0_hat, expected_x0_hat)
        chex.assert_trees_all_close(moved, c.commit(update(y, x0_hat), x0_hat, 1), rtol=1e-6)


def test_a_shift_with_pair_is_asked_once_per_step():
    class Counting:
        calls = 0

        def __call__(self, x0, t):
            raise AssertionError("the pair is enough")

        def pair(self, x0, t, s):
            self.calls += 1
            return b(x0, t), b(x0, s)

    counting = Counting()
    update = lambda y, x0_hat: 0.5 * y + x0_hat
    moved, _ = chart.contextual(f, counting).move(x, 3, 1, update)
    assert counting.calls == 1
    chex.assert_trees_all_equal(moved, chart.contextual(f, b).move(x, 3, 1, update)[0])
