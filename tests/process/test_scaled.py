"""A forward scale beside the shift: composed kernels, conditioned joint Gaussians, and Eqs. 1-3 at scale 1."""

import numpy as np
import pytest

from contextdiff_jax.process import forward, scaled, schedule
from contextdiff_jax.process.scaled import Warp

rng = np.random.default_rng(0)


def warps(T, shape):
    """Any shift and scale at every t, 0 and 1 at t = 0."""
    shift, scale = rng.normal(size=(T + 1, *shape)), rng.uniform(0.2, 3.0, size=(T + 1, *shape))
    shift[0], scale[0] = 0.0, 1.0
    return [Warp(b, s) for b, s in zip(shift, scale, strict=True)]


@pytest.mark.parametrize("build", [schedule.cosine, schedule.log_snr])
def test_composed_kernels_are_the_marginal_and_the_posterior_is_the_conditioned_joint(x64, build):
    s, x0 = build(5), rng.normal(size=(3, 2))
    w = warps(5, x0.shape)
    mean, var = x0, np.zeros_like(x0)
    for t in range(1, 6):
        # x_t = gain x_{t-1} + offset + noise: two points of the mean give gain and offset
        at = lambda x, t=t: scaled.transition(s, x, x0, w[t], w[t - 1], t)
        offset = at(np.zeros_like(x0)).mean
        gain, noise = at(np.ones_like(x0)).mean - offset, at(x0).var
        joint_mean, joint_var = gain * mean + offset, gain**2 * var + noise
        expected = scaled.marginal(s, x0, w[t], t)
        np.testing.assert_allclose(expected.mean, joint_mean, rtol=1e-10)
        np.testing.assert_allclose(expected.var, joint_var, rtol=1e-10)
        # x_{t-1} given x_t, from the joint Gaussian of the two
        xt = rng.normal(size=x0.shape)
        slope = gain * var / joint_var
        found = scaled.posterior(s, xt, x0, w[t], w[t - 1], t)
        np.testing.assert_allclose(found.mean, mean + slope * (xt - joint_mean), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found.var, var - slope * gain * var, rtol=1e-9, atol=1e-12)
        mean, var = joint_mean, joint_var


def test_at_scale_1_it_is_the_shifted_process_to_the_last_bit():
    s, t = schedule.cosine(20), np.array([1, 7, 20])
    x0, x, b_t, b_prev = rng.normal(size=(4, 3, 2, 2, 3)).astype(np.float32)
    b_prev[0] = 0.0
    now, before = Warp(b_t, np.ones_like(b_t)), Warp(b_prev, np.ones_like(b_t))
    same = lambda new, old: [np.testing.assert_array_equal(*pair) for pair in zip(new, old, strict=True)]
    same(scaled.marginal(s, x0, now, t), forward.marginal(s, x0, b_t, t))
    same(scaled.posterior(s, x, x0, now, before, t), forward.posterior(s, x, x0, b_t, b_prev, t))
    same(scaled.transition(s, x, x0, now, before, t), forward.transition(s, x, b_t, b_prev, t))


def test_bent_undoes_straight(x64):
    s, t = schedule.cosine(20), np.array([1, 7, 20])
    x0, x = rng.normal(size=(2, 3, 4))
    warp = warps(1, x0.shape)[1]
    np.testing.assert_allclose(scaled.bent(s, scaled.straight(s, x, x0, warp, t), x0, warp, t), x, rtol=1e-12)
