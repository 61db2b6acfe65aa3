"""Draws taken together are those that they were alone, bit for bit."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from contextdiff_jax import draws

KEY = jax.random.key(3)


def of_many_kinds(key):
    """Shapes of one and of several size classes, other distributions and widths, keys from keys, calls within calls."""
    keys = jax.random.split(key, 3)
    inner = jax.jit(lambda key: jax.random.truncated_normal(jax.random.fold_in(key, 5), -2.0, 2.0, (3, 3, 2, 5)))
    late = jax.random.fold_in(keys[2], jax.random.bits(jax.random.fold_in(key, 8)))  # a key that follows from a draw
    return {
        "normal": [jax.random.normal(jax.random.fold_in(key, i), (7, 3 + i)) for i in range(6)],
        "uniform": jax.random.uniform(keys[0], (100,), minval=-1.0, maxval=3.0),
        "inner": [inner(jax.random.fold_in(key, 9)), inner(keys[1])],
        "late": jax.random.normal(late, (4,)),
        "several keys": jax.vmap(lambda key: jax.random.normal(key, (4,)))(keys),
        "half": jax.random.normal(jax.random.fold_in(key, 10), (5,), jnp.bfloat16),
        "bytes": jax.random.bits(jax.random.fold_in(key, 11), (6,), jnp.uint8),
        "numbers": jax.random.randint(jax.random.fold_in(key, 12), (9,), 0, 1000),
        "scalar": jax.random.normal(jax.random.fold_in(key, 13)),
        "empty": jax.random.normal(jax.random.fold_in(key, 14), (0, 3)),
        "order": jax.random.permutation(jax.random.fold_in(key, 15), 11),
        "with a derivative of its own": jax.nn.relu(jax.random.normal(jax.random.fold_in(key, 16), (8,))),
        "fixed": jnp.arange(3),
        "without a result": jax.jit(lambda: ())(),
        "the key": jax.random.key_data(key),
    }


@pytest.mark.parametrize("largest", [draws.LARGEST, 16])
def test_they_are_the_same_to_the_bit(largest, monkeypatch):
    monkeypatch.setattr(draws, "LARGEST", largest)
    chex.assert_trees_all_equal(jax.jit(draws.in_few(of_many_kinds))(KEY), jax.jit(of_many_kinds)(KEY))


@pytest.mark.parametrize("impl", ["rbg", "threefry2x32"])
def test_other_generators_and_counts_are_left_as_they_are(impl):
    """Of which a short draw is no beginning of a long one."""
    key = jax.random.key(1, impl=impl)
    with jax.threefry_partitionable(False):
        chex.assert_trees_all_equal(jax.jit(draws.in_few(of_many_kinds))(key), jax.jit(of_many_kinds)(key))


def test_the_parameters_of_a_network_take_a_few_loops():
    """By the program that is compiled: a loop for each size class, not for each layer, and one for all keys."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            for width in (9, 10, 11, 12, 13, 14, 15):
                x = nn.Dense(width)(x)
            return x

    init = lambda key: Net().lazy_init(key, jax.ShapeDtypeStruct((1, 12), jnp.float32))
    hashes = lambda f: str(jax.make_jaxpr(f)(KEY)).count("random_bits[")
    assert hashes(init) == 7 and hashes(draws.in_few(init)) == 2  # 108 to 120 weights, and 132 to 210
    chex.assert_trees_all_equal(jax.jit(draws.in_few(init))(KEY), jax.jit(init)(KEY))
