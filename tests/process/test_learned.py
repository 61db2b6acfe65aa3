"""The learned process: its start, its order under anything, its variance."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from contextdiff_jax.errors import UserError
from contextdiff_jax.process import schedule
from contextdiff_jax.process.learned import Process

NAMED = {
    "cosine": schedule.cosine,
    "linear": lambda T: schedule.linear(T, 1e-4, 0.02 if T > 100 else 0.5),
    "log_snr": schedule.log_snr,
}


@pytest.mark.parametrize("T", [1, 2, 4, 1000])
@pytest.mark.parametrize("name", NAMED)
def test_it_starts_as_the_named_schedule(x64, name, T):
    s = NAMED[name](T)
    for fixed_ends in (False, True)[: 1 + (T > 2)]:
        process = Process(s, learned=True, fixed_ends=fixed_ends)
        start = process.schedule(process.init())
        # alpha_bar in both tails
        np.testing.assert_allclose(start.alpha_bar, s.alpha_bar, rtol=1e-9)
        np.testing.assert_allclose(1 - start.alpha_bar, 1 - s.alpha_bar, rtol=1e-9, atol=1e-15)
        np.testing.assert_allclose(start.k, s.k, rtol=1e-9, atol=1e-15)


def test_a_fixed_process_is_its_schedule_itself_and_has_no_parameters():
    s = schedule.cosine(10)
    process = Process(s)
    assert process.init() == {} and process.schedule({}) is s and process.reverse_variance({}) == "beta"


@pytest.mark.parametrize("T", [1, 2, 4, 64, 1000])
def test_it_falls_strictly_in_float32_whatever_is_done_to_its_parameters(T):
    rng = np.random.default_rng(T)
    for fixed_ends in (False, True)[: 1 + (T > 2)]:
        process = Process(schedule.log_snr(T), learned=True, fixed_ends=fixed_ends, variance="learned")
        start = process.init()
        for size in (1.0, -1.0, 30.0, -30.0, 1e4, -1e4):
            for directed in (True, False):
                draw = lambda shape, directed=directed: np.ones(shape) if directed else rng.normal(size=shape)
                moved = {name: jnp.asarray(v + size * draw(v.shape), jnp.float32) for name, v in start.items()}
                s = process.schedule(moved)
                assert np.all(np.diff(s.alpha_bar) < 0) and s.alpha_bar[-1] > 0 and np.isfinite(s.k).all()


def test_it_survives_adversarial_gradients():
    """Adam at an absurd rate on gradients that push all times together, then all apart."""
    process = Process(schedule.log_snr(8), learned=True, variance="learned")
    objectives = (
        lambda p: jnp.sum(jnp.log(process.schedule(p).beta_t(jnp.arange(1, 9)))),
        lambda p: -jnp.log(process.schedule(p).alpha_bar[4]),
    )
    for objective in objectives:
        params, optimizer = process.init(), optax.adam(3.0)
        state, grad = optimizer.init(params), jax.jit(jax.grad(objective))
        for _ in range(60):
            updates, state = optimizer.update(grad(params), state)
            params = optax.apply_updates(params, updates)
            process.check(params)


def test_fixed_ends_stay_and_the_way_between_them_is_learned():
    process = Process(schedule.log_snr(6), learned=True, fixed_ends=True)
    s = process.schedule({"steps": jnp.array([3.0, -2.0, 0.0, 1.0, -9.0])})
    np.testing.assert_allclose(s.alpha_bar[jnp.array([1, 6])], process.start.alpha_bar[jnp.array([1, 6])], rtol=1e-5)
    assert np.max(np.abs(s.alpha_bar - process.start.alpha_bar)) > 0.1


@pytest.mark.parametrize("channels", [0, 3])
def test_the_learned_variance_starts_as_beta_and_is_a_factor_of_it(x64, channels):
    process = Process(schedule.cosine(5), variance="learned", channels=channels)
    params = process.init()
    table = process.reverse_variance(params)
    assert table.shape == ((6, 3) if channels else (6,))
    beta = np.asarray(process.start.beta_t(np.arange(6))).reshape(-1, *(1,) * (table.ndim - 1))
    np.testing.assert_allclose(table, np.broadcast_to(beta, table.shape), rtol=1e-14)
    doubled = process.reverse_variance(jax.tree.map(lambda v: v + np.log(2), params))
    np.testing.assert_allclose(doubled, 2 * table, rtol=1e-14)
    x = np.zeros((2, 4, 4, 3))
    at = schedule.gather(table, np.array([2, 5]), x)
    assert np.broadcast_shapes(at.shape, x.shape) == x.shape
    np.testing.assert_allclose(np.broadcast_to(at, x.shape)[1, 0, 0], np.broadcast_to(table[5], 3))


def test_what_cannot_be_learned_or_saved_is_refused():
    s = schedule.cosine(4)
    with pytest.raises(UserError, match="zero_terminal_snr"):
        Process(schedule.zero_terminal_snr(s), learned=True)
    with pytest.raises(UserError, match="T=2"):
        Process(schedule.cosine(2), learned=True, fixed_ends=True)
    process = Process(s, learned=True, variance="learned")
    params = process.init()
    with pytest.raises(UserError, match="t=3 is"):
        process.check(params | {"log_ratio": jnp.array([0.0, 1.0, -jnp.inf, 0.0])})
    with pytest.raises(UserError, match="does not fall at t=2"):
        process.check(params | {"steps": jnp.array([jnp.nan, 1.0, 1.0])})
