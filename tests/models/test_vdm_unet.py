"""The likelihood network: Fourier features, shapes, zero start, conditioning, gradients, remat."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import parameter_helpers
import pytest

from contextdiff_jax import parameters
from contextdiff_jax.models.vdm_unet import VDMUNet, fourier_features
from contextdiff_jax.types import Context


def make(**changes):
    options = dict(channels=16, num_blocks=1, head_dim=8, fourier_bands=(2, 3), num_timesteps=100)
    return VDMUNet(**options | changes)


def inputs(batch=2, size=6, channels=1):
    keys = jax.random.split(jax.random.key(0), 3)
    xt = jax.random.normal(keys[0], (batch, size, size, channels))
    mask = jnp.arange(3)[None] < jnp.array([3, 2])[:batch, None]
    context = Context(jax.random.normal(keys[1], (batch, 3, 5)), jax.random.normal(keys[2], (batch, 7)), mask)
    return xt, jnp.array([1, 60])[:batch], context


@functools.cache
def trained():
    """A network with no parameter at zero."""
    return parameter_helpers.randomised(jax.eval_shape(make().init, jax.random.key(0), *inputs()), 0.5)


@functools.partial(jax.jit, static_argnums=0)
def apply(net, params, xt, t, context):
    return net.apply(params, xt, t, context)


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(net, params):
    return jax.value_and_grad(lambda p: jnp.mean((net.apply(p, *inputs()) - 1.0) ** 2))(params)


def test_fourier_features_equal_a_hand_calculation():
    z = np.array([[[[0.1, -0.7]]]])
    expected = [f(2**n * np.pi * v) for f in (np.sin, np.cos) for n in (6, 7) for v in (0.1, -0.7)]
    np.testing.assert_allclose(fourier_features(jnp.asarray(z), (6, 7))[0, 0, 0], expected, atol=2e-5)


@pytest.mark.parametrize("levels, bands", [(257, (6, 7)), (17, (2, 3))])
def test_the_highest_band_tells_neighbouring_levels_apart(levels, bands):
    """2^7 pi on 256 steps of 2 / 256: half a period a step, so the cosine alternates between 1 and -1."""
    z = jnp.linspace(-1, 1, levels)[None, None, :, None]
    features = fourier_features(z, bands)[0, 0]
    np.testing.assert_allclose(np.abs(np.diff(features[:, 3])), 2, atol=1e-3)
    assert np.abs(np.diff(features[:, 2])).max() < 1.5  # the band below does not


@pytest.mark.parametrize("channels, bands", [(1, (2, 3)), (3, ())])
def test_output_has_the_input_shape(channels, bands):
    args = inputs(channels=channels)
    out, _ = jax.eval_shape(make(fourier_bands=bands).init_with_output, jax.random.key(0), *args)
    assert out.shape == args[0].shape and out.dtype == jnp.float32


def test_output_starts_at_zero_and_its_layer_learns_at_once():
    value, grads = value_and_gradients(make(), {"params": parameters.init(make(), jax.random.key(0), *inputs())})
    assert value == 1 and np.abs(grads["params"]["out"]["kernel"]).max() > 0


def test_size_is_what_the_design_says():
    """Way in 2, middle 2, way out 3; the stem sees 1 channel and 2 x 2 waves of it; nothing is down-sampled."""
    params = jax.eval_shape(make(num_blocks=2).init, jax.random.key(0), *inputs())["params"]
    blocks = [name for name in params if "conv_1" in params[name]]
    assert sorted(blocks) == ["in_0", "in_1", "middle_1", "middle_2", "out_0", "out_1", "out_2"]
    chex.assert_shape(params["stem"]["kernel"], (3, 3, 5, 16))
    assert all(params[name]["conv_1"]["kernel"].shape == (3, 3, 32, 16) for name in blocks if name.startswith("out"))


@pytest.mark.parametrize("what", ["t", "tokens", "pooled"])
def test_output_depends_on_every_condition(what):
    xt, t, context = inputs()
    base = apply(make(), trained(), xt, t, context)
    if what == "t":
        other = apply(make(), trained(), xt, t + 7, context)
    else:
        changed = context.replace(**{what: getattr(context, what)[..., ::-1] + 1.5})
        other = apply(make(), trained(), xt, t, changed)
    assert np.abs(base - other).max() > 1e-3


def test_every_parameter_has_a_gradient_and_remat_changes_nothing():
    plain = value_and_gradients(make(), trained())
    chex.assert_trees_all_close(plain, value_and_gradients(make(remat=True), trained()), rtol=1e-4, atol=1e-5)
    dead = [jax.tree_util.keystr(p) for p, g in jax.tree_util.tree_leaves_with_path(plain[1]) if np.abs(g).max() == 0]
    assert not dead


def test_dropout_acts_in_training_only():
    args = inputs()
    net = make(dropout=0.5)
    noisy = jax.jit(lambda seed: net.apply(trained(), *args, train=True, rngs={"dropout": jax.random.key(seed)}))
    assert np.abs(noisy(0) - noisy(1)).max() > 1e-3
    chex.assert_trees_all_close(apply(net, trained(), *args), apply(make(), trained(), *args))


def test_bfloat16_keeps_parameters_and_output_in_float32():
    args = inputs()
    out = apply(make(dtype=jnp.bfloat16), trained(), *args)
    full = apply(make(), trained(), *args)
    assert out.dtype == jnp.float32 and 0 < np.abs(out - full).max() < 0.2 * np.abs(full).max()
    assert np.mean(out != out.astype(jnp.bfloat16).astype(jnp.float32)) > 0.9, "not rounded at the end"
