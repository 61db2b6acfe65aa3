"""Every sampler in both charts: against plain loops, oracles and the exact probability flow."""

from dataclasses import replace

import chex
import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from gaussian_toy import functions, toy

from contextdiff_jax import samplers
from contextdiff_jax.errors import UserError
from contextdiff_jax.process import chart, forward, schedule

ALL = ("ddpm", "ddim", "heun", "dpmpp_2m")
SPACINGS = samplers.SPACINGS
KEY = jax.random.key(7)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def smooth_shift(s, size=0.8):
    """A nonlinear adapter on data of any rank."""
    return lambda x0, t: schedule.gather(s.k, t, x0) * size * jnp.sin(2.0 * x0 + 0.3)


def recording(f, seen):
    """f, noting what it is shown; under disable_jit these are numbers."""

    def wrapped(x, t):
        seen.append((np.asarray(x), int(np.ravel(t)[0])))
        return f(x, t)

    return wrapped


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", ALL)
def test_with_an_oracle_both_charts_walk_the_same_y(x64, name, spacing):
    s = schedule.cosine(23)
    x0, b = noise(3, 2), smooth_shift(s)
    start = samplers.timesteps(23, 6, spacing)[0]
    y_T = noise(3, 2, seed=1)
    plain, contextual = [], []
    with jax.disable_jit():
        out = samplers.get(name)(
            chart.plain(recording(lambda x, t: x0, plain)), s, KEY, y_T, 6, spacing=spacing
        )
        x_T = y_T + b(x0, start)
        c = chart.contextual(recording(lambda x, t: x0, contextual), b)
        out_c = samplers.get(name)(c, s, KEY, x_T, 6, spacing=spacing)
    assert [t for _, t in plain] == [t for _, t in contextual] and len(plain) >= 6
    for (y, t), (x, _) in zip(plain, contextual, strict=True):
        np.testing.assert_allclose(x - b(x0, t), y, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(out, x0, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(out_c, x0, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ALL)
def test_without_a_shift_the_contextual_chart_is_the_plain_one(name):
    s = schedule.cosine(23)
    f, x_T = lambda x, t: jnp.tanh(x), noise(3, 4, 4, 2).astype(np.float32)
    zero = chart.contextual(f, lambda x0, t: jnp.zeros_like(x0))
    args = (s, KEY, x_T, 7)
    chex.assert_trees_all_equal(samplers.get(name)(zero, *args), samplers.get(name)(chart.plain(f), *args))


def reference(s, f, b, x, grid, eta, key):
    """Eq. 18 with x0_hat for x0, as the paper writes it: a plain loop, one formula."""
    ab = np.asarray(s.alpha_bar)
    for t, s_index, key_z in zip(grid[:-1], grid[1:], jax.random.split(key, len(grid) - 1), strict=True):
        x0_hat = f(x, t)
        sigma = eta * np.sqrt((1 - ab[s_index]) / (1 - ab[t]) * (1 - ab[t] / ab[s_index]))
        eps_hat = (x - b(x0_hat, t) - np.sqrt(ab[t]) * x0_hat) / np.sqrt(1 - ab[t])
        x = (
            np.sqrt(ab[s_index]) * x0_hat
            + np.sqrt(max(1 - ab[s_index] - sigma**2, 0)) * eps_hat
            + b(x0_hat, s_index)
        )
        x = x + sigma * jax.random.normal(key_z, x.shape)
    return x


@pytest.mark.parametrize(
    "eta, num_steps, spacing",
    [
        (0.0, 1, "uniform"),
        (0.0, 10, "trailing"),
        (0.5, 10, "uniform"),
        (0.7, 2, "leading"),
        (1.0, 23, "uniform"),
    ],
)
def test_ddim_is_the_paper_s_loop(x64, eta, num_steps, spacing):
    s = schedule.cosine(23)
    f, b, x_T = lambda x, t: jnp.tanh(x), smooth_shift(s), noise(3, 2)
    grid = samplers.timesteps(23, num_steps, spacing)
    for shift, c in [(b, chart.contextual(f, b)), (lambda x0, t: 0.0, chart.plain(f))]:
        got = samplers.ddim(c, s, KEY, x_T, num_steps, eta=eta, spacing=spacing)
        np.testing.assert_allclose(got, reference(s, f, shift, x_T, grid, eta, KEY), rtol=1e-10, atol=1e-10)
        if eta == 1.0:
            ancestral = samplers.ddpm(c, s, KEY, x_T, num_steps, spacing=spacing)
            np.testing.assert_allclose(ancestral, got, rtol=1e-10, atol=1e-10)


def test_ddpm_over_all_steps_is_eq_7(x64):
    s = schedule.linear(15, 1e-3, 0.4)
    f, b, x_T = lambda x, t: jnp.tanh(x), smooth_shift(s), noise(3, 2)
    x = x_T
    for t, key in zip(range(15, 0, -1), jax.random.split(KEY, 15), strict=True):
        x0_hat = f(x, t)
        x = forward.posterior(s, x, x0_hat, b(x0_hat, t), b(x0_hat, t - 1), t).sample(key)
    got = samplers.ddpm(chart.contextual(f, b), s, KEY, x_T, 15)
    np.testing.assert_allclose(got, x, rtol=1e-10, atol=1e-10)


def test_ddpm_with_the_optimal_denoiser_draws_the_data(x64):
    """The reverse kernels of the toy, composed by hand, and 20,000 draws."""
    s = schedule.cosine(100)
    for slope in (0.0, 1.5):
        model = toy(s, a=slope, d=0.2).with_optimal_denoiser()
        f, b = functions(model)
        x0 = samplers.ddpm(chart.contextual(f, b), s, KEY, noise(20_000, 1), 100)
        mean, var = model.model_distribution()
        np.testing.assert_allclose(x0.mean(), mean, atol=5 * np.sqrt(var / 20_000))
        noiseless_end = var - (1 - s.alpha_bar[1])
        np.testing.assert_allclose(x0.var(), noiseless_end, rtol=0.05)
        np.testing.assert_allclose((mean, var), (model.m, model.v), rtol=0.1)


def gaussian_flow(s, m, v, x_T):
    """x0_hat = E[x0 | y_t] for data N(m, v), and where the exact flow takes y_T: its quantile at t = 0."""
    spread = lambda t: jnp.sqrt(s.alpha_bar[t] * v + 1 - s.alpha_bar[t])

    def f(x, t):
        ab = schedule.gather(s.alpha_bar, t, x)
        return m + jnp.sqrt(ab) * v / (ab * v + 1 - ab) * (x - jnp.sqrt(ab) * m)

    T = s.num_timesteps
    return f, m + np.sqrt(v) * (x_T - jnp.sqrt(s.alpha_bar[T]) * m) / spread(T)


def log_linear(T):
    """The logarithm of the SNR falls evenly, so that higher-order methods find all steps equally long."""
    log_snr = np.linspace(-5, 5, T)[::-1]
    alpha_bar = jnp.asarray(np.concatenate([[1.0], 1 / (1 + np.exp(-log_snr))]))
    return schedule.Schedule(alpha_bar, jnp.sqrt(alpha_bar) * (1 - jnp.sqrt(alpha_bar)))


@pytest.mark.parametrize("name, order", [("ddim", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_order_of_convergence_to_the_exact_flow(x64, name, order):
    T, s = 640, log_linear(640)
    x_T = noise(50, 1)
    f, _ = gaussian_flow(s, 0.3, 0.2, x_T)
    sample = lambda n: samplers.get(name)(chart.plain(f), s, KEY, x_T, n, spacing="uniform")
    fine = samplers.heun(chart.plain(f), s, KEY, x_T, T)
    errors = [float(jnp.abs(sample(n) - fine).mean()) for n in (14, 28, 56)]
    rates = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.all(rates > order - 0.3), (errors, rates)


@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp_2m"])
def test_deterministic_samplers_end_at_the_exact_quantile(x64, name):
    for s in (schedule.cosine(1000), schedule.zero_terminal_snr(schedule.linear(1000))):
        x_T = noise(50, 1)
        f, exact = gaussian_flow(s, 0.3, 0.2, x_T)
        error = jnp.abs(samplers.get(name)(chart.plain(f), s, KEY, x_T, 250) - exact).mean()
        assert error < 6e-3, error


@pytest.mark.parametrize("name", ["heun", "dpmpp_2m"])
def test_higher_order_survives_the_shift(x64, name):
    """The better x0_hat must enter the shifts too; otherwise the adapter brings first-order errors back."""
    T, s = 640, log_linear(640)
    c = chart.contextual(lambda x, t: 0.8 * jnp.tanh(x), smooth_shift(s))
    sample = lambda n: samplers.get(name)(c, s, KEY, noise(50, 1), n)
    fine = sample(T)
    errors = [float(jnp.abs(sample(n) - fine).mean()) for n in (20, 40, 80)]
    rates = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.all(rates > 1.6), (errors, rates)


@pytest.mark.parametrize("num_steps", [1, 5, 23])
def test_with_a_constant_noise_prediction_inversion_is_exact(x64, num_steps):
    s = schedule.cosine(23)
    eps, x0 = noise(3, 2), noise(3, 2, seed=1)

    def f(x, t):
        ab = schedule.gather(s.alpha_bar, t, x)
        return (x - jnp.sqrt(1 - ab) * eps) / jnp.sqrt(ab)

    trajectory = samplers.ddim_invert(chart.plain(f), s, x0, num_steps)
    chex.assert_shape(trajectory, (num_steps + 1, 3, 2))
    grid = samplers.timesteps(23, num_steps)[::-1]
    for x, t in zip(trajectory, grid, strict=True):
        np.testing.assert_allclose(
            x, np.sqrt(s.alpha_bar[t]) * x0 + np.sqrt(1 - s.alpha_bar[t]) * eps, rtol=1e-10
        )
    back = samplers.ddim(chart.plain(f), s, KEY, trajectory[-1], num_steps)
    np.testing.assert_allclose(back, x0, rtol=1e-8)


@pytest.mark.parametrize("spacing", ["uniform", "trailing"])
@pytest.mark.parametrize("with_shift", [False, True])
def test_invert_then_sample_comes_back(x64, with_shift, spacing):
    s = schedule.scaled_linear(400)
    x0 = 0.5 * noise(20, 2, seed=1)
    f, _ = gaussian_flow(s, 0.1, 0.3, x0)
    c = chart.contextual(f, smooth_shift(s, 0.3)) if with_shift else chart.plain(f)

    def error(num_steps):
        x_T = samplers.ddim_invert(c, s, x0, num_steps, spacing=spacing)[-1]
        return float(jnp.abs(samplers.ddim(c, s, KEY, x_T, num_steps, spacing=spacing) - x0).mean())

    coarse, fine = error(25), error(400)
    assert fine < 0.02 and fine < coarse / 3, (coarse, fine)


def test_inversion_is_diffusers_inverse_step(x64):
    betas = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    theirs = diffusers.DDIMInverseScheduler(
        **betas, clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing"
    )
    theirs.set_timesteps(20)
    s = schedule.scaled_linear(1000)
    x0 = noise(2, 3)
    # Their times are the targets; the sample is one stride below, with alpha_bar = 1 below the first.
    x, ours_seen = torch.tensor(x0), []
    eps = lambda x: np.tanh(np.asarray(x)) + 0.2
    for t in theirs.timesteps:
        x = theirs.step(torch.tensor(eps(x)), t, x).prev_sample

    def f(x, t):
        ab = schedule.gather(s.alpha_bar, t, x)
        ours_seen.append(t)
        return (x - jnp.sqrt(1 - ab) * (jnp.tanh(x) + 0.2)) / jnp.sqrt(ab)

    got = samplers.ddim_invert(chart.plain(f), s, x0, 20, spacing="trailing")[-1]
    assert [int(t) + 1 for t in theirs.timesteps] == list(samplers.timesteps(1000, 20, "trailing")[::-1][1:])
    np.testing.assert_allclose(got, x, rtol=1e-4, atol=1e-4)  # their tables are float32


@pytest.mark.parametrize("name", (*ALL, "ddim_invert"))
@pytest.mark.parametrize(
    "T, num_steps, spacing",
    [(1, 1, "uniform"), (3, 2, "leading"), (33, 33, "uniform"), (1000, 9, "trailing")],
)
def test_float32_is_finite_for_every_schedule(name, T, num_steps, spacing):
    x = noise(2, 3).astype(np.float32)
    for s in (schedule.cosine(T), schedule.zero_terminal_snr(schedule.scaled_linear(T))):
        c = chart.contextual(lambda x, t: jnp.tanh(x), smooth_shift(s))
        if name == "ddim_invert":
            out = samplers.ddim_invert(c, s, x, num_steps, spacing=spacing)
        else:
            out = samplers.get(name)(c, s, KEY, x, num_steps, spacing=spacing)
        chex.assert_type(out, jnp.float32)
        chex.assert_tree_all_finite(out)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shape", [(3, 2), (3, 4, 4, 2), (3, 2, 4, 4, 2)])
def test_every_rank_numpy_input_and_a_half_precision_network(name, shape):
    s = schedule.cosine(9)

    def f(x, t):
        assert t.shape == shape[:1] and jnp.issubdtype(t.dtype, jnp.integer)
        return jnp.tanh(x).astype(jnp.bfloat16)

    out = samplers.get(name)(chart.contextual(f, smooth_shift(s)), s, KEY, noise(*shape), 4)
    chex.assert_shape(out, shape)
    chex.assert_type(out, jnp.float32)
    chex.assert_tree_all_finite(out)


@pytest.mark.parametrize("name", ALL)
def test_the_network_is_traced_once_whatever_the_number_of_steps(name):
    s, traces = schedule.cosine(100), []

    def f(x, t):
        traces.append(1)
        return jnp.tanh(x)

    counts = []
    for num_steps in (3, 90):
        traces.clear()
        run = jax.jit(lambda s, key, x, n=num_steps: samplers.get(name)(chart.plain(f), s, key, x, n))
        for seed in range(3):
            run(s, jax.random.key(seed), noise(2, 3, seed=seed).astype(np.float32))
        counts.append(len(traces))
    assert counts[0] == counts[1] <= 2 * (2 if name == "heun" else 1)


def test_the_key_matters_only_where_noise_is():
    s, x_T = schedule.cosine(20), noise(2, 3).astype(np.float32)
    c = chart.plain(lambda x, t: jnp.tanh(x))
    for name in ALL:
        first, second = (samplers.get(name)(c, s, jax.random.key(i), x_T, 5) for i in (0, 1))
        assert bool((first == second).all()) == (name != "ddpm")


def test_bad_arguments_are_user_errors_before_any_network_call():
    s, x = schedule.cosine(10), jnp.ones((2, 3))

    def never(x, t):
        raise AssertionError("the network was called")

    c = chart.plain(never)
    for call, words in [
        (lambda: samplers.ddim(c, s, KEY, x, 11), "num_steps=11"),
        (lambda: samplers.heun(c, s, KEY, x, 0), "num_steps=0"),
        (lambda: samplers.ddim(c, s, KEY, x, 5, eta=-1.0), "eta=-1.0"),
        (lambda: samplers.dpmpp_2m(c, s, KEY, x, 5, spacing="karras"), "karras"),
        (lambda: samplers.ddim_invert(c, s, x, 11), "num_steps=11"),
        (lambda: samplers.ddpm(c, s, KEY, x, 1.5), "num_steps=1.5"),
    ]:
        with pytest.raises(UserError, match=words):
            call()


@pytest.mark.parametrize("last_noise", [False, True])
@pytest.mark.parametrize("variance", [np.array([0.0, 0.04, 0.2, 0.5, 1.3]), "beta"], ids=["table", "beta"])
def test_ddpm_with_a_variance_samples_the_model_of_the_bound(x64, variance, last_noise):
    """Linear-Gaussian f and b: the sample's mean and variance follow from the reverse kernels of that variance."""
    s = schedule.cosine(4)
    model = toy(s, a=0.6, d=0.2).with_optimal_denoiser()
    model = replace(model, variance=variance)
    f, b = functions(model)
    how = dict(spacing="trailing", variance=variance, last_noise=last_noise)
    x = samplers.ddpm(chart.contextual(f, b), s, KEY, noise(200_000, 1), 4, **how)
    mean, var = model.model_distribution()
    np.testing.assert_allclose(x.mean(), mean, atol=0.01)
    decoder = model.reverse_step(1)[2]
    np.testing.assert_allclose(x.var(), var - (0.0 if last_noise else decoder), rtol=0.02)
    with pytest.raises(UserError, match="all T=4"):
        samplers.ddpm(chart.plain(f), s, KEY, noise(2, 1), 2, variance=variance)
