"""Schedules against their published definitions, written again here by hand."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from contextdiff_jax.errors import UserError
from contextdiff_jax.process import schedule


def product_of_alphas(betas):
    """alpha_bar_0..T by a plain loop."""
    alpha_bar = [1.0]
    for beta in betas:
        alpha_bar.append(alpha_bar[-1] * (1.0 - beta))
    return np.array(alpha_bar)


def test_linear_and_scaled_linear_match_their_definitions(x64):
    T = 7
    betas = [1e-3 + (0.3 - 1e-3) * i / (T - 1) for i in range(T)]
    np.testing.assert_allclose(schedule.linear(T, 1e-3, 0.3).alpha_bar, product_of_alphas(betas), rtol=1e-13)
    roots = [1e-3**0.5 + (0.3**0.5 - 1e-3**0.5) * i / (T - 1) for i in range(T)]
    expected = product_of_alphas([r**2 for r in roots])
    np.testing.assert_allclose(schedule.scaled_linear(T, 1e-3, 0.3).alpha_bar, expected, rtol=1e-13)


def test_cosine_follows_the_squared_cosine_until_the_cap(x64):
    T = 1000
    s = schedule.cosine(T)
    angle = (np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2
    expected = np.cos(angle) ** 2 / np.cos(angle[0]) ** 2
    np.testing.assert_allclose(s.alpha_bar[:T], expected[:T], rtol=1e-10)
    np.testing.assert_allclose(s.alpha_bar[T], expected[T - 1] * (1 - 0.999), rtol=1e-10)


@pytest.mark.parametrize("T", [1, 2, 33, 1000])
@pytest.mark.parametrize("build", [schedule.cosine, schedule.linear, schedule.scaled_linear])
def test_tables_start_at_clean_data_and_fall(build, T):
    for s in (build(T), schedule.zero_terminal_snr(build(T))):
        assert s.num_timesteps == T
        chex.assert_shape((s.alpha_bar, s.k), (T + 1,))
        chex.assert_type((s.alpha_bar, s.k), jnp.float32)
        assert s.alpha_bar[0] == 1.0 and s.k[0] == 0.0
        assert np.all(np.diff(s.alpha_bar) < 0) and np.all(np.asarray(s.k) >= 0)
        root = np.sqrt(np.asarray(s.alpha_bar, np.float64))
        np.testing.assert_allclose(s.k, root * (1 - root), atol=1e-7)


def test_log_snr_is_a_line_between_its_ends_and_ends_at_the_last(x64):
    for T in (1, 2, 5):
        ab = np.asarray(schedule.log_snr(T, 4.0, -8.0).alpha_bar)[1:]
        line = [-8.0] if T == 1 else [4.0 - 12.0 * i / (T - 1) for i in range(T)]
        np.testing.assert_allclose(np.log(ab / (1 - ab)), line)


def test_double_precision_under_x64(x64):
    chex.assert_type(schedule.cosine(10).alpha_bar, jnp.float64)


def test_terminal_shift_weight_is_only_nearly_zero():
    """The figures of the design: the prior depends on the adapter."""
    np.testing.assert_allclose(schedule.cosine(1000).k[-1], 5e-5, rtol=0.05)
    np.testing.assert_allclose(schedule.scaled_linear(1000).k[-1], 0.064, rtol=0.01)
    assert schedule.zero_terminal_snr(schedule.scaled_linear(1000)).k[-1] == 0.0


@pytest.mark.parametrize("build", [schedule.cosine, schedule.scaled_linear])
def test_zero_terminal_snr_keeps_the_first_and_clears_the_last(x64, build):
    before, after = build(50), schedule.zero_terminal_snr(build(50))
    assert after.alpha_bar[-1] == 0.0
    np.testing.assert_allclose(after.alpha_bar[1], before.alpha_bar[1], rtol=1e-14)
    # Lin et al.: sqrt(alpha_bar) is an affine function of what it was.
    old, new = np.sqrt(before.alpha_bar[1:]), np.sqrt(after.alpha_bar[1:])
    np.testing.assert_allclose(
        (new - new[-1]) / (new[0] - new[-1]), (old - old[-1]) / (old[0] - old[-1]), atol=1e-14
    )


def test_helpers_keep_float32_precision():
    s = schedule.cosine(1000)
    ab = np.asarray(s.alpha_bar, np.float64)
    t = np.arange(1, 1001)
    np.testing.assert_allclose(s.alpha_t(t), ab[1:] / ab[:-1], rtol=1e-6)
    np.testing.assert_allclose(s.beta_t(t), 1 - ab[1:] / ab[:-1], rtol=1e-6)
    np.testing.assert_allclose(s.snr(t), ab[1:] / (1 - ab[1:]), rtol=1e-6)
    assert s.alpha_t(0) == 1.0 and s.beta_t(0) == 0.0 and np.isinf(s.snr(0))


def test_gather_broadcasts_over_any_rank():
    table = jnp.arange(5.0)
    for t in (3, np.int64(3), jnp.int32(3)):
        chex.assert_shape(schedule.gather(table, t, jnp.zeros((2, 3, 4))), ())
    picked = schedule.gather(table, np.array([4, 0]), np.zeros((2, 3, 4, 5, 6)))
    chex.assert_shape(picked, (2, 1, 1, 1, 1))
    np.testing.assert_array_equal(picked.ravel(), [4.0, 0.0])


def test_a_schedule_passes_through_jit_as_a_pytree():
    s = schedule.cosine(10)
    assert jax.jit(lambda s, t: s.beta_t(t))(s, 3) == pytest.approx(float(s.beta_t(3)))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: schedule.cosine(0), "T=0"),
        (lambda: schedule.cosine(10.0), "T=10.0"),
        (lambda: schedule.cosine(10, offset=-1), "offset"),
        (lambda: schedule.cosine(10, max_beta=1.0), "max_beta"),
        (lambda: schedule.linear(10, 0.0, 0.1), "beta_start"),
        (lambda: schedule.linear(10, -0.1, 0.1), "beta_start"),
        (lambda: schedule.scaled_linear(10, 0.2, 0.1), "beta_start"),
        (lambda: schedule.linear(10, 0.1, 1.0), "beta_end"),
        (lambda: schedule.linear(1000, 0.1, 0.9), "alpha_bar stops falling"),
        (lambda: schedule.index(schedule.cosine(10), 11), "out of range"),
        (lambda: schedule.index(schedule.cosine(10), -1), "out of range"),
        (lambda: schedule.index(schedule.cosine(10), np.array([0, 3]), lowest=1), "out of range"),
        (lambda: schedule.index(schedule.cosine(10), 0.5), "integers"),
        (lambda: schedule.gather(jnp.zeros(5), np.array([1, 2, 3]), np.zeros((2, 4))), "does not match"),
        (lambda: schedule.gather(jnp.zeros(5), np.zeros((2, 1), int), np.zeros((2, 1))), "does not match"),
    ],
)
def test_bad_arguments_are_one_line_errors(call, words):
    with pytest.raises(UserError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


def test_from_config_names_every_schedule():
    config = ConfigDict(
        dict(schedule="linear", num_timesteps=20, beta_start=1e-3, beta_end=0.2, zero_terminal_snr=False)
    )
    chex.assert_trees_all_equal(schedule.from_config(config), schedule.linear(20, 1e-3, 0.2))
    config.schedule = "scaled_linear"
    chex.assert_trees_all_equal(schedule.from_config(config), schedule.scaled_linear(20, 1e-3, 0.2))
    config.schedule, config.zero_terminal_snr = "cosine", True
    chex.assert_trees_all_equal(schedule.from_config(config), schedule.zero_terminal_snr(schedule.cosine(20)))
    config.schedule = "sine"
    with pytest.raises(UserError, match="cosine, linear, scaled_linear"):
        schedule.from_config(config)


def test_from_betas_and_a_terminal_above_zero(x64):
    betas = [0.1, 0.3, 0.2]
    s = schedule.from_betas(betas)
    np.testing.assert_allclose(s.alpha_bar, product_of_alphas(betas), rtol=1e-14)
    chex.assert_trees_all_close(schedule.from_betas(np.linspace(1e-3, 0.3, 7)), schedule.linear(7, 1e-3, 0.3))
    zero, tiny = schedule.zero_terminal_snr(s), schedule.zero_terminal_snr(s, 2.0**-24)
    assert zero.alpha_bar[-1] == 0.0 and tiny.alpha_bar[-1] == 2.0**-24
    np.testing.assert_array_equal(zero.alpha_bar[:-1], tiny.alpha_bar[:-1])
    for bad in ([], [0.1, 1.0], [0.1, 0.0], [[0.1]], [np.nan]):
        with pytest.raises(UserError, match="strictly between 0 and 1"):
            schedule.from_betas(bad)
