"""The relational adapter: zero start, bound, dependence on its three arguments, shared encoding."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contextdiff_jax.models.adapter import Adapter, Shift
from contextdiff_jax.process import schedule
from contextdiff_jax.types import Context

SHAPE = (16, 16, 3)


def make(**changes):
    options = dict(depth=2, num_heads=4, width=16, patch_size=4, bound=0.5, num_timesteps=100)
    return Adapter(**options | changes)


def inputs(batch=2, grid=(4, 4)):
    keys = jax.random.split(jax.random.key(0), 3)
    tokens = jax.random.normal(keys[0], (batch, grid[0] * grid[1], 8))
    context = Context(
        jax.random.normal(keys[1], (batch, 5, 12)), jax.random.normal(keys[2], (batch, 7)), jnp.ones((batch, 5), bool)
    )
    return tokens, grid, jnp.arange(10, 10 + batch), context, SHAPE


def randomised(params, scale=0.5):
    flat, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(flat))
    return tree.unflatten([scale * jax.random.normal(k, v.shape) for k, v in zip(keys, flat, strict=True)])


def test_starts_at_exactly_zero():
    args = inputs()
    params = make().init(jax.random.key(0), *args)
    chex.assert_trees_all_equal(make().apply(params, *args), jnp.zeros((2, *SHAPE)))


def test_gradient_reaches_the_output_projection_at_the_start():
    args = inputs()
    params = make().init(jax.random.key(0), *args)
    grads = jax.grad(lambda p: jnp.mean((make().apply(p, *args) - 1.0) ** 2))(params)
    assert np.abs(grads["params"]["out"]["kernel"]).max() > 0


def test_is_bounded_whatever_the_parameters():
    args = inputs()
    params = randomised(make().init(jax.random.key(0), *args), scale=30.0)
    r = make().apply(params, *args)
    assert np.abs(r).max() <= 0.5
    assert np.abs(make(bound=0.0).apply(params, *args)).max() > 0.5


@pytest.mark.parametrize("what", ["tokens", "t", "text"])
def test_depends_on_image_time_and_text(what):
    tokens, grid, t, context, shape = inputs()
    params = randomised(make(bound=0.0).init(jax.random.key(0), tokens, grid, t, context, shape))
    base = make(bound=0.0).apply(params, tokens, grid, t, context, shape)
    if what == "tokens":
        tokens = tokens[:, ::-1]
    elif what == "t":
        t = t + 5
    else:
        context = context.replace(tokens=jnp.roll(context.tokens, 1, axis=-1))
    assert np.abs(base - make(bound=0.0).apply(params, tokens, grid, t, context, shape)).max() > 1e-3


@pytest.mark.parametrize("grid", [(2, 2), (4, 4), (7, 7)])
def test_any_encoder_grid_is_laid_on_the_sample(grid):
    args = inputs(grid=grid)
    params = make().init(jax.random.key(0), *args)
    chex.assert_shape(make().apply(params, *args), (2, *SHAPE))


def test_pair_is_two_calls_with_one_encoding():
    calls = []
    s = schedule.cosine(100)
    tokens, grid, _, context, _ = inputs()
    params = randomised(make().init(jax.random.key(0), *inputs()))

    def features(x0):
        calls.append(x0.shape)
        return tokens + x0.mean((1, 2, 3))[:, None, None]

    def relate(f, t):
        stacked = jax.tree.map(lambda v: jnp.tile(v, (f.shape[0] // 2, *(1,) * (v.ndim - 1))), context)
        return make().apply(params, f, grid, t, stacked, SHAPE)

    b = Shift(s, features, relate)
    x0 = jax.random.normal(jax.random.key(3), (2, *SHAPE))
    b_t, b_s = b.pair(x0, jnp.array([40, 60]), jnp.array([30, 0]))
    assert len(calls) == 1
    chex.assert_trees_all_close(b_t, b(x0, jnp.array([40, 60])), rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(b_s, b(x0, jnp.array([30, 0])), rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal(b_s[1], jnp.zeros(SHAPE))  # k_0 = 0
