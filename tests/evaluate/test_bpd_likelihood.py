"""The bound against known likelihoods without Monte Carlo: closed forms, and quadrature over x0 and x_t."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_toy import functions, negative_log_density, toy

from contextdiff_jax import losses
from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate.bpd import bits_per_dim, difference, join
from contextdiff_jax.process import schedule

BITS = 1 / np.log(2.0)
MEANS, SDS, SHARES = np.array([-0.6, 0.1, 0.7]), np.array([0.12, 0.2, 0.15]), np.array([0.3, 0.5, 0.2])


def linear_terms(model, x0):
    """Prior, reconstruction and diffusion of the linear toy in nats [N], each by hand.

    With r = a_t x0 + d_t the d_t leave every mismatch, which is then G_t (x0_hat - x0); and x0_hat - x0, for an x0_hat
    = u_t x_t + w_t, is normal.
    """
    ab, k, T = model.ab, model.k, model.T
    prior_mean = np.sqrt(ab[T]) * x0 + model.b(x0, T)
    prior = 0.5 * (prior_mean**2 - ab[T] - np.log1p(-ab[T]))
    reconstruction, diffusion = None, np.zeros_like(x0)
    for t in range(1, T + 1):
        error_mean = model.u[t] * (model.gain[t] * x0 + k[t] * model.d[t]) + model.w[t] - x0
        error_sq = error_mean**2 + model.u[t] ** 2 * (1 - ab[t])
        beta = 1 - ab[t] / ab[t - 1]
        if t == 1:
            reconstruction = 0.5 * (error_sq / beta + np.log(2 * np.pi * beta))
            continue
        A = np.sqrt(ab[t - 1]) * beta / (1 - ab[t])
        B = np.sqrt(ab[t] / ab[t - 1]) * (1 - ab[t - 1]) / (1 - ab[t])
        G = A - B * k[t] * model.a[t] + k[t - 1] * model.a[t - 1]
        q_var = beta * (1 - ab[t - 1]) / (1 - ab[t])
        p_var = beta if model.variance == "beta" else q_var
        diffusion += 0.5 * ((G**2 * error_sq + q_var) / p_var - 1 - np.log(q_var / p_var))
    return prior, reconstruction, diffusion


@pytest.mark.parametrize("variance", losses.VARIANCES)
def test_with_a_linear_adapter_every_term_is_its_closed_form(x64, variance):
    """Adapter and denoiser are any linear ones. Where x0_hat ignores x_t nothing is random: then exactly."""
    s, count = schedule.cosine(25), 2000

    @jax.jit
    def measure(a, d, u, w, x0, key):
        f, b = functions(replace(toy(s, a=a, d=d), u=u, w=w))
        return bits_per_dim(f, b, s, jnp.repeat(x0, count)[:, None], key, bins=None, variance=variance)

    for seed in range(4):
        r = np.random.default_rng(seed)
        a, d, u, w = r.normal(size=(4, 26)) * [[2.0], [1.0], [0.3], [1.0]]
        x0 = r.normal(size=4)
        model = replace(toy(s, a=a, d=d), u=0.4 + u, w=w, variance=variance)
        terms = linear_terms(model, x0)
        np.testing.assert_allclose(sum(terms), model.bound(x0), rtol=1e-10)
        bound = measure(model.a, model.d, model.u, model.w, x0, jax.random.key(seed))
        stderr = np.sqrt((np.asarray(bound.per_image).reshape(4, count).var(1) / count).mean() / 4)
        prior, reconstruction, diffusion = (term.mean() * BITS for term in terms)
        np.testing.assert_allclose(bound.prior, prior, rtol=1e-10)
        assert abs(bound.reconstruction - reconstruction) < 5 * stderr
        assert abs(bound.diffusion - diffusion) < 5 * stderr

        certain = replace(model, u=np.zeros(26))
        terms = linear_terms(certain, x0)
        bound = measure(certain.a, certain.d, certain.u, certain.w, x0, jax.random.key(seed))
        np.testing.assert_allclose(bound.per_image[::count], sum(terms) * BITS, rtol=1e-10)
        for got, expected in zip((bound.prior, bound.reconstruction, bound.diffusion), terms, strict=True):
            np.testing.assert_allclose(got, expected.mean() * BITS, rtol=1e-10)


def mixture_log_density(x):
    return jax.nn.logsumexp(losses.log_density(x[..., None], MEANS, SDS), axis=-1, b=SHARES)


def mixture_denoiser(s):
    """E[x0 | x_t] of plain diffusion, elementwise."""

    def f(x, t):
        ab = schedule.gather(s.alpha_bar, t, x)[..., None]
        var, off = ab * SDS**2 + 1 - ab, x[..., None] - jnp.sqrt(ab) * MEANS
        weights = jax.nn.softmax(jnp.log(SHARES) - 0.5 * jnp.log(var) - off**2 / (2 * var), axis=-1)
        return (weights * (MEANS + jnp.sqrt(ab) * SDS**2 / var * off)).sum(-1)

    return f


def data_nodes(num):
    """Quadrature over the mixture's x0: points [N], weights [N] that add up to 1."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(num)
    return (MEANS[:, None] + SDS[:, None] * nodes).ravel(), np.outer(SHARES, weights / weights.sum()).ravel()


def expected_bound(s, f, b, num_x0=24, num_z=24, variance="beta"):
    """E of the bound over one-dimensional mixture data and all noise, in nats; the terms are the library's."""
    x0, weights = data_nodes(num_x0)
    z, z_weights = np.polynomial.hermite_e.hermegauss(num_z)
    both = (weights[:, None] * z_weights / z_weights.sum()).ravel()
    start, noise = jnp.asarray(np.repeat(x0, num_z))[:, None], jnp.asarray(np.tile(z, len(x0)))[:, None]
    shift = b or (lambda x0, t: jnp.zeros_like(x0))

    def term(t):
        t = jnp.full(start.shape[:1], t)
        ab = schedule.gather(s.alpha_bar, t, start)
        x0_hat = f(jnp.sqrt(ab) * start + shift(start, t) + jnp.sqrt(1 - ab) * noise, t)
        shifts = (shift(x, i) for x in (start, x0_hat) for i in (t, t - 1))
        kl = losses.posterior(s, start, x0_hat, t, *shifts, variance=variance)
        decoder = -losses.log_density(start, x0_hat, jnp.sqrt(1 - s.alpha_bar[1]))[:, 0]
        return both @ jnp.where(t > 1, kl, decoder)

    total = jax.lax.map(term, jnp.arange(1, s.num_timesteps + 1)).sum()
    return total + weights @ losses.prior_term(s, jnp.asarray(x0)[:, None], b)


def exact_entropy():
    x0, weights = data_nodes(200)
    return float(-weights @ mixture_log_density(x0))


@pytest.mark.parametrize("build", [schedule.cosine, schedule.scaled_linear])
def test_the_mixture_too_is_tight_at_T_1000(x64, build):
    s = build(1000)
    gap = jax.jit(lambda: expected_bound(s, mixture_denoiser(s), None))() - exact_entropy()
    assert 0 < gap < 0.01, gap


def network(weights, x, t):
    """A smooth function of x [B, D] and t [B], random with its weights [2, D, 16] and [2, 16]."""
    (w_in, w_out), (phase, speed) = weights
    return jnp.tanh(x @ w_in + phase + speed * t[:, None] / 30) @ w_out.T


def random_weights(seed, dim):
    r = np.random.default_rng(seed)
    return r.normal(size=(2, dim, 16)) * [[[2.0]], [[0.5]]], r.uniform(-3, 3, size=(2, 16))


def as_shift(s, r):
    return lambda x0, t: schedule.gather(s.k, t, x0) * r(x0, t)


def test_no_random_adapter_takes_the_bound_below_the_exact_value(x64):
    """By quadrature, so for certain; under the plain process's denoiser, that one disturbed, and a random one."""
    s, exact = schedule.scaled_linear(30, 1e-3, 0.4), exact_entropy()
    plain = mixture_denoiser(s)

    @jax.jit
    def gap(adapter, size, denoiser, share, disturbance):
        f = lambda x, t: share * plain(x, t) + disturbance * network(denoiser, x, t)
        return expected_bound(s, f, as_shift(s, lambda x0, t: size * network(adapter, x0, t))) - exact

    without = gap(random_weights(0, 1), 0.0, random_weights(1, 1), 1.0, 0.0)
    assert 0 < without < 0.5
    for seed in range(4):
        weights = random_weights(seed, 1), random_weights(seed + 100, 1)
        for size in (0.1, 1.0, 10.0, 300.0):
            for share, disturbance in [(1.0, 0.0), (1.0, 0.1), (0.0, 1.0)]:
                assert gap(weights[0], size, weights[1], share, disturbance) > without, (seed, size, share)


def test_an_inflated_adapter_pays_for_what_it_saves(x64):
    """Data that an adapter of size 300 spells out in x_t: Eq. 6 all but vanishes, the bound does not fall for it."""
    s = schedule.scaled_linear(1000)
    plain, inflated = (toy(s, a=a, d=0.0).with_optimal_denoiser() for a in (0.0, 300.0))
    assert inflated.optimal_loss()[1:].mean() < 0.01 * plain.optimal_loss()[1:].mean()
    x0 = plain.m + np.sqrt(plain.v) * np.random.default_rng(0).normal(size=(256, 1))
    exact = negative_log_density(x0, plain.m, plain.v).mean(1) * BITS
    measure = lambda model: bits_per_dim(
        functions(model)[0], functions(model)[1], s, x0, jax.random.key(0), bins=None, num_t=50
    )
    bounds = measure(plain), measure(inflated)
    gap = np.asarray(bounds[1].per_image) - exact
    assert gap.mean() > 5 * gap.std() / 16 and gap.mean() > 50
    mean, stderr = difference(*bounds[::-1])
    assert mean > 5 * stderr > 0
    assert bounds[1].prior > 50  # k_T = 0.064, and the prior counts


@pytest.mark.parametrize("dequantize", [False, True])
def test_random_adapters_over_two_dimensions_of_known_levels(x64, dequantize):
    """Pairs of 4 levels with a known joint distribution: the bound lies above its entropy, by either road to bins."""
    s, r = schedule.scaled_linear(40, 1e-3, 0.3), np.random.default_rng(0)
    table = r.dirichlet(np.ones(16))
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 4)] * 2, indexing="ij"), axis=-1).reshape(16, 2)
    drawn = r.choice(16, size=4000, p=table)
    exact = -np.log(table[drawn]) / 2 * BITS

    def f(x, t):
        ab = schedule.gather(s.alpha_bar, t, x)
        off = ((x[:, None] - jnp.sqrt(ab)[..., None] * grid) ** 2).sum(-1)
        return jax.nn.softmax(jnp.log(table) - off / (2 * (1 - ab)), axis=-1) @ grid

    @jax.jit
    def measure(weights, size, key):
        b = as_shift(s, lambda x0, t: size * network(weights, x0, t))
        return bits_per_dim(f, b, s, grid[drawn], key, bins=4, dequantize=dequantize)

    gaps = {}
    for seed, size in [(0, 0.0), (1, 0.3), (2, 3.0), (3, 30.0), (4, 300.0)]:
        gap = np.asarray(measure(random_weights(seed, 2), size, jax.random.key(seed)).per_image) - exact
        gaps[size] = gap.mean()
        assert gap.mean() > 4 * gap.std() / np.sqrt(len(gap)), (size, gap.mean())
    assert gaps[300.0] > gaps[30.0] > gaps[3.0] > gaps[0.0]


@pytest.mark.parametrize("num_t, most", [(1, 1.7), (None, 1.06)])
def test_the_standard_error_covers_what_it_says(x64, num_t, most):
    """Many evaluations of fresh data: their spread is what each announces, or less where times are drawn evenly."""
    s, images = schedule.cosine(25), 24
    model = toy(s, a=1.0, d=0.3).with_optimal_denoiser()
    f, b = functions(model)

    def measure(key):
        key_x0, key = jax.random.split(key)
        x0 = model.m + np.sqrt(model.v) * jax.random.normal(key_x0, (images, 2))
        bound = bits_per_dim(f, b, s, x0, key, bins=None, num_t=num_t)
        return bound.mean, bound.stderr

    mean, stderr = jax.jit(jax.vmap(measure))(jax.random.split(jax.random.key(0), 1200))
    announced, spread = np.sqrt((stderr**2).mean()), mean.std()
    assert 0.94 * spread < announced < most * spread, (announced, spread)


def test_repeats_average_and_show_the_monte_carlo_share(x64):
    s, x0 = schedule.cosine(30), np.random.default_rng(0).normal(size=(8, 3))
    measure = lambda key, **options: bits_per_dim(
        lambda x, t: 0.5 * x, None, s, x0, key, bins=None, num_t=2, **options
    )
    many = jax.jit(jax.vmap(lambda key: measure(key, repeats=4)))(jax.random.split(jax.random.key(1), 500))
    # The images stay the same: what varies is the draws
    np.testing.assert_allclose(np.sqrt((many.monte_carlo**2).mean()), many.mean.std(), rtol=0.1)
    first, second = (jax.tree.map(lambda v, i=i: v[i], many) for i in range(2))
    assert first.stderr > first.monte_carlo > 0
    both = join([first, second])
    np.testing.assert_allclose(both.monte_carlo, np.hypot(first.monte_carlo, second.monte_carlo) / 2, rtol=1e-12)
    assert join([first.replace(monte_carlo=None), second]).monte_carlo is None
    with pytest.raises(UserError, match="repeats=0"):
        measure(jax.random.key(0), repeats=0)


def test_the_difference_of_two_models_is_paired(x64):
    s, x0 = schedule.cosine(10), np.random.default_rng(0).normal(size=(50, 4)) * np.arange(1, 51)[:, None] / 10
    measure = jax.jit(lambda c: bits_per_dim(lambda x, t: c * x, None, s, x0, jax.random.key(0), bins=None))
    first, second = measure(0.5), measure(0.51)
    assert first.monte_carlo is None  # one estimate says nothing of its noise
    mean, stderr = difference(first, second)
    np.testing.assert_allclose(mean, first.mean - second.mean, rtol=1e-9)
    assert 0 < stderr < 0.2 * first.stderr
    with pytest.raises(UserError, match="50 and 20 images"):
        difference(first, second.replace(per_image=second.per_image[:20]))
