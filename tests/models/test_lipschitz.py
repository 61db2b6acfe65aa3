"""Lipschitz estimates on functions whose constants are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contextdiff_jax.errors import UserError
from contextdiff_jax.models import lipschitz
from contextdiff_jax.process import schedule

rng = np.random.default_rng(0)
KEY = jax.random.key(0)
W = rng.normal(size=(6, 6))
SIGMA = np.linalg.norm(W, 2)


def test_slope_of_a_linear_map_is_its_spectral_norm(x64):
    r = lambda x, t: (1 + t[:, None, None]) * (x.reshape(-1, 6) @ W).reshape(x.shape)
    x0, t = rng.normal(size=(4, 2, 3)), np.array([0, 1, 2, 5])
    got = lipschitz.slope(r, x0, t, KEY, num_iterations=100)
    np.testing.assert_allclose(got, (1 + t) * SIGMA, rtol=1e-6)
    # From below, the nearer the longer
    few, more = (lipschitz.slope(r, x0, t, KEY, num_iterations=n) for n in (1, 5))
    assert np.all(few <= more) and np.all(more <= (1 + t) * SIGMA * (1 + 1e-12)) and np.all(few > 0.3 * SIGMA)
    np.testing.assert_array_equal(lipschitz.slope(lambda x, t: 0 * x, x0, 3, KEY), 0.0)


def test_slope_of_a_network_is_the_norm_of_its_jacobian_where_it_stands(x64):
    r = lambda x, t: jnp.sin(x @ W + t[:, None]) @ W.T
    x0, t = rng.normal(size=(5, 6)), np.arange(5)
    jacobians = jax.vmap(jax.jacobian(lambda x, t: r(x[None], t[None])[0]))(x0, t)
    expected = np.linalg.norm(jacobians, 2, axis=(1, 2))
    np.testing.assert_allclose(lipschitz.slope(r, x0, t, KEY, num_iterations=200), expected, rtol=1e-6)
    constants = lipschitz.lipschitz_constants(r, x0, [1, 7], KEY, num_iterations=200)
    for got, time in zip(constants, (1, 7), strict=True):
        jacobians = jax.vmap(jax.jacobian(lambda x, time=time: r(x[None], jnp.array([time]))[0]))(x0)
        np.testing.assert_allclose(got, np.linalg.norm(jacobians, 2, axis=(1, 2)).max(), rtol=1e-6)


def test_no_pair_and_no_slope_exceeds_the_constant(x64):
    """sin(x W) has exactly the constant |W|, reached at 0; tanh bounds r but not how steep it is."""
    r = lambda x, t: jnp.sin(x @ W)
    x, y = rng.normal(size=(2, 1000, 6)) * np.logspace(-6, 1, 1000)[:, None]
    ratios = lipschitz.secant(r(x, 0), r(y, 0), x, y)
    assert ratios.max() <= SIGMA * (1 + 1e-9) and ratios.max() > 0.8 * SIGMA
    top = np.linalg.svd(W.T)[2][0] * 1e-4  # along W's strongest direction the pair says it all
    along = lipschitz.secant(r(top[None], 0), r(-top[None], 0), top[None], -top[None])
    np.testing.assert_allclose(along, SIGMA, rtol=1e-6)
    at_0 = lipschitz.slope(r, np.zeros((1, 6)), 0, KEY, num_iterations=200)
    np.testing.assert_allclose(at_0, SIGMA, rtol=1e-6)
    steep = lambda x, t: jnp.tanh(100 * x)
    np.testing.assert_allclose(lipschitz.slope(steep, np.zeros((1, 6)), 0, KEY), 100.0, rtol=1e-6)
    np.testing.assert_array_equal(lipschitz.secant(x[:2], y[:2], x[:2], x[:2]), 0.0)


def test_shifts_tell_the_same_as_r(x64):
    s = schedule.zero_terminal_snr(schedule.linear(20, 1e-3, 0.4))
    x, y = rng.normal(size=(2, 21, 3, 2))
    t, r = np.arange(21), lambda x: np.sin(3 * x)
    b = lambda x: schedule.gather(s.k, t, x) * r(x)
    got = lipschitz.secant_of_shifts(s, b(x), b(y), x, y, t)
    np.testing.assert_allclose(got[1:-1], lipschitz.secant(r(x), r(y), x, y)[1:-1], rtol=1e-10)
    np.testing.assert_array_equal(got[np.array([0, 20])], 0.0)  # k_0 = k_T = 0: nothing is known


def test_over_time_takes_the_larger_neighbour():
    got = lipschitz.over_time([2, 4, 8], jnp.array([1.0, 3.0, 2.0]), 10)
    np.testing.assert_array_equal(got, [1, 1, 1, 3, 3, 3, 3, 3, 2, 2, 2])
    for bad in ([4, 2, 8], [2, 4], []):
        with pytest.raises(UserError, match="must rise"):
            lipschitz.over_time(bad, jnp.array([1.0, 3.0, 2.0]), 10)
    with pytest.raises(UserError, match="num_iterations=0"):
        lipschitz.slope(lambda x, t: x, jnp.ones((1, 2)), 1, KEY, num_iterations=0)
