"""Fresh parameters and their shapes, traced once."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax import parameters

traced = []


class Net(nn.Module):
    """Two layers; counts how often it is traced."""

    width: int

    @nn.compact
    def __call__(self, x, *, scale, grid=(1, 1)):
        traced.append(self.width)
        return nn.Dense(self.width * grid[0])(nn.Dense(3)(x)) * scale


def spec(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def test_they_are_those_of_the_module_from_arrays_and_from_shapes():
    key, x = jax.random.key(1), np.ones((2, 5), np.float32)
    expected = jax.jit(Net(4).init)(key, x, scale=x[:, :1])["params"]
    chex.assert_trees_all_equal(parameters.init(Net(4), key, x, scale=x[:, :1]), expected)
    traced_too = jax.jit(lambda key: parameters.init(Net(4), key, spec(2, 5), scale=spec(2, 1)))(key)
    chex.assert_trees_all_equal(traced_too, expected)
    chex.assert_trees_all_equal_shapes_and_dtypes(parameters.shapes(Net(4), spec(2, 5), scale=spec(2, 1)), expected)


def test_one_module_and_one_set_of_shapes_are_traced_once():
    traced.clear()
    for rows in (3, 3, 7):
        wanted = parameters.shapes(Net(6), spec(rows, 5), scale=2.0, grid=(2, 1))
        assert jax.tree.map(lambda v: v.shape, wanted)["Dense_0"] == {"kernel": (3, 12), "bias": (12,)}
    parameters.init(Net(6), jax.random.key(0), spec(3, 5), scale=2.0, grid=(2, 1))
    jax.eval_shape(lambda key: parameters.init(Net(6), key, spec(3, 5), scale=2.0, grid=(2, 1)), jax.random.key(2))
    once_for_each_shape = traced.copy()
    assert len(once_for_each_shape) == 2
    assert parameters.shapes(Net(6), spec(3, 5), scale=2.0, grid=(3, 1))["Dense_0"]["bias"].shape == (18,)
    assert parameters.shapes(Net(8), spec(3, 5), scale=2.0, grid=(3, 1))["Dense_0"]["bias"].shape == (24,)
    assert len(traced) == 4
