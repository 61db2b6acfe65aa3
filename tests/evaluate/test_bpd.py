"""Bits per dimension where the likelihood is known: never below it, tight where due, free of units."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_toy import functions, negative_log_density, toy

from contextdiff_jax import losses
from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate.bpd import _to_unit_scale, bits_per_dim, first, join
from contextdiff_jax.process import schedule

BITS = 1 / np.log(2.0)


def gaussian_data(model, *shape, seed=0):
    return model.m + np.sqrt(model.v) * np.random.default_rng(seed).normal(size=shape)


def paired(bound, exact):
    """Mean excess of the bound over the exact value, per image and in its unit, and its standard error."""
    gap = np.asarray(bound.per_image) - exact
    return gap.mean(), gap.std(ddof=1) / np.sqrt(len(gap))


_LONG = [pytest.param(build, 1000, marks=pytest.mark.slow) for build in (schedule.cosine, schedule.scaled_linear)]


@pytest.mark.parametrize("build, num_timesteps", [(schedule.cosine, 400), *_LONG])
def test_tight_without_adapter_and_with_the_optimal_denoiser_in_many_steps(x64, build, num_timesteps):
    s = build(num_timesteps)
    model = toy(s).with_optimal_denoiser()
    x0 = gaussian_data(model, 4096, 32)
    bound = bits_per_dim(functions(model)[0], None, s, x0, jax.random.key(0), bins=None)
    exact = negative_log_density(x0, model.m, model.v).mean(1) * BITS
    gap, stderr = paired(bound, exact)
    assert -4 * stderr < gap < 0.01 * BITS and stderr < 0.005, (gap, stderr)


def test_the_posterior_variance_is_a_bound_too_but_not_a_tight_one(x64):
    """What the docstring says of it; the optimal denoiser changes nothing about this."""
    s = schedule.cosine(1000)
    model = toy(s).with_optimal_denoiser()
    x0 = gaussian_data(model, 256, 32)
    bound = bits_per_dim(functions(model)[0], None, s, x0, jax.random.key(0), bins=None, variance="posterior")
    gap, _ = paired(bound, negative_log_density(x0, model.m, model.v).mean(1) * BITS)
    assert 0.3 * BITS < gap < 0.5 * BITS, gap


def mixture(s, b):
    """Data from three narrow bumps, and E[x0 | x_t] of the contextual process by quadrature over x0."""
    means, sd = jnp.array([-0.6, 0.1, 0.7]), 0.12
    grid = jnp.linspace(-1.4, 1.4, 401)
    log_density = lambda x: jax.nn.logsumexp(
        losses.log_density(x[..., None], means, sd), axis=-1, b=jnp.full((3,), 1 / 3)
    )

    def f(x, t):
        ab = schedule.gather(s.alpha_bar, t, x)[..., None]
        shift = jax.vmap(lambda t: b(grid[:, None], t)[:, 0])(t) if b else jnp.zeros((1, 1))
        mean = jnp.sqrt(ab) * grid + shift[:, None, :]
        weights = jax.nn.softmax(log_density(grid) - (x[..., None] - mean) ** 2 / (2 * (1 - ab)), axis=-1)
        return (weights * grid).sum(-1)

    r = np.random.default_rng(0)
    x0 = np.asarray(means)[r.integers(0, 3, (2000, 1))] + sd * r.normal(size=(2000, 1))
    return f, x0, -np.asarray(log_density(x0))[:, 0] * BITS


def random_smooth_adapter(s, seed, size=1.0):
    phase, frequency = np.random.default_rng(seed).uniform(0.5, 4, size=2)
    return lambda x0, t: schedule.gather(s.k, t, x0) * size * jnp.sin(frequency * x0 + phase)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("counted", ["optimal denoiser", "denoiser of plain diffusion"])
def test_above_the_exact_value_of_a_mixture_with_any_adapter(seed, counted):
    s = schedule.cosine(60)
    b = random_smooth_adapter(s, seed, size=1.0 + seed)
    f, x0, exact = mixture(s, b if counted == "optimal denoiser" else None)
    gap, stderr = paired(bits_per_dim(f, b, s, x0, jax.random.key(seed), bins=None), exact)
    assert gap > -3 * stderr, (gap, stderr)
    if counted != "optimal denoiser":
        assert gap > 0.1  # a shift that the denoiser does not know of costs


@pytest.mark.parametrize("dequantize", [False, True])
def test_uniform_8_bit_noise_under_an_uninformative_model_has_8_bits(dequantize):
    """The model knows only that pixels lie in [-1, 1]: x0_hat is the mean of a truncated normal."""
    s = schedule.cosine(1000)
    levels = np.random.default_rng(0).integers(0, 256, size=(64, 8, 8, 3))

    def f(x, t):
        ab = schedule.gather(s.alpha_bar, t, x)
        center, width = x / jnp.sqrt(ab), jnp.sqrt((1 - ab) / ab)
        a, b = (-1 - center) / width, (1 - center) / width
        # Mirrored into the lower tail, where the normal distribution keeps its precision.
        sign = jnp.where(a + b > 0, -1.0, 1.0)
        a, b = jnp.where(sign > 0, a, -b), jnp.where(sign > 0, b, -a)
        log_cdf, log_pdf = jax.scipy.special.log_ndtr, jax.scipy.stats.norm.logpdf
        log_mass = log_cdf(b) + jnp.log(-jnp.expm1(jnp.minimum(log_cdf(a) - log_cdf(b), -1e-7)))
        offset = jnp.exp(log_pdf(a) - log_mass) - jnp.exp(log_pdf(b) - log_mass)
        x0_hat = jnp.clip(center + sign * width * offset, -1, 1)
        return jnp.where(width > 20.0, jnp.clip(center / (3 * width**2), -1, 1), x0_hat)

    x0 = levels * (2 / 255) - 1
    bound = bits_per_dim(f, None, s, x0.astype(np.float32), jax.random.key(0), dequantize=dequantize)
    assert 8.0 - 3 * bound.stderr < bound.mean < 8.05, bound
    assert bound.stderr < 0.015


def test_no_convention_of_pixels_changes_a_bit():
    levels = np.random.default_rng(0).permutation(256).reshape(4, 8, 8, 1)
    expected = _to_unit_scale(levels.astype(np.uint8), 256, (-1.0, 1.0))
    np.testing.assert_allclose(expected, levels / 127.5 - 1, atol=1e-6)
    zero_to_one = np.float32(levels) / np.float32(255)
    for convention, data_range in [
        (levels, (-1.0, 1.0)),
        (levels * (2 / 255) - 1, (-1.0, 1.0)),
        (np.float32(levels) / np.float32(127.5) - 1, (-1.0, 1.0)),
        (levels / 255, (0.0, 1.0)),
        (zero_to_one, (0.0, 1.0)),
        (levels.astype(np.float32), (0.0, 255.0)),
    ]:
        np.testing.assert_array_equal(_to_unit_scale(convention, 256, data_range), expected)
    f, s = lambda x, t: jnp.tanh(x), schedule.cosine(5)
    measure = lambda x, **options: bits_per_dim(f, None, s, x, jax.random.key(0), num_t=1, **options).per_image
    np.testing.assert_array_equal(
        measure(zero_to_one, data_range=(0.0, 1.0)), measure(levels.astype(np.uint8))
    )


def test_bits_are_nats_over_dimensions_and_the_terms_add_up(x64):
    s = schedule.cosine(12)
    b = random_smooth_adapter(s, 0)
    x0 = np.linspace(-1, 1, 256)[np.random.default_rng(0).integers(0, 256, (5, 2, 3, 4))]
    f = lambda x, t: 0.2 * jnp.ones_like(x)  # without x_t in it the bound has no noise
    bound = bits_per_dim(f, b, s, x0, jax.random.key(0))
    shifts = lambda x, t: (b(x, t), b(x, t - 1))
    x0_hat = np.full_like(x0, 0.2)
    total = losses.prior_term(s, x0, b) - losses.log_mass(x0, 0.2, np.sqrt(1 - s.alpha_bar[1]), 256).sum(
        (1, 2, 3)
    )
    for t in range(2, 13):
        total += losses.posterior(s, x0, x0_hat, t, *shifts(x0, t), *shifts(x0_hat, t), variance="beta")
    np.testing.assert_allclose(bound.per_image, total / 24 * BITS, rtol=1e-10)
    np.testing.assert_allclose(bound.mean, bound.per_image.mean(), rtol=1e-12)
    np.testing.assert_allclose(bound.stderr, np.std(bound.per_image, ddof=1) / np.sqrt(5), rtol=1e-12)
    np.testing.assert_allclose(bound.prior + bound.reconstruction + bound.diffusion, bound.mean, rtol=1e-12)


def test_drawn_times_estimate_the_sum_over_all(x64):
    s = schedule.cosine(40)
    x0 = np.repeat(np.random.default_rng(0).uniform(-1, 1, (1, 6)), 400, axis=0)
    f = lambda x, t: 0.2 * jnp.ones_like(x)
    exact = bits_per_dim(f, None, s, x0, jax.random.key(0), bins=None)
    estimates = [bits_per_dim(f, None, s, x0, jax.random.key(i), bins=None, num_t=4) for i in range(3)]
    for estimate in estimates:
        np.testing.assert_allclose(estimate.diffusion, exact.diffusion, rtol=0.02)
        np.testing.assert_allclose(estimate.reconstruction, exact.reconstruction, rtol=1e-10)


def test_low_discrepancy_times_are_uniform_and_stratified():
    times = np.asarray(losses.low_discrepancy(jax.random.key(0), 41, 5, 1000))
    chex.assert_shape(times, (5, 1000))
    np.testing.assert_array_equal(np.bincount(times.ravel(), minlength=42)[2:], 125)
    for row in range(5):
        assert times[row].min() >= 2 + 8 * row and times[row].max() <= 9 + 8 * row
    single = np.asarray(losses.low_discrepancy(jax.random.key(0), 2, 3, 2))
    assert np.all(single == 2)


def test_one_step_process_jit_and_joining_batches():
    x0 = np.random.default_rng(0).uniform(-1, 1, (6, 4)).astype(np.float32)
    f = lambda x, t: jnp.tanh(x)
    assert bits_per_dim(f, None, schedule.cosine(1), x0, jax.random.key(0)).diffusion == 0.0
    s = schedule.cosine(20)
    run = jax.jit(lambda x0, key: bits_per_dim(f, None, s, x0, key))
    parts = [run(x0[i : i + 3], jax.random.key(i)) for i in (0, 3)]
    whole = join(parts)
    alone = first(parts[0], 2)
    assert alone.mean == pytest.approx(float(parts[0].per_image[:2].mean())) and alone.terms is None
    assert alone.prior + alone.reconstruction + alone.diffusion == pytest.approx(float(alone.mean), rel=1e-5)
    np.testing.assert_allclose(whole.per_image, np.concatenate([p.per_image for p in parts]))
    np.testing.assert_allclose(whole.mean, np.mean([p.mean for p in parts]), rtol=1e-6)
    np.testing.assert_allclose(whole.prior + whole.reconstruction + whole.diffusion, whole.mean, rtol=1e-6)
    chex.assert_tree_all_finite(bits_per_dim(f, None, schedule.zero_terminal_snr(s), x0, jax.random.key(0)))
    assert np.isnan(bits_per_dim(f, None, s, x0[:1], jax.random.key(0)).stderr)


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(num_t=0), "num_t=0"),
        (dict(num_t=1.5), "num_t=1.5"),
        (dict(bins=1), "bins=1"),
        (dict(bins=None, dequantize=True), "dequantize"),
        (dict(data_range=(1, 0)), "data_range"),
        (dict(variance="learned"), "posterior, beta"),
        (dict(x0=np.zeros((0, 3))), "at least one image"),
        (dict(x0=np.full((2, 3), 255.0)), "leaves data_range"),
        (dict(x0=np.zeros((2, 3), np.uint8), bins=None), "levels"),
    ],
)
def test_bad_arguments_are_user_errors(options, words):
    x0 = options.pop("x0", np.zeros((2, 3)))
    with pytest.raises(UserError, match=words):
        bits_per_dim(lambda x, t: x, None, schedule.cosine(5), x0, jax.random.key(0), **options)
