"""x0, eps and v in the effective-noise convention."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contextdiff_jax.errors import UserError
from contextdiff_jax.models import precond
from contextdiff_jax.process import forward, schedule


def contextual_sample(s, t, seed=0):
    rng = np.random.default_rng(seed)
    x0, r, eps = rng.normal(size=(3, len(t), 4, 4, 2))
    b_t = schedule.gather(s.k, t, x0) * r
    q = forward.marginal(s, x0, b_t, t)
    return x0, b_t, eps, q.mean + jnp.sqrt(q.var) * eps


@pytest.mark.parametrize("prediction", precond.PREDICTIONS)
def test_the_target_is_turned_back_into_x0(x64, prediction):
    s, t = schedule.cosine(20), np.array([1, 2, 10, 19, 20])
    x0, _, _, xt = contextual_sample(s, t)
    out = precond.target(s, x0, xt, t, prediction)
    np.testing.assert_allclose(precond.to_x0_hat(s, out, xt, t, prediction), x0, rtol=1e-9, atol=1e-10)


def test_the_targets_are_the_effective_noise_and_its_velocity(x64):
    s, t = schedule.cosine(20), np.array([1, 5, 20])
    x0, b_t, eps, xt = contextual_sample(s, t)
    ab = schedule.gather(s.alpha_bar, t, x0)
    eps_eff = eps + b_t / jnp.sqrt(1 - ab)
    np.testing.assert_allclose(precond.target(s, x0, xt, t, "eps"), eps_eff, rtol=1e-10, atol=1e-10)
    v = jnp.sqrt(ab) * eps_eff - jnp.sqrt(1 - ab) * x0
    np.testing.assert_allclose(precond.target(s, x0, xt, t, "v"), v, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("prediction", precond.PREDICTIONS)
def test_finite_from_0_to_T_in_float32(prediction):
    s = schedule.zero_terminal_snr(schedule.scaled_linear(1000))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
    t = jnp.array([0, 1, 999, 1000])
    x0_hat = jax.jit(lambda t: precond.to_x0_hat(s, x, x, t, prediction))(t)
    target = jax.jit(lambda t: precond.target(s, x, x, t, prediction))(t)
    chex.assert_tree_all_finite((x0_hat, target))


def test_unknown_predictions_are_refused():
    s, x = schedule.cosine(10), jnp.ones((2, 3))
    with pytest.raises(UserError, match="x0, eps, v"):
        precond.to_x0_hat(s, x, x, 1, "score")
    with pytest.raises(UserError, match="x0, eps, v"):
        precond.target(s, x, x, 1, "score")
