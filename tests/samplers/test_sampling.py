"""Sampling in pieces: plans, numbers, keys; on a denoiser in closed form."""

import dataclasses
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import t2i
from contextdiff_jax.conditions import ClassCondition
from contextdiff_jax.conditions.spaces import Pixels
from contextdiff_jax.errors import UserError
from contextdiff_jax.process import chart as charts
from contextdiff_jax.process import forward, schedule
from contextdiff_jax.samplers import sampling

SHAPE = (4, 4, 1)


class Model:
    """x0 is the same everywhere, told by the class and a little by x_t; the shift is a constant times k_t."""

    def __init__(self):
        self.schedule = schedule.cosine(40)
        self.condition = ClassCondition(["a", "b"])
        self.parts = SimpleNamespace(space=Pixels(4, 1), scheduler={}, prediction="x0")

    def shape_of(self, size):
        return SHAPE

    def schedule_of(self, params):
        return self.schedule

    def variance_of(self, params):
        return "posterior"

    def encode(self, params, frozen, batch):
        return self.condition.encode({}, batch)

    def null_context(self, params, frozen, context):
        return self.condition.null({}, context)

    def denoise(self, params, xt, t, context):
        return (context.pooled @ jnp.array([0.05, 0.15, -0.1])).reshape(-1, 1, 1, 1) + 0.1 * jnp.tanh(xt)

    def denoiser(self, params, context):
        return partial(self.denoise, params, context=context)

    def shift(self, params, frozen, context):
        return lambda x0, t: 0.5 * self.schedule.k[jnp.broadcast_to(t, x0.shape[:1])].reshape(-1, 1, 1, 1) + 0 * x0


def section(**changes):
    config = t2i.get_config("tiny").sample
    config.update(threshold="none", **changes)
    return config


def draw(config, labels=(0, 1, 1), seeds=(0, 1, 2), **options):
    model, labels = Model(), np.array(labels, np.int32)
    keys = jax.vmap(jax.random.key)(np.array(seeds))
    run = jax.jit(partial(sampling.sample, model, plan=sampling.Plan.of(model, config)))
    context = model.encode({}, {}, {"label": labels})
    return np.asarray(run({}, {"space": {}}, context, keys, sampling.Numbers.of(config), **options))


@pytest.mark.parametrize("how", [dict(sampler="ddpm"), dict(sampler="ddim", eta=0.7), dict(sampler="ddim")])
def test_a_picture_does_not_depend_on_its_batch(how):
    config = section(**how)
    together, alone = draw(config), draw(config, (1,), (1,))
    np.testing.assert_allclose(together[1:2], alone, atol=1e-6)
    assert np.abs(together[1] - together[2]).max() > 1e-2 or how == dict(sampler="ddim")


def test_noise_of_the_steps_is_standard_normal_and_not_that_of_the_start():
    config = section(sampler="ddim", eta=1.0, num_steps=2, spacing="trailing", guidance=1.0, adapter=False)
    model, count = Model(), 4000
    plan, keys = sampling.Plan.of(model, config), jax.random.split(jax.random.key(0), count)
    plan = dataclasses.replace(plan, moves=plan.moves[:1])
    context = model.encode({}, {}, {"label": jnp.zeros(count, jnp.int32)})
    start = sampling.start(model, {}, {"space": {}}, context, keys, plan)
    chart = sampling.guided_chart(model, {}, {}, context, plan, sampling.Numbers.of(config))
    end = sampling.run(chart, model.schedule, keys, start, plan, sampling.Numbers.of(config))
    (t, s), x0_hat = plan.moves[0], chart.f(start, plan.moves[0][0])
    step = forward.ddim_posterior(model.schedule, start, x0_hat, 0.0, 0.0, t, s, 1.0)
    z = (end - step.mean) / jnp.sqrt(step.var)
    assert abs(float(z.mean())) < 0.02 and abs(float(z.std()) - 1) < 0.02
    assert abs(float((z * start).mean())) < 0.02


def test_the_numbers_of_a_program_are_those_of_the_call():
    config = section(guidance=2.0)
    assert np.abs(draw(config) - draw(section(guidance=4.0))).max() > 0.05
    plans = [sampling.Plan.of(Model(), section(guidance=g)) for g in (0.0, 1.0, 1.5, 9.0)]
    assert plans[0] == plans[1] != plans[2] == plans[3]
    # At most 1 is unguided, as in diffusers.
    np.testing.assert_array_equal(draw(section(guidance=0.0)), draw(section(guidance=1.0)))


@pytest.mark.parametrize("asked", ["posterior", "process"])
def test_ddpm_draws_with_the_variance_of_the_bound_where_that_is_asked_for(asked):
    """Of a network that answers half of x_t, whose steps are linear: the variance of the end, in closed form."""
    s, keys, of_bound = Model().schedule, jax.random.split(jax.random.key(0), 4000), asked == "process"
    config = section(sampler="ddpm", num_steps=40, guidance=1.0, variance=asked, last_noise=of_bound)
    plan, numbers = sampling.Plan.of(Model(), config), sampling.Numbers.of(config)
    chart = charts.plain(lambda x, t: 0.5 * x)
    end = jax.jit(lambda x: sampling.run(chart, s, keys, x, plan, numbers, "beta"))(jnp.zeros((4000, 1)))
    ab, expected = np.asarray(s.alpha_bar, np.float64), 0.0
    for t in range(40, 0, -1):
        beta, left = 1 - ab[t] / ab[t - 1], (1 - ab[t - 1]) / (1 - ab[t])
        gain = 0.5 * np.sqrt(ab[t - 1]) * beta / (1 - ab[t]) + np.sqrt(ab[t] / ab[t - 1]) * left
        expected = gain**2 * expected + beta * (1.0 if of_bound else left)
    np.testing.assert_allclose(np.var(end), expected, rtol=0.08)


def test_the_steps_of_a_pretrained_schedule_of_another_length_are_refused():
    model, config = Model(), section(spacing="pretrained", num_steps=4)
    model.parts.scheduler = {"_class_name": "DDIMScheduler", "num_train_timesteps": 40}
    assert max(t for t, _ in sampling.Plan.of(model, config).moves) <= 40
    model.parts.scheduler["num_train_timesteps"] = 50
    with pytest.raises(UserError, match="which has 50, not the 40 of this process; use 'trailing'"):
        sampling.Plan.of(model, config)


def test_a_share_of_the_steps_starts_from_the_picture():
    config = section(num_steps=10, guidance=1.0)
    plan = sampling.Plan.of(Model(), config, strength=0.3)
    assert plan.moves == sampling.Plan.of(Model(), config).moves[-3:]
    model, image = Model(), np.full((2, *SHAPE), 0.25, np.float32)
    context = model.encode({}, {}, {"label": np.array([0, 1], np.int32)})
    keys = jax.vmap(jax.random.key)(np.arange(2))
    x = sampling.start(model, {}, {"space": {}}, context, keys, plan, image)
    eps = jax.vmap(lambda key: jax.random.normal(key, SHAPE))(keys)
    ab, k = (float(table[plan.moves[0][0]]) for table in (model.schedule.alpha_bar, model.schedule.k))
    np.testing.assert_allclose(x, np.sqrt(ab) * image + 0.5 * k + np.sqrt(1 - ab) * np.asarray(eps), atol=1e-5)


def test_sampling_leads_back_from_an_inversion():
    config = section(num_steps=40, guidance=1.0, spacing="uniform")
    model, image = Model(), np.random.default_rng(0).uniform(-1, 1, (2, *SHAPE)).astype(np.float32)
    plan, numbers = sampling.Plan.of(model, config), sampling.Numbers.of(config)
    context = model.encode({}, {}, {"label": np.array([0, 1], np.int32)})
    frozen, keys = {"space": {}}, jax.vmap(jax.random.key)(np.arange(2))
    trajectory = jax.jit(partial(sampling.invert, model, plan=plan))({}, frozen, context, numbers, image)
    assert trajectory.shape == (41, 2, *SHAPE)
    chart = sampling.guided_chart(model, {}, frozen, context, plan, numbers)
    back = jax.jit(lambda x: sampling.run(chart, model.schedule, keys, x, plan, numbers))(trajectory[-1])
    assert np.abs(trajectory[-1] - image).mean() > 0.1
    np.testing.assert_allclose(back, model.denoise({}, trajectory[0], 1, context), atol=0.05)
