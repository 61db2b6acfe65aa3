"""The objectives against brute force: Lemma 3 on joint Gaussians, Lemma 4, Appendix A.4, masks."""

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_toy import functions, negative_log_density, toy
from scipy.stats import norm

from contextdiff_jax import losses
from contextdiff_jax.errors import UserError
from contextdiff_jax.process import forward, schedule

rng = np.random.default_rng(0)


def random_toy(s, seed, variance="posterior"):
    """A toy whose adapter and denoiser are arbitrary, not optimal."""
    r = np.random.default_rng(seed)
    a, d, u, w = r.normal(size=(4, s.num_timesteps + 1))
    return replace(toy(s, a=a, d=d), u=1 + 0.3 * u, w=w, variance=variance)


def expectation(model, x0, t, term):
    """E over x_t ~ Eq. 1 of a term quadratic in x_t: three Gauss-Hermite nodes are exact."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    mean = np.sqrt(model.ab[t]) * x0 + model.b(x0, t)
    values = [term(mean + np.sqrt(1 - model.ab[t]) * z) for z in nodes]
    return sum(w * v for w, v in zip(weights / weights.sum(), values, strict=True))


LEARNED = np.array([0.0, 0.05, 0.3, 0.1, 0.7, 0.2, 1.5])  # any variances, of both sides of beta_t


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("variance", [*losses.VARIANCES, LEARNED], ids=[*losses.VARIANCES, "learned"])
@pytest.mark.parametrize("build", [schedule.cosine, lambda T: schedule.linear(T, 1e-3, 0.4)])
def test_lemma_3_the_terms_add_up_to_the_bound_of_the_joint_gaussians(x64, build, variance, seed):
    s = build(6)
    model = random_toy(s, seed, variance)
    f, b = functions(model)
    x0 = rng.normal(size=(4, 1))

    total = losses.prior_term(s, x0, b)
    for t in range(1, 7):

        def term(xt, t=t):
            x0_hat = f(xt, t)
            if t == 1:
                sigma = np.sqrt(1 - model.ab[1] if isinstance(variance, str) else variance[1])
                return -losses.log_density(x0, x0_hat, sigma)[:, 0]
            shifts = b(x0, t), b(x0, t - 1), b(x0_hat, t), b(x0_hat, t - 1)
            return losses.posterior(s, x0, x0_hat, t, *shifts, variance=variance)

        total = total + expectation(model, x0, t, term)
    np.testing.assert_allclose(total, model.bound(x0[:, 0]), rtol=1e-10)
    # And it is a bound of this model's likelihood, whatever the adapter.
    assert np.all(total >= negative_log_density(x0[:, 0], *model.model_distribution()))


@pytest.mark.parametrize("variance", [*losses.VARIANCES, LEARNED], ids=[*losses.VARIANCES, "learned"])
def test_nelbo_estimates_that_bound_without_bias(x64, variance):
    s = schedule.cosine(6)
    model = random_toy(s, 1, variance)
    f, b = functions(model)
    count = 40_000
    x0 = np.full((count, 1), 0.4)
    t = 1 + np.arange(count) % 6
    bound = jax.jit(lambda key: losses.nelbo(s, x0, f, b, t, key, bins=None, variance=variance))(
        jax.random.key(0)
    )
    chex.assert_shape((bound.prior, bound.reconstruction, bound.diffusion, bound.total), (count,))
    stderr = np.std(bound.total) / np.sqrt(count)
    assert abs(bound.total.mean() - model.bound(np.array([0.4]))[0]) < 5 * stderr
    np.testing.assert_array_equal(bound.diffusion[t == 1], 0.0)


def test_nelbo_scales_one_t_to_the_sum(x64):
    """With an x0_hat that does not depend on x_t there is no noise: the mean over t = 1..T is the sum."""
    s = schedule.cosine(9)
    x0 = np.repeat(rng.normal(size=(1, 5)), 9, axis=0)
    t = np.arange(1, 10)
    bound = losses.nelbo(s, x0, lambda x, t: 0.1 * jnp.ones_like(x), None, t, jax.random.key(0))
    exact = sum(losses.posterior(s, x0, 0.1, i, 0.0, 0.0, 0.0, 0.0)[0] for i in range(2, 10))
    np.testing.assert_allclose(bound.diffusion.mean(), exact, rtol=1e-12)


def test_several_times_an_example_estimate_the_same_sum_and_all_of_them_are_it(x64):
    s, f = schedule.cosine(9), lambda x, t: 0.1 * jnp.ones_like(x)
    x0 = np.repeat(rng.normal(size=(1, 5)), 8, axis=0)
    exact = sum(losses.posterior(s, x0, 0.1, i, 0.0, 0.0, 0.0, 0.0)[0] for i in range(2, 10))
    few, every = losses.times(jax.random.key(1), 9, 2, 8), losses.times(jax.random.key(1), 9, 50, 8)
    assert few.shape == (8, 2) and every.shape == (8, 8) and np.all(np.asarray(every[0]) == np.arange(2, 10))
    bound = lambda t: losses.nelbo(s, x0, f, None, t, jax.random.key(0)).diffusion
    np.testing.assert_allclose(bound(few).mean(), exact, rtol=1e-12)  # 16 draws, evenly over the 8 times
    np.testing.assert_allclose(bound(every), exact, rtol=1e-12)
    # Many times are a loop; nothing here depends on the noise
    np.testing.assert_allclose(bound(jnp.tile(few, 5)), bound(few), rtol=1e-12)


@pytest.mark.parametrize("T", [1, 2])
def test_one_and_two_steps(x64, T):
    """At T = 1 there is no diffusion term; at T = 2 all times is one time."""
    s, x0, f = schedule.log_snr(T), rng.normal(size=(6, 3)), lambda x, t: 0.1 * x
    t = 1 + np.arange(6) % T
    one = losses.nelbo(s, x0, f, None, t, jax.random.key(0), bins=None)
    every = losses.nelbo(s, x0, f, None, losses.times(jax.random.key(1), T, 7, 6), jax.random.key(0), bins=None)
    np.testing.assert_array_equal(one.prior, every.prior)
    np.testing.assert_array_equal(one.reconstruction, every.reconstruction)
    assert (one.diffusion[t == 1] == 0).all() and (every.diffusion > 0).all() == (T > 1)
    assert every.diffusion.shape == (6,)


def test_a_variance_for_each_channel(x64):
    """The KL is a sum over elements, each with the variance of its channel."""
    s, t = schedule.cosine(6), np.array([1, 3, 6])
    x0, x0_hat = rng.normal(size=(2, 3, 2, 2, 3))
    factors = np.array([0.5, 1.0, 3.0])
    whole = losses.posterior(s, x0, x0_hat, t, 0.0, 0.0, 0.0, 0.0, variance=LEARNED[:, None] * factors)
    parts = [
        losses.posterior(s, x0[..., [i]], x0_hat[..., [i]], t, 0.0, 0.0, 0.0, 0.0, variance=LEARNED * factor)
        for i, factor in enumerate(factors)
    ]
    np.testing.assert_allclose(whole, sum(parts), rtol=1e-12)
    with pytest.raises(UserError, match=r"\[7\]"):
        losses.posterior(s, x0, x0_hat, t, 0.0, 0.0, 0.0, 0.0, variance=np.ones(5))


@pytest.mark.parametrize("build", [schedule.cosine, schedule.scaled_linear])
def test_posterior_is_the_kl_of_the_two_gaussians(x64, build):
    s = build(20)
    x0, x0_hat, xt, *shifts = rng.normal(size=(7, 3, 4))
    b_t, b_prev, b_t_hat, b_prev_hat = shifts
    t = np.array([2, 9, 20])
    q = forward.posterior(s, xt, x0, b_t, b_prev, t)
    p = forward.posterior(s, xt, x0_hat, b_t_hat, b_prev_hat, t)
    kl = 0.5 * (jnp.log(p.var / q.var) + (q.var + (q.mean - p.mean) ** 2) / p.var - 1)
    np.testing.assert_allclose(losses.posterior(s, x0, x0_hat, t, *shifts), kl.sum(1), rtol=1e-10)


def test_posterior_at_t_1_is_the_quadratic_part_of_the_decoder(x64):
    s = schedule.cosine(20)
    x0, x0_hat, b_1, b_1_hat = rng.normal(size=(4, 3, 4))
    expected = -(losses.log_density(x0, x0_hat, np.sqrt(1 - s.alpha_bar[1])) - norm.logpdf(0)).sum(1)
    expected = expected - 4 * 0.5 * np.log(1 - s.alpha_bar[1])
    np.testing.assert_allclose(
        losses.posterior(s, x0, x0_hat, 1, b_1, 0.0, b_1_hat, 0.0), expected, rtol=1e-9
    )


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_lemma_4_bounds_eq_5_and_is_attained(x64, sign):
    """r(x, t) = -C_t x and r(x, t-1) = C_{t-1} x align all three parts of the mismatch."""
    s, c_t, c_prev = schedule.cosine(20), 0.7, 1.3
    x0, x0_hat = rng.normal(size=(2, 20, 5))
    t = np.arange(1, 21)
    k_t, k_prev = (schedule.gather(s.k, i, x0) for i in (t, t - 1))
    shifts = lambda x: (-sign * k_t * c_t * x, sign * k_prev * c_prev * x)
    left = losses.posterior(s, x0, x0_hat, t, *shifts(x0), *shifts(x0_hat))
    right = (losses.lipschitz_weight(s, t, x0, c_t, c_prev) * (x0_hat - x0) ** 2).sum(1)
    if sign > 0:
        np.testing.assert_allclose(left, right, rtol=1e-10)
    else:
        assert np.all(left <= right * (1 + 1e-12)) and np.any(left < 0.9 * right)


def test_lemma_4_bounds_eq_5_for_smooth_adapters(x64):
    s = schedule.cosine(50)
    x0, x0_hat = rng.normal(size=(2, 50, 5))
    t = np.arange(1, 51)
    W = rng.normal(size=(5, 5))
    r = lambda x: jnp.sin(x @ W)  # Lipschitz with the spectral norm of W
    shift = lambda x, t: schedule.gather(s.k, t, x) * r(x)
    left = losses.posterior(
        s, x0, x0_hat, t, shift(x0, t), shift(x0, t - 1), shift(x0_hat, t), shift(x0_hat, t - 1)
    )
    c = np.linalg.norm(W, 2)
    assert np.all(left <= (losses.lipschitz_weight(s, t, x0, c, c) * (x0_hat - x0) ** 2).sum(1))


def test_lemma_4_as_a_weighting_of_eq_6(x64):
    """Per element: Eq. 6 is then Eq. 5's ceiling, with a constant for each t, and reached by r = -C_t x, C_{t-1} x."""
    s = schedule.cosine(50)
    x0, x0_hat = rng.normal(size=(2, 50, 5))
    t = np.arange(1, 51)
    c = rng.uniform(0.1, 3, size=51)
    signs = np.where(np.arange(51) % 2 == 0, 1.0, -1.0)  # neighbours differ, so that at odd t all parts align
    shift = lambda x, t: schedule.gather(s.k, t, x) * schedule.gather(signs * c, t, x) * x
    left = losses.posterior(
        s, x0, x0_hat, t, shift(x0, t), shift(x0, t - 1), shift(x0_hat, t), shift(x0_hat, t - 1)
    )
    right = losses.simple(s, x0, x0_hat, t, weighting="lemma4", lipschitz=c)
    assert np.all(left / 5 <= right * (1 + 1e-12))
    np.testing.assert_allclose(left[::2] / 5, right[::2], rtol=1e-10)
    most = losses.simple(s, x0, x0_hat, t, weighting="lemma4", lipschitz=c.max())
    assert np.all(most >= right)
    np.testing.assert_allclose(
        losses.simple(s, x0, x0_hat, t, weighting="lemma4", lipschitz=0.0)[1:],
        losses.simple(s, x0, x0_hat, t, weighting="vlb")[1:],
        rtol=1e-10,
    )
    # Each example's own constants, as the training step has them, where they are those of the table
    own = c[t], c[np.maximum(t - 1, 0)]
    np.testing.assert_allclose(losses.simple(s, x0, x0_hat, t, weighting="lemma4", lipschitz=own), right, rtol=1e-12)
    for bad, words in [(None, "lipschitz=None.*number or an array .51"), (c[1:], "50")]:
        with pytest.raises(UserError, match=words):
            losses.simple(s, x0, x0_hat, t, weighting="lemma4", lipschitz=bad)


@pytest.mark.parametrize("slope", [0.0, 1.0, 5.0])
def test_appendix_a4_optimal_losses_against_monte_carlo(x64, slope):
    """Eqs. 34, 35: the least loss in closed form, attained by E[x0 | x_t], and lower with the adapter."""
    s = schedule.cosine(10)
    model = toy(s, a=slope, d=-0.4).with_optimal_denoiser()
    f, b = functions(model)
    key_0, key_t = jax.random.split(jax.random.key(0))
    count, dims = 20_000, 4
    x0 = model.m + np.sqrt(model.v) * jax.random.normal(key_0, (count, dims))
    closed = model.optimal_loss()
    for t in range(1, 11):
        xt = forward.marginal(s, x0, b(x0, t), t).sample(jax.random.fold_in(key_t, t))
        loss = losses.simple(s, x0, f(xt, t), t)
        stderr = loss.std() / np.sqrt(count)
        assert abs(loss.mean() - closed[t]) < 4.5 * stderr
        worse = losses.simple(s, x0, f(xt, t) + 0.05, t)
        chance = 0.1 * np.sqrt(closed[t] / (count * dims))  # of the cross term, whose mean is 0
        np.testing.assert_allclose(worse.mean() - loss.mean(), 0.05**2, atol=4.5 * chance)
    assert np.all(closed[1:-1] <= toy(s).optimal_loss()[1:-1])


def test_simple_weights_follow_their_definitions(x64):
    s = schedule.cosine(30)
    x0, x0_hat = rng.normal(size=(2, 30, 6))
    t = np.arange(1, 31)
    ab = np.asarray(s.alpha_bar)
    snr = ab[1:] / (1 - ab[1:])
    mse = ((x0_hat - x0) ** 2).mean(1)
    weights = {"constant": np.ones(30), "snr": snr, "min_snr": np.minimum(snr, 5.0), "p2": snr / (1 + snr)}
    for name, weight in weights.items():
        np.testing.assert_allclose(losses.simple(s, x0, x0_hat, t, weighting=name), weight * mse, rtol=1e-12)
    capped = losses.simple(s, x0, x0_hat, t, weighting="min_snr", gamma=0.5)
    np.testing.assert_allclose(capped, np.minimum(snr, 0.5) * mse, rtol=1e-12)
    vlb = losses.simple(s, x0, x0_hat, t, weighting="vlb")
    np.testing.assert_allclose(vlb[1:], 0.5 * (snr[:-1] - snr[1:]) * mse[1:], rtol=1e-10)
    np.testing.assert_allclose(6 * vlb, losses.posterior(s, x0, x0_hat, t, 0.0, 0.0, 0.0, 0.0), rtol=1e-12)


def test_weights_at_the_last_time_of_zero_terminal_snr(x64):
    """Where x_T is noise alone, an example counts by every weighting but those that a training refuses."""
    s = schedule.zero_terminal_snr(schedule.cosine(30))
    weight = {name: np.max(losses.weight(s, 30, np.ones(1), name, lipschitz=1.0)) for name in losses.WEIGHTINGS}
    assert {name for name, at_T in weight.items() if at_T == 0} == set(losses.WITHOUT_THE_END)
    assert all(at_T > 0 for name, at_T in weight.items() if name not in losses.WITHOUT_THE_END)


def test_snr_weighting_is_the_noise_loss(x64):
    s = schedule.cosine(30)
    x0, x0_hat, xt = rng.normal(size=(3, 5, 6))
    noise = lambda x: forward.effective_noise(s, xt, x, 12)
    expected = ((noise(x0_hat) - noise(x0)) ** 2).mean(1)
    np.testing.assert_allclose(losses.simple(s, x0, x0_hat, 12, weighting="snr"), expected, rtol=1e-12)


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5, 2), (3, 2, 4, 5, 2)])
def test_shapes_and_masks(x64, shape):
    s = schedule.cosine(10)
    x0, x0_hat, *shifts = rng.normal(size=(6, *shape))
    t = np.array([1, 4, 10])
    mask = rng.uniform(size=shape[:2]) < 0.5
    mask[0], mask[1] = False, True
    full = np.broadcast_to(mask.reshape(*mask.shape, *(1,) * (len(shape) - 2)), shape)
    bad = np.where(full, x0_hat, np.nan)
    simple = losses.simple(s, x0, bad, t, mask=mask)
    posterior = losses.posterior(s, x0, bad, t, *shifts, mask=mask)
    chex.assert_shape((simple, posterior), (3,))
    assert simple[0] == 0.0 and posterior[0] == 0.0
    unmasked = losses.simple(s, x0, x0_hat, t), losses.posterior(s, x0, x0_hat, t, *shifts)
    np.testing.assert_allclose(simple[1], unmasked[0][1], rtol=1e-12)
    np.testing.assert_allclose(posterior[1], unmasked[1][1], rtol=1e-12)
    expected = ((x0_hat - x0)[2][full[2]] ** 2).mean() if full[2].any() else 0.0
    np.testing.assert_allclose(simple[2], expected, rtol=1e-12)
    by_scalar = losses.simple(s, x0[2:], x0_hat[2:], 10, mask=mask[2:])
    np.testing.assert_allclose(by_scalar, simple[2:], rtol=1e-12)
    f = lambda x, t: jnp.tanh(x)
    bound = losses.nelbo(s, x0, f, None, t, jax.random.key(0), mask=mask)
    assert bound.total[0] == 0.0
    np.testing.assert_allclose(
        bound.total[1], losses.nelbo(s, x0, f, None, t, jax.random.key(0)).total[1], rtol=1e-12
    )


def test_prior_is_the_kl_to_the_standard_normal(x64):
    s = schedule.scaled_linear(1000)
    x0, r = rng.normal(size=(2, 3, 4))
    b = lambda x0, t: schedule.gather(s.k, t, x0) * r
    q = forward.marginal(s, x0, b(x0, 1000), 1000)
    kl = 0.5 * (q.var + q.mean**2 - 1 - jnp.log(q.var)).sum(1)
    np.testing.assert_allclose(losses.prior_term(s, x0, b), kl, rtol=1e-9)
    assert np.all(losses.prior_term(schedule.zero_terminal_snr(s), x0, None) == 0.0)


@pytest.mark.parametrize("bins", [2, 17, 256])
def test_the_decoder_s_masses_add_up_to_one(x64, bins):
    levels = np.linspace(-1, 1, bins)
    for mean, sigma in [(0.0, 0.01), (0.3, 0.2), (-1.7, 0.05), (5.0, 1.0), (0.123, 1e-3)]:
        log_mass = losses.log_mass(levels, mean, sigma, bins)
        np.testing.assert_allclose(np.exp(log_mass).sum(), 1.0, rtol=1e-10)


def test_log_mass_is_right_in_the_far_tail_in_float32():
    x, mean, sigma = np.linspace(-1, 1, 256), 0.5, 0.01
    half = 1 / 255
    with np.errstate(divide="ignore"):
        a, b = (x - half - mean) / sigma, (x + half - mean) / sigma
        lo, hi = np.where(a > 0, -b, a), np.where(a > 0, -a, b)
        expected = norm.logcdf(hi) + np.log1p(-np.exp(norm.logcdf(lo) - norm.logcdf(hi)))
    got = losses.log_mass(jnp.asarray(x, jnp.float32), jnp.float32(mean), jnp.float32(sigma), 256)
    np.testing.assert_allclose(got[1:-1], expected[1:-1], rtol=2e-3)
    assert got[0] < -10_000  # 150 standard deviations away costs what it costs
    grad = jax.grad(lambda m: losses.log_mass(jnp.asarray(x, jnp.float32), m, sigma, 256).sum())(mean)
    chex.assert_tree_all_finite((got, grad))


@pytest.mark.parametrize(
    "build", [schedule.cosine, lambda T: schedule.zero_terminal_snr(schedule.scaled_linear(T))]
)
def test_float32_losses_and_gradients_are_finite_at_every_t(build):
    s = build(1000)
    x0 = jnp.asarray(rng.uniform(-1, 1, size=(5, 8)), jnp.float32)
    t = jnp.array([1, 2, 500, 999, 1000])

    def total(scale):
        f = lambda x, t: jnp.tanh(scale * x)
        b = lambda x0, t: schedule.gather(s.k, t, x0) * jnp.tanh(scale * x0)
        out = [losses.nelbo(s, x0, f, b, t, jax.random.key(0), variance=v).total for v in losses.VARIANCES]
        out += [losses.simple(s, x0, f(x0, t), t, weighting=w, lipschitz=scale) for w in losses.WEIGHTINGS]
        out += [
            losses.posterior(s, x0, f(x0, t), t, b(x0, t), b(x0, t - 1), b(f(x0, t), t), b(f(x0, t), t - 1))
        ]
        return sum(v.sum() for v in out), out

    (_, out), grad = jax.jit(jax.value_and_grad(total, has_aux=True))(0.7)
    chex.assert_tree_all_finite((out, grad))


def test_bad_arguments_are_user_errors():
    s, x = schedule.cosine(10), jnp.ones((2, 3))
    f = lambda x, t: x
    for call, words in [
        (lambda: losses.simple(s, x, x, 0), "out of range"),
        (lambda: losses.simple(s, x, x, 11), "out of range"),
        (lambda: losses.simple(s, x, x, 3, weighting="snrr"), "min_snr"),
        (lambda: losses.posterior(s, x, x, 0, x, x, x, x), "out of range"),
        (lambda: losses.nelbo(s, x, f, None, 0, jax.random.key(0)), "out of range"),
        (lambda: losses.nelbo(s, x, f, None, np.ones((2, 3), int), jax.random.key(0)), "timestep 1 .* 2 to 10"),
        (lambda: losses.nelbo(s, x, f, None, 1, jax.random.key(0), bins=1), "bins=1"),
        (lambda: losses.nelbo(s, x, f, None, 1, jax.random.key(0), variance="learned"), "posterior, beta"),
    ]:
        with pytest.raises(UserError, match=words):
            call()


def test_weights_of_a_network_s_own_error():
    """snr weighs the error of x0_hat as the error of eps_hat is, snr_plus_1 as that of v_hat is (float64 by hand)."""
    s, rng = schedule.scaled_linear(1000, 0.00085, 0.012), np.random.default_rng(0)
    x0, x0_hat, eps = rng.normal(size=(3, 2, 5))
    t = np.array([3, 800])
    ab_t = np.asarray(s.alpha_bar, np.float64)[t, None]
    xt = np.sqrt(ab_t) * x0 + np.sqrt(1 - ab_t) * eps
    outputs = {
        "x0": lambda x: x,
        "eps": lambda x: (xt - np.sqrt(ab_t) * x) / np.sqrt(1 - ab_t),
        "v": lambda x: (np.sqrt(ab_t) * xt - x) / np.sqrt(1 - ab_t),
    }
    for prediction, output in outputs.items():
        weighting = losses.WEIGHTING_OF[prediction]
        ours = losses.simple(s, jnp.asarray(x0), jnp.asarray(x0_hat), jnp.asarray(t), weighting=weighting)
        np.testing.assert_allclose(ours, ((output(x0) - output(x0_hat)) ** 2).mean(1), rtol=2e-4)
