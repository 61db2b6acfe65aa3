"""The pixel U-Net: shapes, zero start, conditioning, remat."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import parameter_helpers
import pytest

from contextdiff_jax import parameters
from contextdiff_jax.models import blocks
from contextdiff_jax.models.unet import UNet
from contextdiff_jax.types import Context


def make(**changes):
    options = dict(
        channels=16,
        multipliers=(1, 2),
        num_blocks=1,
        self_attention_levels=(1,),
        cross_attention_levels=(0, 1),
        head_dim=8,
        patch_size=2,
        num_timesteps=100,
    )
    return UNet(**options | changes)


def inputs(batch=3, size=16):
    keys = jax.random.split(jax.random.key(0), 3)
    xt = jax.random.normal(keys[0], (batch, size, size, 3))
    mask = jnp.arange(5)[None] < jnp.array([5, 3, 1])[:batch, None]
    context = Context(jax.random.normal(keys[1], (batch, 5, 12)), jax.random.normal(keys[2], (batch, 7)), mask)
    return xt, jnp.array([1, 50, 100])[:batch], context


def randomised(net):
    return parameter_helpers.randomised(jax.eval_shape(net.init, jax.random.key(0), *inputs()), 0.2)


@functools.partial(jax.jit, static_argnums=0)
def run(net, params, xt, t, context):
    return net.apply(params, xt, t, context)


def test_output_starts_at_zero_and_has_the_input_shape():
    net = make()
    xt, t, context = inputs()
    out = run(net, {"params": parameters.init(net, jax.random.key(0), *inputs())}, xt, t, context)
    chex.assert_equal_shape([out, xt])
    chex.assert_trees_all_equal(out, jnp.zeros_like(xt))


@pytest.mark.parametrize("what", ["t", "tokens", "pooled"])
def test_output_depends_on_every_condition(what):
    net = make()
    xt, t, context = inputs()
    params = randomised(net)
    base = run(net, params, xt, t, context)
    if what == "t":
        other = run(net, params, xt, t + 7, context)
    else:
        other = run(net, params, xt, t, context.replace(**{what: getattr(context, what)[..., ::-1] + 1.5}))
    assert np.abs(base - other).max() > 1e-3


def test_masked_tokens_do_not_matter():
    net = make()
    xt, t, context = inputs()
    params = randomised(net)
    noise = jnp.where(context.mask[..., None], 0.0, 100.0)
    changed = context.replace(tokens=context.tokens + noise)
    chex.assert_trees_all_close(
        run(net, params, xt, t, context), run(net, params, xt, t, changed), rtol=1e-5, atol=1e-5
    )


def test_examples_are_independent():
    net = make()
    xt, t, context = inputs()
    params = randomised(net)
    alone = run(net, params, xt[:1], t[:1], jax.tree.map(lambda v: v[:1], context))
    chex.assert_trees_all_close(run(net, params, xt, t, context)[:1], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_remat_changes_neither_value_nor_gradient():
    xt, t, context = inputs()
    net, thrifty = make(), make(remat=True)
    params = randomised(net)
    value = lambda n: jax.jit(jax.value_and_grad(lambda p: jnp.mean(n.apply(p, xt, t, context) ** 2)))(params)
    chex.assert_trees_all_close(value(net), value(thrifty), rtol=1e-4, atol=1e-5)


def test_bfloat16_computes_in_bfloat16_and_returns_float32():
    xt, t, context = inputs()
    net = make(dtype=jnp.bfloat16)
    params = randomised(net)
    assert all(v.dtype == jnp.float32 for v in jax.tree.leaves(params))
    out = run(net, params, xt, t, context)
    assert out.dtype == jnp.float32
    full = run(make(), params, xt, t, context)
    assert np.abs(out - full).max() < 0.1 * np.abs(full).max()
    assert np.mean(out != out.astype(jnp.bfloat16).astype(jnp.float32)) > 0.9, "not rounded at the end"


def test_dropout_acts_in_training_only():
    xt, t, context = inputs()
    net = make(dropout=0.5)
    params = randomised(net)
    rngs = lambda seed: {"dropout": jax.random.key(seed)}
    apply = jax.jit(lambda seed: net.apply(params, xt, t, context, train=True, rngs=rngs(seed)))
    assert np.abs(apply(0) - apply(1)).max() > 1e-3
    chex.assert_trees_all_equal(run(net, params, xt, t, context), run(net, params, xt, t, context))


@pytest.mark.parametrize("p", [1, 2, 4])
def test_space_to_depth_round_trip(p):
    x = jax.random.normal(jax.random.key(0), (2, 8, 12, 3))
    chex.assert_shape(blocks.space_to_depth(x, p), (2, 8 // p, 12 // p, 3 * p * p))
    chex.assert_trees_all_equal(blocks.depth_to_space(blocks.space_to_depth(x, p), p), x)
