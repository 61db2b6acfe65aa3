"""The CPU's loop over heads, and that over pieces of the queries, against jax.nn.dot_product_attention, values and
gradients."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contextdiff_jax import attention as attention_lib
from contextdiff_jax.attention import _fused, _plain, attention, edited_attention


def inputs(queries: int, keys: int, dtype: jnp.dtype) -> list[jax.Array]:
    key_q, key_k, key_v = jax.random.split(jax.random.key(0), 3)
    shape = lambda length: (2, length, 3, 8)
    draws = (jax.random.normal(k, shape(n), dtype) for k, n in ((key_q, queries), (key_k, keys), (key_v, keys)))
    return list(draws)


def lengths(function, *args, **kwargs) -> set[int]:
    """Of the loops in a function's program."""
    program = str(jax.make_jaxpr(lambda *a: function(*a, **kwargs))(*args))
    return {int(length) for length in re.findall(r"\blength=(\d+)", program)}


def loops(*args, **kwargs) -> bool:
    return bool(lengths(attention, *args, **kwargs))


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
    value_and_gradients = lambda f: jax.jit(
        lambda *a: (f(*a), jax.grad(lambda *b: jnp.sum(f(*b) ** 2), argnums=(0, 1, 2))(*a))
    )(*args)
    for found, expected in zip(*map(jax.tree.leaves, map(value_and_gradients, (padded, plain))), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_short_masked_biased_and_causal_attention_does_not_loop():
    args = inputs(512, 160, jnp.float32)
    assert not loops(*inputs(64, 64, jnp.float32))
    assert not loops(*args, mask=jnp.ones((1, 1, 1, 160), bool))
    assert not loops(*args, bias=jnp.ones((1, 1, 1, 160)))
    assert not loops(*args, is_causal=True)


@pytest.mark.parametrize("queries, pieces", [(96, 4), (90, 5), (97, 97)])
def test_logits_that_are_too_large_are_made_piece_by_piece(monkeypatch, queries, pieces):
    """The same values and gradients, with less in memory; pieces are equal, so a prime number of queries goes one by
    one."""
    q, k, v = inputs(queries, 40, jnp.float32)
    monkeypatch.setattr(attention_lib, "LARGEST", 4 * 3 * 40 * 24)  # 24 queries
    rng = np.random.default_rng(0)
    mask, row = jnp.asarray(rng.random((2, 1, queries, 40)) < 0.7), jnp.asarray(rng.random((2, 1, 1, 40)) < 0.7)
    bias = jnp.asarray(rng.normal(size=(3, queries, 40)), jnp.float32)
    nothing = dict(mask=None, bias=None, scale=None)
    for given in ({}, dict(mask=mask), dict(mask=row, scale=0.3), dict(mask=row, bias=bias)):
        how = nothing | given
        assert lengths(_plain, q, k, v, **how) == {pieces}
        value_and_gradients = lambda f: jax.jit(
            lambda *a: (f(*a), jax.grad(lambda *b: jnp.sum(f(*b) ** 2), argnums=(0, 1, 2))(*a))
        )(q, k, v)
        ours = value_and_gradients(lambda *a, how=how: _plain(*a, **how))
        whole = how | (dict(bias=bias[None]) if "bias" in given else {})
        oracle = value_and_gradients(lambda *a, how=whole: jax.nn.dot_product_attention(*a, **how))
        for found, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(oracle), strict=True):
            np.testing.assert_allclose(found, expected, atol=2e-5, rtol=1e-5)


def test_a_piece_of_long_queries_is_all_that_is_in_memory():
    """A sample of Stable Diffusion's at 512 x 512 that looks at two frames: 8 heads of 4,096 positions by 8,192."""
    q, k = (jax.ShapeDtypeStruct((1, length, 8, 40), jnp.float32) for length in (4096, 8192))
    attend = jax.jit(lambda *a: _plain(*a, mask=None, bias=None, scale=None))
    needed = attend.lower(q, k, k).compile().memory_analysis().temp_size_in_bytes
    assert needed < 8 * 4096 * 8192 * 4 / 4  # all logits are 1 GiB


def test_long_queries_of_one_head_are_split_as_well(monkeypatch):
    args = inputs(512, 160, jnp.float32)
    expected = jax.nn.dot_product_attention(*args)
    monkeypatch.setattr(attention_lib, "LARGEST", 4 * 160 * 128)
    assert lengths(attention, *args) == {3, 4, 16}  # heads, pieces of one head, and of all heads elsewhere
    np.testing.assert_allclose(jax.jit(attention)(*args), expected, atol=1e-5)


class Halved:
    """An edit that halves the weights of every second key, and remembers of how many heads it was given them."""

    def __init__(self, heads_apart: bool):
        self.heads_apart, self.seen = heads_apart, []

    def __call__(self, weights):
        self.seen.append(weights.shape)
        return weights.at[..., ::2].multiply(0.5)


def test_large_weights_are_edited_one_head_after_the_other_where_that_is_allowed(monkeypatch):
    args = inputs(64, 40, jnp.float32)
    weights = Halved(False)(attention_lib.attention_weights(*args[:2]))
    expected = jnp.einsum("bhts,bshd->bthd", weights, args[2])
    for largest, apart, heads in ((1 << 25, True, 3), (4 * 64 * 40, False, 3), (4 * 64 * 40, True, 1)):
        monkeypatch.setattr(attention_lib, "LARGEST", largest)
        edit = Halved(apart)
        found = jax.jit(lambda *a, edit=edit: edited_attention(edit, *a))(*args)
        assert edit.seen == [(2, heads, 64, 40)]
        np.testing.assert_allclose(found, expected, atol=1e-6)
