"""Identities of the guidance blend."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.guiders.guider_utils import rescale_noise_cfg

from contextdiff_jax.errors import UserError
from contextdiff_jax.process import forward, schedule
from contextdiff_jax.samplers.guidance import classifier_free

s = schedule.cosine(100)
cond, null, x = np.random.default_rng(0).normal(size=(3, 4, 6, 6, 2)).astype(np.float32)
both = lambda x, t: (jnp.asarray(cond), jnp.asarray(null))
T = np.array([1, 40, 60, 100])


def test_scale_1_is_the_conditional_model_exactly():
    chex.assert_trees_all_equal(classifier_free(both, s, 1.0)(x, T), jnp.asarray(cond))
    chex.assert_trees_all_equal(classifier_free(both, s, 1)(x, 40), jnp.asarray(cond))


def test_scale_0_is_the_unconditional_model_and_the_blend_is_affine():
    np.testing.assert_allclose(classifier_free(both, s, 0.0)(x, T), null, atol=1e-6)
    np.testing.assert_allclose(
        classifier_free(both, s, 7.5)(x, T), null + 7.5 * (cond - null), rtol=1e-4, atol=1e-5
    )


def test_a_scale_per_example_and_a_traced_scale():
    scale = np.array([1.0, 2.0, 3.0, 0.0], np.float32)
    guided = jax.jit(lambda scale: classifier_free(both, s, scale)(x, T))(scale)
    for i in range(4):
        alone = classifier_free(both, s, float(scale[i]))(x, T)[i]
        np.testing.assert_allclose(guided[i], alone, rtol=1e-5, atol=1e-6)


def test_blending_x0_is_blending_the_noise(x64):
    """x0_hat and the effective noise are affine in one another."""
    s = schedule.cosine(100)
    noise = lambda x0_hat: forward.effective_noise(s, x, x0_hat, T)
    guided = classifier_free(lambda x, t: (cond.astype(float), null.astype(float)), s, 4.0)(x, T)
    np.testing.assert_allclose(
        noise(guided), noise(null) + 4.0 * (noise(cond) - noise(null)), rtol=1e-9, atol=1e-9
    )


def test_interval_limits_guidance_to_its_fractions_of_T():
    guided = classifier_free(both, s, 3.0)(x, T)
    inside = classifier_free(both, s, 3.0, interval=(0.3, 0.6))(x, T)
    chex.assert_trees_all_equal(inside[jnp.array([0, 3])], jnp.asarray(cond[[0, 3]]))
    chex.assert_trees_all_equal(inside[1:3], guided[1:3])  # 40 inside, 60 on the edge
    for t, expected in [(30, guided), (29, cond), (61, cond)]:
        chex.assert_trees_all_equal(
            classifier_free(both, s, 3.0, interval=(0.3, 0.6))(x, t), jnp.asarray(expected)
        )


def test_rescale_draws_the_deviation_back():
    full = classifier_free(both, s, 5.0, rescale=1.0)(x, T)
    np.testing.assert_allclose(full.std((1, 2, 3)), cond.std((1, 2, 3)), rtol=1e-5)
    guided = classifier_free(both, s, 5.0)(x, T)
    half = classifier_free(both, s, 5.0, rescale=0.5)(x, T)
    np.testing.assert_allclose(half, 0.5 * full + 0.5 * guided, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prediction", ["x0", "eps", "v"])
def test_rescale_is_diffusers_in_the_network_s_own_prediction(x64, prediction):
    """Conversions written out; the schedule has times of little and of much noise."""
    s = schedule.cosine(100)
    ab = np.asarray(s.alpha_bar)[T].reshape(-1, 1, 1, 1)
    signal, sigma, xt = np.sqrt(ab), np.sqrt(1 - ab), x.astype(float)
    to_x0 = {
        "x0": lambda out: out,
        "eps": lambda out: (xt - sigma * out) / signal,
        "v": lambda out: signal * xt - sigma * out,
    }[prediction]
    positive, negative = cond.astype(float), null.astype(float)  # what the network answers
    blended = torch.from_numpy(negative + 5.0 * (positive - negative))
    expected = to_x0(rescale_noise_cfg(blended, torch.from_numpy(positive), guidance_rescale=0.7).numpy())
    f = classifier_free(lambda x, t: (to_x0(positive), to_x0(negative)), s, 5.0, rescale=0.7, prediction=prediction)
    np.testing.assert_allclose(f(xt, T), expected, rtol=1e-9)
    off = jax.jit(lambda rescale: classifier_free(both, s, 5.0, rescale=rescale, prediction=prediction)(x, T))(0.0)
    np.testing.assert_array_equal(off, classifier_free(both, s, 5.0)(x, T))


def test_thresholds():
    static = classifier_free(both, s, 5.0, threshold="static")(x, T)
    np.testing.assert_allclose(static, np.clip(classifier_free(both, s, 5.0)(x, T), -1, 1), rtol=1e-6)
    guided = np.asarray(classifier_free(both, s, 5.0)(x, T))
    dynamic = classifier_free(both, s, 5.0, threshold="dynamic", percentile=0.9)(x, T)
    for i in range(4):
        limit = max(np.quantile(np.abs(guided[i]), 0.9), 1.0)
        np.testing.assert_allclose(
            dynamic[i], np.clip(guided[i], -limit, limit) / limit, rtol=1e-4, atol=1e-5
        )
    small = lambda x, t: (0.1 * jnp.asarray(cond), 0.1 * jnp.asarray(cond))
    inside = classifier_free(small, s, 5.0, threshold="dynamic")(x, T)
    np.testing.assert_allclose(inside, 0.1 * cond, rtol=1e-6)  # a limit below 1 does nothing


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(scale=float("nan")), "scale"),
        (dict(rescale=1.5), "rescale"),
        (dict(interval=(0.5, 0.5)), "interval"),
        (dict(interval=(-0.1, 0.5)), "interval"),
        (dict(threshold="hard"), "static, dynamic"),
        (dict(percentile=0.0), "percentile"),
    ],
)
def test_bad_options_are_user_errors(options, words):
    with pytest.raises(UserError, match=words):
        classifier_free(both, s, **({"scale": 2.0} | options))
