"""Operations of traced programs against XLA's count, where that sees everything, and by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from configs import t2i
from contextdiff_jax import task as task_lib
from contextdiff_jax.flops import counted
from contextdiff_jax.plan import batch_spec
from contextdiff_jax.training import Setup

X, W = jnp.ones((3, 8, 8, 6)), jnp.ones((3, 3, 6, 4))


def of(f, *args):
    return counted(jax.jit(f).trace(*args))


def by_xla(f, *args):
    return jax.jit(f).lower(*args).cost_analysis()["flops"]


def convolved(x, w, **how):
    return jax.lax.conv_general_dilated(x, w, dimension_numbers=("NHWC", "HWIO", "NHWC"), **{"padding": "VALID"} | how)


@pytest.mark.parametrize(
    "how",
    [
        dict(window_strides=(1, 1)),
        dict(window_strides=(2, 2)),
        dict(window_strides=(1, 1), rhs_dilation=(2, 2)),
        dict(window_strides=(1, 1), feature_group_count=3),
    ],
)
def test_a_convolution_counts_as_xla_counts_it(how):
    w = W[:, :, :2, :3] if "feature_group_count" in how else W
    f = lambda x, w: convolved(x, w, **how)
    assert of(f, X, w) == by_xla(f, X, w)


def test_the_gradients_of_a_strided_convolution_cost_what_it_does_each():
    f = lambda x, w: convolved(x, w, window_strides=(2, 2))
    both = lambda x, w: jax.vjp(f, x, w)[1](jnp.ones((3, 3, 3, 4)))
    # After the convolution itself. What falls on the rim counts with the rest; the zeros between the rows, which would
    # be three times as much again, do not.
    assert 3 * of(f, X, W) <= of(both, X, W) < 4 * of(f, X, W)


def test_products_loops_branches_and_what_is_computed_twice():
    x = jnp.ones((4, 5, 7))
    product = lambda x: jnp.einsum("bij,bkj->bik", x, x)
    assert of(product, x) == by_xla(product, x) == 2 * 4 * 5 * 5 * 7
    one = 2 * 5 * 7 * 5
    assert of(lambda x: jax.lax.map(lambda v: v @ v.T, x), x) == 4 * one
    loop = lambda x: jax.lax.fori_loop(0, 9, lambda i, v: v @ v.T @ v, x[0])
    assert of(loop, x) == 9 * 2 * one
    branch = lambda i, x: jax.lax.switch(
        i, [lambda v: v[0] @ v[0].T, lambda v: product(v)[0], lambda v: x[0, :, :5]], x
    )
    assert of(branch, 1, x) == 4 * one
    again = jax.checkpoint(lambda x: jnp.sin(x[0] @ x[1].T).sum())
    assert of(jax.grad(again), x) == 4 * one  # forward twice, and once for each input


@pytest.mark.slow  # traces a network twice and lowers it: 20 s
def test_of_a_step_for_a_gpu_whose_kernels_xla_cannot_look_into():
    config = t2i.get_config("tiny")
    config.model.dtype = "bfloat16"
    setup = Setup.of(task_lib.build(config, weights=False))
    batch = batch_spec(setup.task)
    seen = setup.lower(batch, setup.frozen_spec).cost_analysis()["flops"]
    gpu = dataclasses.replace(setup, runtime=dataclasses.replace(setup.runtime, platform="gpu", capability=9.0))
    assert gpu.flops(batch, setup.frozen_spec) == pytest.approx(seen, rel=0.1)  # XLA's count has the sums as well
