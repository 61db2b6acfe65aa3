"""The learned process: its start, its order under anything, its variance."""

import json
from pathlib import Path

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
    """Adam at an absurd rate on gradients that push all times together, then all apart; what is left is not saved."""
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
            assert np.all(np.diff(process.schedule(params).alpha_bar) < 0)
        with pytest.raises(UserError, match="the learned schedule"):
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


def test_it_starts_and_learns_in_float32_where_little_noise_matters():
    """As far as the named schedule's own table goes, and with a gradient wherever a limit holds it."""
    s = schedule.log_snr(16, 13.0, -5.0)
    process = Process(s, learned=True)
    process.check_start()
    params = process.init()
    process.check(params)
    tables = (np.asarray(x.alpha_bar[1:], np.float64) for x in (process.schedule(params), s))
    np.testing.assert_allclose(*(np.log(ab / (1 - ab)) for ab in tables), atol=0.03)
    noise = lambda gamma_1: jnp.log(1 - process.schedule(params | {"gamma_1": gamma_1}).alpha_bar[1])
    gamma_1 = np.array([-13.0, -14.0, -17.0, 0.0])
    free = -np.expm1(-np.logaddexp(0, gamma_1))
    expected = free * (1 - free) / np.maximum(free, 16 * np.finfo(np.float32).eps)
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(noise)))(jnp.float32(gamma_1)), expected, rtol=0.03)
    signal = lambda gamma_1: jnp.log(process.schedule(params | {"gamma_1": gamma_1}).alpha_bar[1])
    assert jax.jit(jax.grad(signal))(31.0) < -0.3
    for first in (13.3, 14.0):
        with pytest.raises(UserError, match=r"T=16 steps cannot start .* t=1, .*starts at 13"):
            Process(schedule.log_snr(16, first, -5.0), learned=True).check_start()


def test_what_has_collapsed_is_not_saved_and_what_the_study_learned_is():
    process, fixed = (Process(schedule.log_snr(8), learned=True, fixed_ends=fixed) for fixed in (False, True))
    for one in (process, fixed):
        params = one.init()
        one.check(params)
        for bad, t in [({"steps": jnp.full(7, -200.0)}, 2), ({"steps": params["steps"].at[4].set(-200.0)}, 6)]:
            with pytest.raises(UserError, match=f"does not fall at t={t}"):
                one.check(params | bad)
    with pytest.raises(UserError, match="less noise at t=1 than float32"):
        process.check(params | {"gamma_1": jnp.float32(-14.0)})
    with pytest.raises(UserError, match="log SNR -31 at t=1, outside 30"):
        process.check(params | {"gamma_1": jnp.float32(31.0)})
    # 1500 nats of log SNR on the way
    with pytest.raises(UserError, match="at t=2, outside 30"):
        process.check(params | {"gamma_1": jnp.float32(-6.0), "steps": jnp.full(7, 200.0)})
    results = Path(__file__).parents[2] / "docs/study/results"
    stored = [run["process"] for file in results.glob("steps-*.json") for run in walked(json.loads(file.read_text()))]
    assert len(stored) > 10
    for learned in stored:
        start = Process(schedule.log_snr(len(learned["log_snr"])), learned=True)
        gamma = -np.array(learned["log_snr"])
        steps = np.log(np.expm1(np.maximum(np.diff(gamma), 5e-5)))  # stored to 4 digits, where two of 64 steps meet
        start.check({"gamma_1": jnp.float32(gamma[0]), "steps": jnp.asarray(steps, jnp.float32)})


def walked(node):
    """The records of a nested result that hold a learned process."""
    if isinstance(node, dict) and node.get("process"):
        yield node
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from walked(value)


def test_a_process_whose_end_stays_with_much_signal_is_warned_of(caplog):
    for name, T, left in [("linear", 1, "0.9999"), ("linear", 8, "0.92"), ("scaled_linear", 8, "0.956")]:
        s = getattr(schedule, name)(T)
        for learned in (False, True)[: 1 + (T > 2)]:
            process = Process(s, learned=learned, fixed_ends=learned)
            caplog.clear()
            process.check_start()
            assert f"T={T} steps leaves alpha_bar_T={left}" in caplog.text and "'cosine' or 'log_snr'" in caplog.text
        caplog.clear()
        Process(s, learned=True).check_start()
    for T in (1, 2, 8, 1000):
        for s in (schedule.cosine(T), schedule.log_snr(T), schedule.zero_terminal_snr(schedule.linear(T))):
            Process(s).check_start()
    Process(schedule.linear(1000)).check_start()
    assert not caplog.text
