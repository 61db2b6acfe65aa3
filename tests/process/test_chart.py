"""Charts carry samples in and out of the shifted coordinates."""

import chex
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.models.adapter import ScaledShift
from contextdiff_jax.process import chart, schedule

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


def scaled_shift(s):
    """An adapter on points [B, C] whose scale differs from 1 by up to 0.5."""
    answers = lambda x0, t, shape: jnp.concatenate([0.8 * jnp.sin(2 * x0), 0.5 * jnp.cos(3 * x0)], axis=-1)
    return ScaledShift(s, features=lambda x0: x0, relate=answers)


def test_the_chart_of_a_scaled_process_unstretches_the_noise_and_stretches_it_again(x64):
    """With the true x0, y is the ordinary diffusion's; the process is written out from docs/scale.md."""
    s, rng = schedule.cosine(6), np.random.default_rng(1)
    x0, eps = rng.normal(size=(2, 3, 4))
    ab, k, b = np.asarray(s.alpha_bar), np.asarray(s.k), scaled_shift(s)
    y_at = lambda t: np.sqrt(ab[t]) * x0 + np.sqrt(1 - ab[t]) * eps
    stretched = lambda t: (1 + 4 * k[t] * 0.5 * np.cos(3 * x0)) * np.sqrt(1 - ab[t]) * eps
    x_at = lambda t: np.sqrt(ab[t]) * x0 + k[t] * 0.8 * np.sin(2 * x0) + stretched(t)
    oracle = chart.contextual(lambda x, t: jnp.asarray(x0), b)
    y, x0_hat = oracle.predict(x_at(4), 4)
    np.testing.assert_allclose(y, y_at(4), rtol=1e-12)
    np.testing.assert_allclose(oracle.commit(y_at(2), x0_hat, 2), x_at(2), rtol=1e-12)
    c, update = chart.contextual(lambda x, t: jnp.tanh(x), b), lambda y, x0_hat: 0.5 * y + x0_hat
    y, x0_hat = c.predict(x_at(4), 4)
    np.testing.assert_allclose(c.commit(y, x0_hat, 4), x_at(4), rtol=1e-12)
    moved = c.commit(update(y, x0_hat), x0_hat, 2)
    np.testing.assert_allclose(c.move(x_at(4), 4, 2, update)[0], moved, rtol=1e-12)


def test_the_marginal_of_each_kind_of_process(x64):
    s, t = schedule.cosine(6), np.array([1, 4, 6])
    x0 = np.random.default_rng(1).normal(size=(3, 2))
    ab, k = (np.asarray(table)[t][:, None] for table in (s.alpha_bar, s.k))
    shift = lambda x0, t: schedule.gather(s.k, t, x0) * jnp.sin(x0)
    for b, expected, scale in [
        (None, 0.0, 1.0),
        (shift, k * np.sin(x0), 1.0),
        (scaled_shift(s), k * 0.8 * np.sin(2 * x0), 1 + 4 * k * 0.5 * np.cos(3 * x0)),
    ]:
        found = chart.marginal(b, s, x0, t)
        np.testing.assert_allclose(found.mean, np.sqrt(ab) * x0 + expected, rtol=1e-12)
        np.testing.assert_allclose(found.var, np.broadcast_to((1 - ab) * scale**2, x0.shape), rtol=1e-12)


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
