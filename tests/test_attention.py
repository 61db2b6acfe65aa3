"""The CPU's loop over heads against jax.nn.dot_product_attention, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contextdiff_jax.attention import _fused, attention


def inputs(queries: int, keys: int, dtype: jnp.dtype) -> list[jax.Array]:
    key_q, key_k, key_v = jax.random.split(jax.random.key(0), 3)
    shape = lambda length: (2, length, 3, 8)
    draws = (jax.random.normal(k, shape(n), dtype) for k, n in ((key_q, queries), (key_k, keys), (key_v, keys)))
    return list(draws)


def loops(*args, **kwargs) -> bool:
    return "scan" in str(jax.make_jaxpr(lambda *a: attention(*a, **kwargs))(*args))


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 1e-5), (jnp.bfloat16, 0.02)])
def test_long_sequences_go_head_by_head_with_the_same_result(dtype, tolerance):
    args = inputs(512, 160, dtype)
    assert loops(*args) and loops(*args, scale=0.5)

    def value_and_gradients(f):
        loss = lambda *a: jnp.sum(f(*a).astype(jnp.float32) ** 2)
        return jax.jit(lambda *a: (f(*a), jax.grad(loss, argnums=(0, 1, 2))(*a)))

    full = [x.astype(jnp.float32) for x in args]
    for scale in (None, 0.5):
        ours = value_and_gradients(lambda *a, scale=scale: attention(*a, scale=scale))(*args)
        oracle = value_and_gradients(lambda *a, scale=scale: jax.nn.dot_product_attention(*a, scale=scale))(*full)
        for found, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(oracle), strict=True):
            assert found.dtype == dtype
            assert np.abs(np.asarray(found, np.float32) - expected).max() < tolerance * np.abs(expected).max()


@pytest.mark.parametrize("queries, keys, is_causal", [(6, 7, False), (5, 4, False), (7, 7, True), (6, 4, False)])
def test_odd_lengths_are_padded_for_the_fused_kernel_without_a_trace(queries, keys, is_causal):
    """With XLA's implementation of what the kernel is told; the kernel itself needs a GPU."""
    args = inputs(queries, keys, jnp.float32)
    padded = lambda *a: _fused(*a, None, is_causal, implementation="xla")
    plain = lambda *a: jax.nn.dot_product_attention(*a, is_causal=is_causal)
    value_and_gradients = lambda f: (f(*args), jax.grad(lambda *a: jnp.sum(f(*a) ** 2), argnums=(0, 1, 2))(*args))
    for found, expected in zip(*map(jax.tree.leaves, map(value_and_gradients, (padded, plain))), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_short_masked_biased_and_causal_attention_does_not_loop():
    args = inputs(512, 160, jnp.float32)
    assert not loops(*inputs(64, 64, jnp.float32))
    assert not loops(*args, mask=jnp.ones((1, 1, 1, 160), bool))
    assert not loops(*args, bias=jnp.ones((1, 1, 1, 160)))
    assert not loops(*args, is_causal=True)
