"""Lemmas 1 and 2 and Proposition 1 against brute force on joint Gaussians, in double precision."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contextdiff_jax.errors import UserError
from contextdiff_jax.process import forward, schedule

SCHEDULES = {
    "cosine": lambda T: schedule.cosine(T),
    "linear": lambda T: schedule.linear(T, 1e-4, 0.3),
    "scaled_linear": lambda T: schedule.scaled_linear(T),
    "zero_terminal_snr": lambda T: schedule.zero_terminal_snr(schedule.scaled_linear(T)),
}
EXACT = dict(rtol=1e-10, atol=1e-12)


@pytest.fixture(params=SCHEDULES)
def s(request, x64):
    return SCHEDULES[request.param](12)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def path(T, shape=(3, 2), seed=0):
    """x0 and shifts b_0..b_T, of which b_0 = 0."""
    b = draw(T + 1, *shape, seed=seed + 1)
    b[0] = 0.0
    return draw(*shape, seed=seed), b


def affine(call, point):
    """Slope and intercept of a map that acts on every element alike: mean = slope * x + intercept."""
    at_zero = call(jnp.zeros_like(point)).mean
    return call(jnp.ones_like(point)).mean - at_zero, at_zero


def test_lemma_1_composed_kernels_are_the_marginal(s):
    x0, b = path(12)
    mean, var = jnp.asarray(x0), jnp.zeros_like(x0)
    for t in range(1, 13):
        slope, intercept = affine(lambda x, t=t: forward.transition(s, x, b[t], b[t - 1], t), x0)
        kernel = forward.transition(s, x0, b[t], b[t - 1], t)
        mean, var = slope * mean + intercept, slope**2 * var + kernel.var
        expected = forward.marginal(s, x0, b[t], t)
        chex.assert_trees_all_close((mean, var), tuple(expected), **EXACT)


def joint(s, x0, b):
    """Mean and covariance of (x_1, ..., x_T) given one scalar x0, from the definition of Eq. 2 alone."""
    ab = np.asarray(s.alpha_bar)
    T = len(ab) - 1
    mean, precision_root = np.zeros(T), np.eye(T)
    noise = np.zeros(T)
    previous = x0
    for t in range(1, T + 1):
        a_t = ab[t] / ab[t - 1]
        mean[t - 1] = np.sqrt(a_t) * previous + b[t] - np.sqrt(a_t) * b[t - 1]
        if t > 1:
            precision_root[t - 1, t - 2] = -np.sqrt(a_t)
        noise[t - 1] = 1 - a_t
        previous = mean[t - 1]
    # L x = m + noise, so cov = L^-1 diag(noise) L^-T
    inverse = np.linalg.inv(precision_root)
    return mean, inverse @ np.diag(noise) @ inverse.T


def test_proposition_1_posterior_is_the_conditioned_joint(s):
    x0, b = path(12, (4,))
    xt = draw(4, seed=5)
    for i in range(4):
        mean, cov = joint(s, x0[i], b[:, i])
        for t in range(2, 13):
            now, before = t - 1, t - 2
            gain = cov[before, now] / cov[now, now]
            expected_mean = mean[before] + gain * (xt[i] - mean[now])
            expected_var = cov[before, before] - gain * cov[now, before]
            q = forward.posterior(s, xt[i : i + 1], x0[i : i + 1], b[t, i], b[t - 1, i], t)
            np.testing.assert_allclose(q.mean[0], expected_mean, **EXACT)
            np.testing.assert_allclose(q.var[0], expected_var, **EXACT)


def test_posterior_at_the_first_step_is_the_data(s):
    x0, b = path(12)
    q = forward.posterior(s, draw(3, 2, seed=9), x0, b[1], 0.0, 1)
    chex.assert_trees_all_close(tuple(q), (jnp.asarray(x0), jnp.zeros_like(x0)), **EXACT)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0, 1.7])
@pytest.mark.parametrize("times", [range(12, -1, -1), [12, 9, 5, 1, 0], [11, 2], [12, 0]])
def test_lemma_2_ddim_keeps_the_marginals(s, eta, times):
    x0, b = path(12)
    times = list(times)
    mean, var = forward.marginal(s, x0, b[times[0]], times[0])
    for t, s_index in itertools.pairwise(times):
        step = lambda x, t=t, s_index=s_index: forward.ddim_posterior(
            s, x, x0, b[t], b[s_index], t, s_index, eta
        )
        slope, intercept = affine(step, x0)
        mean, var = slope * mean + intercept, slope**2 * var + step(x0).var
        expected = forward.marginal(s, x0, b[s_index], s_index)
        chex.assert_trees_all_close((mean, var), tuple(expected), rtol=1e-10, atol=1e-10)


def test_ddim_at_eta_1_between_neighbours_is_the_posterior(s):
    x0, b = path(12)
    xt = draw(3, 2, seed=5)
    for t in range(1, 13):
        q = forward.ddim_posterior(s, xt, x0, b[t], b[t - 1], t, t - 1, 1.0)
        chex.assert_trees_all_close(
            q, forward.posterior(s, xt, x0, b[t], b[t - 1], t), rtol=1e-10, atol=1e-10
        )


def test_without_a_shift_it_is_ddpm_and_ddim(x64):
    """Ho et al. (2020), Eqs. 4 and 7; Song et al. (2021), Eqs. 7 and 16, as printed there."""
    s = schedule.linear(12, 1e-4, 0.3)
    ab = np.asarray(s.alpha_bar)
    x0, xt, eta = draw(3, 2), draw(3, 2, seed=1), 0.6
    for t in range(2, 13):
        beta = 1 - ab[t] / ab[t - 1]
        q = forward.marginal(s, x0, 0.0, t)
        np.testing.assert_allclose(q.mean, np.sqrt(ab[t]) * x0, **EXACT)
        q = forward.posterior(s, xt, x0, 0.0, 0.0, t)
        mean = (
            np.sqrt(ab[t - 1]) * beta / (1 - ab[t]) * x0
            + np.sqrt(1 - beta) * (1 - ab[t - 1]) / (1 - ab[t]) * xt
        )
        np.testing.assert_allclose(q.mean, mean, **EXACT)
        np.testing.assert_allclose(q.var, np.full((3, 2), (1 - ab[t - 1]) / (1 - ab[t]) * beta), **EXACT)
        s_index = t // 2
        sigma = eta * np.sqrt((1 - ab[s_index]) / (1 - ab[t])) * np.sqrt(1 - ab[t] / ab[s_index])
        eps = (xt - np.sqrt(ab[t]) * x0) / np.sqrt(1 - ab[t])
        q = forward.ddim_posterior(s, xt, x0, 0.0, 0.0, t, s_index, eta)
        np.testing.assert_allclose(
            q.mean, np.sqrt(ab[s_index]) * x0 + np.sqrt(1 - ab[s_index] - sigma**2) * eps, **EXACT
        )
        np.testing.assert_allclose(q.var, np.full((3, 2), sigma**2), **EXACT)


@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 4, 5, 2), (3, 2, 4, 5, 2)])
def test_every_rank_scalar_and_batched_times(x64, shape):
    s = schedule.cosine(9)
    x0, xt, b_t, b_s = (draw(*shape, seed=i) for i in range(4))
    calls = {
        "marginal": lambda i, t: forward.marginal(s, x0[i], b_t[i], t),
        "transition": lambda i, t: forward.transition(s, xt[i], b_t[i], b_s[i], t),
        "posterior": lambda i, t: forward.posterior(s, xt[i], x0[i], b_t[i], b_s[i], t),
        "ddim": lambda i, t: forward.ddim_posterior(s, xt[i], x0[i], b_t[i], b_s[i], t, t - 1, 0.5),
    }
    t = np.array([1, 5, 9])
    for call in calls.values():
        together = call(slice(None), t)
        chex.assert_shape((together.mean, together.var), shape)
        for i in range(3):
            for scalar in (int(t[i]), jnp.int32(t[i])):
                alone = call(slice(i, i + 1), scalar)
                chex.assert_trees_all_close(
                    jax.tree.map(lambda v, i=i: v[i : i + 1], together), alone, rtol=1e-14
                )


@pytest.mark.parametrize("build", [schedule.cosine, lambda T: schedule.zero_terminal_snr(schedule.cosine(T))])
def test_float32_is_finite_at_both_ends_of_time(build):
    s = build(1000)
    x = jnp.asarray(draw(5, 4), jnp.float32)

    @jax.jit
    def everything(t):
        prev = jnp.maximum(t - 1, 0)
        return (
            forward.marginal(s, x, x, t),
            forward.transition(s, x, x, x, t),
            forward.posterior(s, x, x, x, x, t),
            forward.ddim_posterior(s, x, x, x, x, t, prev, 0.0),
            forward.ddim_posterior(s, x, x, x, x, t, prev, 1.0),
        )

    out = everything(jnp.array([0, 1, 2, 999, 1000]))
    chex.assert_tree_all_finite(out)
    assert all((q.var >= 0).all() for q in out)
    grad = jax.grad(
        lambda v: forward.ddim_posterior(s, v, v, v, v, jnp.array([1, 2, 3, 999, 1000]), 0, 0.5).mean.sum()
    )
    chex.assert_tree_all_finite(grad(x))


def test_float32_coefficients_are_accurate_for_the_stored_table():
    s = schedule.cosine(1000)
    ab = np.asarray(s.alpha_bar, np.float64)
    t = np.arange(1, 1001)
    A, B, var = forward.posterior_coefficients(s, t, np.zeros((1000, 1)))
    beta = 1 - ab[1:] / ab[:-1]
    np.testing.assert_allclose(A[:, 0], np.sqrt(ab[:-1]) * beta / (1 - ab[1:]), rtol=2e-6)
    np.testing.assert_allclose(B[:, 0], np.sqrt(1 - beta) * (1 - ab[:-1]) / (1 - ab[1:]), rtol=2e-6)
    np.testing.assert_allclose(var[:, 0], (1 - ab[:-1]) * beta / (1 - ab[1:]), rtol=2e-6)


def test_samples_have_the_mean_and_variance_they_claim():
    q = forward.Gaussian(jnp.array([1.0, -2.0]), jnp.array([0.25, 4.0]))
    draws = jax.vmap(q.sample)(jax.random.split(jax.random.key(0), 20_000))
    np.testing.assert_allclose(draws.mean(0), q.mean, atol=0.05)
    np.testing.assert_allclose(draws.var(0), q.var, rtol=0.05)


@pytest.mark.parametrize(
    "call",
    [
        lambda s, x: forward.marginal(s, x, x, 11),
        lambda s, x: forward.marginal(s, x, x, -1),
        lambda s, x: forward.marginal(s, x, x, np.array([1, 2, 3])),
        lambda s, x: forward.transition(s, x, x, x, 0),
        lambda s, x: forward.posterior(s, x, x, x, x, 0),
        lambda s, x: forward.ddim_posterior(s, x, x, x, x, 5, 5, 0.0),
        lambda s, x: forward.ddim_posterior(s, x, x, x, x, 5, 3, -0.1),
        lambda s, x: forward.ddim_posterior(s, x, x, x, x, 5, 3, float("nan")),
    ],
)
def test_bad_arguments_are_user_errors_even_inside_jit(call):
    s, x = schedule.cosine(10), jnp.ones((2, 3))
    with pytest.raises(UserError):
        call(s, x)
    with pytest.raises(UserError):
        jax.jit(lambda x: call(s, x))(x)
