"""The options of the reverse process: a second head for the shift, a forward scale. Against brute force and Eq. 7."""

import os
import types
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_toy import functions, toy

from configs import cifar10_nll
from contextdiff_jax import config as config_lib
from contextdiff_jax import losses, samplers
from contextdiff_jax import task as task_lib
from contextdiff_jax.errors import UserError
from contextdiff_jax.models import precond
from contextdiff_jax.models.adapter import ScaledShift, Shift, bounded
from contextdiff_jax.pipeline import Pipeline, requests
from contextdiff_jax.process import chart, forward, schedule
from contextdiff_jax.tasks import objective

rng = np.random.default_rng(0)
KEY = jax.random.key(3)
T = 6
TABLE = np.array([0.0, 0.05, 0.3, 0.1, 0.7, 0.2, 1.5])


def wavy(s, r=0.8, h=0.6):
    """A scaled shift of an arbitrary smooth adapter."""

    def relate(x0, t, shape):
        at = t.reshape(-1, *(1,) * (x0.ndim - 1))
        return jnp.concatenate([r * jnp.sin(2 * x0 + at), h * jnp.cos(3 * x0 - at)], axis=-1)

    return ScaledShift(s, features=lambda x0: x0, relate=relate)


def denoiser(x, t):
    return 0.7 * jnp.tanh(x) + 0.1


def gaussian_kl(q_mean, q_var, p_mean, p_var):
    return 0.5 * ((q_mean - p_mean) ** 2 / p_var + q_var / p_var - 1 - np.log(q_var / p_var))


@pytest.mark.parametrize("variance", ["beta", "posterior", TABLE], ids=["beta", "posterior", "learned"])
def test_the_scaled_term_is_the_kl_of_the_two_gaussians(x64, variance):
    """Written out from the definitions of the process, elementwise, at the x_t that the key draws."""
    s, x0, t = schedule.cosine(T), rng.normal(size=(5, 3)), np.array([2, 3, 4, 5, 6])
    b, ab = wavy(s), np.asarray(s.alpha_bar)
    at, prev = ab[t][:, None], ab[t - 1][:, None]
    beta = 1 - at / prev
    keep = np.sqrt(at / prev) * (1 - prev) / (1 - at)  # B_t
    (b_t, s_t), (b_prev, s_prev) = (map(np.asarray, warp) for warp in b.warps(x0, t, t - 1))
    eps = np.asarray(jax.random.normal(KEY, x0.shape, x0.dtype))
    xt = np.sqrt(at) * x0 + b_t + s_t * np.sqrt(1 - at) * eps
    x0_hat = np.asarray(denoiser(xt, t))
    (c_t, u_t), (c_prev, u_prev) = (map(np.asarray, warp) for warp in b.warps(x0_hat, t, t - 1))
    mean = lambda x, shift, scale, before, stretch: (
        np.sqrt(prev) * x + before + stretch / scale * keep * (xt - shift - np.sqrt(at) * x)
    )
    var_t = (1 - prev) * beta / (1 - at)
    p_var = {"beta": beta, "posterior": var_t}[variance] if isinstance(variance, str) else variance[t][:, None]
    expected = gaussian_kl(
        mean(x0, b_t, s_t, b_prev, s_prev),
        s_prev**2 * var_t,
        mean(x0_hat, c_t, u_t, c_prev, u_prev),
        u_prev**2 * p_var,
    )
    found = losses.diffusion_term(s, x0, denoiser, b, t, KEY, variance=variance)
    np.testing.assert_allclose(found, expected.sum(1), rtol=1e-10)


def test_scale_1_and_an_idle_head_are_todays_numbers_bit_by_bit():
    s, x0 = schedule.cosine(T), rng.normal(size=(6, 3)).astype(np.float32)
    t = 1 + np.arange(6)
    bound = lambda f, b, v="beta": losses.nelbo(s, x0, f, b, t, KEY, bins=None, variance=v)
    # As users compile it: the suite's older emitters round two programs of the same sums differently, as does an XLA
    # that has no others.
    older = "xla_cpu_use_fusion_emitters" in os.environ["XLA_FLAGS"]
    compiled = partial(jax.jit, compiler_options={"xla_cpu_use_fusion_emitters": True} if older else None)
    same = np.testing.assert_array_equal if older else partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    draw = lambda f, b: compiled(lambda x: samplers.ddpm(chart.contextual(f, b), s, KEY, x, T))(x0)
    plain = Shift(s, features=lambda x0: x0, relate=lambda x0, t, shape: 0.8 * jnp.sin(2 * x0))
    scaled = wavy(s, h=0.0)
    unscaled = Shift(s, lambda x0: x0, lambda x0, t, shape: jnp.split(scaled.relate(x0, t, shape), 2, -1)[0])
    assert np.all(np.asarray(wavy(s, h=0.6).warp(x0, t).scale) != 1.0)
    for variance in ("beta", "posterior", TABLE.astype(np.float32)):
        both = (bound(denoiser, b, variance) for b in (scaled, unscaled))
        for found, expected in zip(*map(jax.tree.leaves, both), strict=True):  # prior, reconstruction, diffusion
            np.testing.assert_array_equal(found, expected)
    same(draw(denoiser, scaled), draw(denoiser, unscaled))
    idle = chart.TwoHeaded(lambda x, t: (denoiser(x, t), precond.to_shift(s, jnp.zeros_like(x), t)))
    none = Shift(s, features=lambda x0: x0, relate=lambda x0, t, shape: jnp.zeros_like(x0))
    for found, expected in zip(jax.tree.leaves(bound(idle, none)), jax.tree.leaves(bound(denoiser, none)), strict=True):
        np.testing.assert_array_equal(found, expected)
    same(draw(idle, none), draw(denoiser, None))
    assert np.any(draw(denoiser, plain) != draw(denoiser, None))


def test_a_head_that_answers_eq_7_is_eq_7(x64):
    """In the bound and in the sampler; and with the true mean of the shift it does better for a nonlinear r."""
    s, x0, t = schedule.cosine(T), rng.normal(size=(6, 3)), 1 + np.arange(6)
    b = Shift(s, features=lambda x0: x0, relate=lambda x0, t, shape: 0.8 * jnp.sin(2 * x0))

    def both(x, t):
        x0_hat = denoiser(x, t)
        b_t, b_prev = b.pair(x0_hat, t, t - 1)
        _, B_t, _ = forward.posterior_coefficients(s, t, x)
        return x0_hat, b_prev - B_t * b_t

    two = chart.TwoHeaded(both)
    for variance in ("posterior", TABLE):
        bound = lambda f, variance=variance: losses.diffusion_term(s, x0, f, b, t, KEY, variance=variance)
        np.testing.assert_allclose(bound(two), bound(denoiser), rtol=1e-10)
    draw = lambda f: samplers.ddpm(chart.contextual(f, b), s, KEY, x0, T, variance=TABLE, last_noise=True)
    np.testing.assert_allclose(draw(two), draw(denoiser), rtol=1e-10)
    assert np.all(precond.to_shift(s, jnp.ones((6, 3)), t)[0] == 0)


def test_the_prior_of_a_scaled_process_is_the_kl_from_the_standard_normal(x64):
    s, x0 = schedule.log_snr(T, 3.0, -2.0), rng.normal(size=(5, 3))
    b, ab, T_all = wavy(s), float(s.alpha_bar[T]), np.full(5, T)
    shift, scale = map(np.asarray, b.warp(x0, T_all))
    expected = gaussian_kl(np.sqrt(ab) * x0 + shift, (1 - ab) * scale**2, 0.0, 1.0).sum(1)
    np.testing.assert_allclose(losses.prior_term(s, x0, b), expected, rtol=1e-12)


def test_a_head_takes_the_steps_it_was_trained_for_and_is_idle_in_the_plain_process(x64):
    s, x_T = schedule.cosine(T), rng.normal(size=(4, 3))
    none = Shift(s, features=lambda x0: x0, relate=lambda x0, t, shape: jnp.zeros_like(x0))
    two = chart.TwoHeaded(lambda x, t: (denoiser(x, t), jnp.ones_like(x)))
    for name in ("ddpm", "ddim", "heun", "dpmpp_2m"):
        draw = lambda c, count, name=name, **how: samplers.get(name)(c, s, KEY, x_T, count, **how)
        np.testing.assert_array_equal(draw(chart.plain(two), 3), draw(chart.plain(denoiser), 3))
        with pytest.raises(UserError, match="second head .* num_steps=3 .* without the adapter"):
            draw(chart.contextual(two, none), 3)
        if name != "ddpm":
            with pytest.raises(UserError, match="second head"):
                draw(chart.contextual(two, none), T)
    with pytest.raises(UserError, match="second head"):
        samplers.ddim_invert(chart.contextual(two, none), s, x_T, T)
    alike = [samplers.ddim(c, s, KEY, x_T, T, 1.0) for c in (chart.contextual(two, none), chart.plain(denoiser))]
    assert np.all(alike[0] != alike[1])  # single steps of ddpm under its other name


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("option", ["head", "scale", "scale, learned variance"])
def test_the_bound_lies_above_the_exact_value_for_random_networks(x64, option, seed):
    """N(m, v) data, an arbitrary adapter and an arbitrary reverse process, all t, many draws."""
    r = np.random.default_rng(seed)
    s, m, v, count = schedule.log_snr(T, 3.0, -5.0), 0.3, 0.25, 40_000
    best = toy(s, m=m, v=v).with_optimal_denoiser()
    f, _ = functions(best)  # near the truth, so that a bound that lies too low would be seen
    x0 = m + np.sqrt(v) * r.normal(size=(count, 1))
    b = wavy(s, *r.uniform(0.1, 0.4, size=2))
    variance = TABLE * 0.5 if "learned" in option else "beta"
    if option == "head":
        b = Shift(s, b.features, lambda x0, t, shape, both=b.relate: both(x0, t, shape)[..., :1])
        f = chart.TwoHeaded(lambda x, t, f=f: (f(x, t), precond.to_shift(s, 0.1 * jnp.sin(x), t)))
    t = losses.times(KEY, T, T - 1, count)
    total = losses.nelbo(s, x0, f, b, t, KEY, bins=None, variance=variance).total
    exact = 0.5 * ((x0[:, 0] - m) ** 2 / v + np.log(2 * np.pi * v))
    gap = np.asarray(total) - exact
    assert gap.mean() > 3 * gap.std() / np.sqrt(count)


def test_samplers_undo_and_redo_the_scale(x64):
    """With an oracle x0 every sampler ends in it, whatever the scale; and the scale stays in its limits."""
    s, x0 = schedule.cosine(23), rng.normal(size=(3, 2))
    b = wavy(s)
    for name in ("ddpm", "ddim", "heun", "dpmpp_2m"):
        x = samplers.get(name)(chart.contextual(lambda x, t: x0, b), s, KEY, rng.normal(size=(3, 2)), 6)
        np.testing.assert_allclose(x, x0, rtol=1e-10, atol=1e-10)
    out = bounded(100 * rng.normal(size=(50, 6)), 1.0, 0.9)
    assert np.abs(out[:, :3]).max() <= 1.0 and np.abs(out[:, 3:]).max() <= 0.9


def test_a_head_of_the_library_s_network_is_left_out_with_the_adapter():
    """Its training loss traces; and the bound without a shift is that of the network's x0_hat alone."""
    config = cifar10_nll.get_config("tiny")
    config.adapter.reverse, config.process.num_timesteps, config.process.schedule = "head", T, "log_snr"
    config.sample.sampler, config.sample.num_steps, config.data.batch_size = "ddpm", T, 2
    stored = config_lib.complete(config)  # a run from before x0_hat alone was clipped no more
    assert (config.sample.threshold, stored.sample.threshold) == ("static", "none")
    config.sample.threshold = "none"
    config_lib.check(config)
    task = task_lib.build(config)
    params = jax.eval_shape(task.init, KEY)
    batch = jax.eval_shape(task.draw, task.batch_spec(), KEY)
    loss, _ = jax.eval_shape(task.loss, params, task.frozen, batch, KEY)
    assert loss.shape == (2,)
    # Without the zeros at the start, which would hide it
    params = jax.tree.map(lambda v: 0.1 * rng.normal(size=v.shape).astype(np.float32), params)
    context = task.encode(params, task.frozen, task.parts.condition.empty(2))
    x0, t = 0.5 * rng.normal(size=(2, *task.sample_shape)).astype(np.float32), np.array([3, 5])

    @jax.jit
    def terms(params):
        two = task.denoiser(params, context)
        bound = lambda f, b: losses.diffusion_term(task.schedule, x0, f, b, t, KEY, variance="beta")
        none = lambda x0, t: jnp.zeros_like(x0)
        return bound(two, None), bound(lambda x, t: two(x, t), None), bound(two, none)

    off, alone, on = terms(params)
    np.testing.assert_allclose(off, alone, rtol=1e-5)
    assert np.all(np.abs(on - off) > 1e-4 * np.abs(off))


def test_a_head_has_no_inversion_and_the_plain_process_has_one():
    config = cifar10_nll.get_config("tiny")
    config.adapter.reverse, config.process.num_timesteps = "head", T
    config.sample.sampler, config.sample.num_steps = "ddpm", T
    pipe = types.SimpleNamespace(config=config, _asked=lambda prompts, layouts: [""])
    for how in ({}, {"adapter": None}, {"adapter": True}):
        with pytest.raises(UserError, match="second head .* has no inversion.*adapter=False inverts the plain process"):
            Pipeline.invert(pipe, np.zeros((8, 8, 3), np.float32), 1, **how)
    plain = requests.section_of(config, {"adapter": False}, sampler="ddim", guidance=1.0)
    assert plain.sampler == "ddim" and not plain.adapter


def test_the_reported_steepness_is_that_of_the_scaled_process(x64):
    """At the x_t that the definition gives; and of a single step at t = 1, where no time was drawn."""
    s, x0, t = schedule.cosine(T), rng.normal(size=(5, 3)), np.array([2, 3, 4, 5, 6])
    b, eps = wavy(s), rng.normal(size=(5, 3))
    found = lambda s, b, t: objective.full_bound(
        s, x0, denoiser, b, t, eps, KEY, levels=256, variance="beta", track_lipschitz=True
    )[1]["lipschitz_max"]
    ab, k, h = (np.asarray(v)[t][:, None] for v in (s.alpha_bar, s.k, np.arange(T + 1)))
    r = lambda x: 0.8 * np.sin(2 * x + h)
    scale = 1 + 4 * k * 0.6 * np.cos(3 * x0 - h)
    x0_hat = 0.7 * np.tanh(np.sqrt(ab) * x0 + k * r(x0) + scale * np.sqrt(1 - ab) * eps) + 0.1
    expected = np.linalg.norm(r(x0) - r(x0_hat), axis=1) / np.linalg.norm(x0 - x0_hat, axis=1)
    np.testing.assert_allclose(found(s, b, t), expected, rtol=1e-10)
    single = schedule.log_snr(1)
    ones, none = found(single, wavy(single), np.ones(5, int)), found(single, wavy(single), np.ones((5, 0), int))
    np.testing.assert_array_equal(none, ones)
