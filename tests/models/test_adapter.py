"""The relational adapter: zero start, bound, dependence on its three arguments, shared encoding."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import parameter_helpers
import pytest

from contextdiff_jax import parameters
from contextdiff_jax.models.adapter import Adapter, Shift, cap_spectral_norms, largest_singular_value
from contextdiff_jax.models.blocks import space_to_depth
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


def randomised(net, args, scale=0.5):
    tokens, grid, *others = args
    shapes = jax.eval_shape(lambda key: net.init(key, tokens, grid, *others), jax.random.key(0))
    return parameter_helpers.randomised(shapes, scale)


@functools.cache
def fresh(net):
    return {"params": parameters.init(net, jax.random.key(0), *inputs())}


@functools.partial(jax.jit, static_argnums=(0, 3, 6))
def run(net, params, tokens, grid, t, context, shape):
    return net.apply(params, tokens, grid, t, context, shape)


@pytest.mark.parametrize("spectral_norm", [0.0, 0.7])
def test_starts_at_exactly_zero_with_a_gradient_for_the_output_projection(spectral_norm):
    net, args = make(depth=1, spectral_norm=spectral_norm), inputs()
    loss = lambda p: jnp.mean((net.apply(p, *args) - 1.0) ** 2)
    value, grads = jax.jit(jax.value_and_grad(loss))(fresh(net))
    assert value == 1 and np.abs(grads["params"]["out"]["kernel"]).max() > 0
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_is_bounded_whatever_the_parameters():
    params = randomised(make(), inputs(), scale=30.0)
    assert np.abs(run(make(), params, *inputs())).max() <= 0.5
    assert np.abs(run(make(bound=0.0), params, *inputs())).max() > 0.5


@pytest.mark.parametrize("what", ["tokens", "t", "text"])
def test_depends_on_image_time_and_text(what):
    tokens, grid, t, context, shape = inputs()
    net = make(bound=0.0)
    params = randomised(make(), inputs())
    base = run(net, params, tokens, grid, t, context, shape)
    if what == "tokens":
        tokens = tokens[:, ::-1]
    elif what == "t":
        t = t + 5
    else:
        context = context.replace(tokens=jnp.roll(context.tokens, 1, axis=-1))
    assert np.abs(base - run(net, params, tokens, grid, t, context, shape)).max() > 1e-3


@pytest.mark.parametrize("grid", [(2, 2), (4, 4), (7, 7)])
def test_any_encoder_grid_is_laid_on_the_sample(grid):
    args = inputs(grid=grid)
    chex.assert_shape(run(make(), fresh(make()), *args), (2, *SHAPE))


def test_pair_is_two_calls_with_one_encoding():
    calls = []
    s = schedule.cosine(100)
    tokens, grid, _, context, _ = inputs()
    params = randomised(make(), inputs())

    def features(x0):
        calls.append(x0.shape)
        return tokens + x0.mean((1, 2, 3))[:, None, None]

    def relate(f, t, shape):
        repeated = jax.tree.map(lambda v: jnp.repeat(v, f.shape[0] // 2, axis=0), context)
        return run(make(), params, f, grid, t, repeated, SHAPE)

    b = Shift(s, features, relate)
    x0 = jax.random.normal(jax.random.key(3), (2, *SHAPE))
    b_t, b_s = b.pair(x0, jnp.array([40, 60]), jnp.array([30, 0]))
    assert len(calls) == 1
    chex.assert_trees_all_close(b_t, b(x0, jnp.array([40, 60])), rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(b_s, b(x0, jnp.array([30, 0])), rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal(b_s[1], jnp.zeros(SHAPE))  # k_0 = 0


def test_pair_keeps_the_frames_of_a_clip_together():
    """Two clips of three frames: each looks along its own frames at one time, whichever time stands beside it."""
    count, clips = 3, 2
    past = jnp.tril(jnp.ones((count, count)))

    def relate(f, t, shape):
        rows = (f * jnp.sin(t)[:, None, None, None]).reshape(-1, count, *shape)
        return jnp.einsum("fg,cg...->cf...", past, rows).reshape(-1, *shape)

    b = Shift(schedule.cosine(100), lambda x0: x0, relate, num_frames=count)
    x0 = jax.random.normal(jax.random.key(3), (clips * count, *SHAPE))
    times = [jnp.repeat(jnp.array(t), count) for t in ((40, 60), (30, 1))]
    for found, t in zip(b.pair(x0, *times), times, strict=True):
        chex.assert_trees_all_close(found, b(x0, t), rtol=1e-5, atol=1e-6)


# Data without a CLIP: patches of the sample as features, a class as one-hot token.

DIGIT = (8, 8, 1)


def patches(x0, p=2):
    return space_to_depth(x0, p).reshape(x0.shape[0], -1, p * p * x0.shape[-1])


def one_hot(label, num_classes=11):
    code = jax.nn.one_hot(label, num_classes)
    return Context(code[:, None], code, jnp.ones((len(label), 1), bool))


@functools.cache
def digit_adapter(**changes):
    """r(x0, label, t) of a class-conditional adapter with random parameters."""
    net = make(depth=1, width=16, patch_size=2, bound=0.0, **changes)
    start = jnp.zeros((2, 16, 4)), (4, 4), jnp.array([1, 2]), one_hot(jnp.array([0, 1])), DIGIT
    params = randomised(net, start)

    @jax.jit
    def r(x0, label, t):
        return net.apply(params, patches(x0), (4, 4), t, one_hot(label), DIGIT)

    return r


def digits():
    x0 = jax.random.uniform(jax.random.key(5), (2, 2, *DIGIT), minval=-1)
    return x0, jnp.array([[3, 4], [8, 4]]), jnp.array([[20, 60], [70, 10]])


@pytest.mark.parametrize("which", [(0, 1), (0, 2), (1, 2)])
def test_image_class_and_time_act_jointly_even_with_a_single_key(which):
    """Not a sum of functions of each: the mixed difference r(a', b') - r(a', b) - r(a, b') + r(a, b) is not zero."""
    r, args = digit_adapter(), digits()

    def at(i, j):
        picks = [0, 0, 0]
        picks[which[0]], picks[which[1]] = i, j
        return r(*[arg[pick] for arg, pick in zip(args, picks, strict=True)])

    mixed = at(1, 1) - at(1, 0) - at(0, 1) + at(0, 0)
    chex.assert_shape(mixed, (2, *DIGIT))
    assert np.abs(mixed).max() > 0.1


def test_gradient_in_x0_matches_finite_differences():
    (x0, _), (label, _), (t, _) = digits()
    r, direction = digit_adapter(), jax.random.normal(jax.random.key(6), x0.shape)
    value = lambda x: jnp.sum(r(x, label, t) * direction)
    exact = jnp.vdot(jax.grad(value)(x0), direction)
    numeric = (value(x0 + 1e-2 * direction) - value(x0 - 1e-2 * direction)) / 2e-2
    np.testing.assert_allclose(numeric, exact, rtol=0.02)


def test_without_any_class_all_is_finite():
    """The condition of unconditional data is a token of one constant number, which layer norm makes zero."""
    net = make(depth=1, patch_size=2)
    x0 = digits()[0][0]
    args = patches(x0), (4, 4), jnp.array([1, 2]), one_hot(jnp.array([0, 0]), 1), DIGIT
    loss = lambda p: jnp.mean((net.apply(p, *args) - 1.0) ** 2)
    grads = jax.jit(jax.grad(loss))(randomised(net, args))
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("self_attention", [False, True])
def test_patches_see_one_another_only_with_self_attention(self_attention):
    r = digit_adapter(self_attention=self_attention)
    (x0, _), (label, _), (t, _) = digits()
    moved = r(x0.at[:, :2, :2].add(0.5), label, t) - r(x0, label, t)
    assert np.abs(moved[:, :2, :2]).max() > 1e-2
    elsewhere = np.abs(moved.at[:, :2, :2].set(0.0)).max()
    assert elsewhere > 1e-3 if self_attention else elsewhere == 0


# Spectral normalisation.


@pytest.mark.parametrize("shape", [(16, 16), (4, 32), (48, 12)])
def test_largest_singular_value_is_numpy_s(shape):
    for seed in range(3):
        kernel = jax.random.normal(jax.random.key(seed), shape)
        np.testing.assert_allclose(largest_singular_value(kernel), np.linalg.norm(kernel, 2), rtol=0.03)
    assert largest_singular_value(jnp.zeros(shape)) == 0


def test_gradient_of_the_largest_singular_value_is_its_rank_one_matrix():
    kernel = jnp.diag(jnp.array([3.0, 1.0, 0.5])) @ jax.random.orthogonal(jax.random.key(0), 3)
    u, _, v = np.linalg.svd(kernel)
    gradient = jax.grad(largest_singular_value)(kernel)
    np.testing.assert_allclose(gradient, np.outer(u[:, 0], v[0]), atol=1e-5)


def test_cap_shrinks_what_exceeds_it_and_leaves_the_rest_alone():
    kernels = [s * jax.random.normal(jax.random.key(s), (8, 12)) / 8 for s in (1, 40)]
    params = {"params": {str(i): {"kernel": k, "bias": 100 * jnp.ones(12)} for i, k in enumerate(kernels)}}
    capped = cap_spectral_norms(params, 2.0)["params"]
    assert np.linalg.norm(kernels[0], 2) < 2 < np.linalg.norm(kernels[1], 2)
    chex.assert_trees_all_equal(capped["0"], params["params"]["0"])
    chex.assert_trees_all_equal(capped["1"]["bias"], params["params"]["1"]["bias"])
    np.testing.assert_allclose(np.linalg.norm(capped["1"]["kernel"], 2), 2.0, rtol=0.02)
    np.testing.assert_allclose(  # the direction stays
        capped["1"]["kernel"] / capped["1"]["kernel"][0, 0], kernels[1] / kernels[1][0, 0], rtol=1e-5
    )


def test_spectral_norm_is_the_plain_adapter_with_capped_kernels():
    """The same parameters under the same names; every dense layer included, those of shared layers too."""
    plain, capped = make(depth=1), make(depth=1, spectral_norm=0.7)
    params = randomised(plain, inputs())
    chex.assert_trees_all_equal_shapes_and_dtypes(params, randomised(capped, inputs()))
    by_svd = jax.tree_util.tree_map_with_path(
        lambda path, v: v / max(1.0, np.linalg.norm(v, 2) / 0.7) if path[-1].key == "kernel" else v, params
    )
    found, expected = run(capped, params, *inputs()), run(plain, by_svd, *inputs())
    chex.assert_trees_all_close(found, expected, atol=0.01)
    assert np.abs(found - run(plain, params, *inputs())).max() > 0.1
