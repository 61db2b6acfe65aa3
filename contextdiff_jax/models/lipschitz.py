"""How steep r_phi(., c, t) is: estimates of its Lipschitz constants C_t, which Lemma 4's weights contain.

    C_t = sup over x, y of |r(x, c, t) - r(y, c, t)| / |x - y|

Everything here looks at some points and so approaches C_t from below. Lemma 4's weights made of such a number make
Eq. 6 a bound between the points that were looked at; for all points it takes a constant that is proved.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.errors import UserError
from contextdiff_jax.process.schedule import Schedule, index
from contextdiff_jax.types import Array

Relation = Callable[[Array, Array], Array]  # r(x0 [B, ...], t int32 [B]) -> [B, ...], example by example


def secant(r_x: Array, r_y: Array, x: Array, y: Array) -> Array:
    """|r(x) - r(y)| / |x - y| of each example, [B]; 0 where x = y.

    For a training step, where r is known at x0 and at x0_hat anyway.
    """
    run = _norm(x - y)
    return jnp.where(run > 0, _norm(r_x - r_y) / jnp.where(run > 0, run, 1.0), 0.0)


def secant_of_shifts(s: Schedule, b_x: Array, b_y: Array, x: Array, y: Array, t: Array) -> Array:
    """`secant` of r from its shifts b_t = k_t r at x and at y, [B]; 0 where k_t = 0. t is int32 [B] or scalar."""
    k_t = s.k[index(s, t)]
    return jnp.where(k_t > 0, secant(b_x, b_y, x, y) / jnp.where(k_t > 0, k_t, 1.0), 0.0)


def slope(r: Relation, x0: Array, t: Array, key: Array, *, num_iterations: int = 10) -> Array:
    """The largest singular value of d r / d x0 at each example, [B], by power iteration from below.

    Args:
        r: (x0, t) -> r, without any influence of one example on another. It should compute in float32: the fused
            attention kernel of 16 bits has no forward derivative.
        x0: points [B, ...].
        t: int32 [B] or scalar.
        key: for the first directions.
        num_iterations: products with the Jacobian and its transpose; each costs about two evaluations of r.

    Raises:
        UserError: num_iterations is less than 1.
    """
    if num_iterations < 1:
        raise UserError(f"num_iterations={num_iterations} must be 1 or more; 10 is usually within a few per cent")
    t = jnp.broadcast_to(t, x0.shape[:1])
    _, push = jax.linearize(lambda x: r(x, t), x0)  # v -> J v
    pull = jax.linear_transpose(push, x0)  # u -> J^T u

    def iterate(v, _):
        return _unit(pull(push(v))[0]), None

    start = _unit(jax.random.normal(key, x0.shape, x0.dtype))
    v, _ = jax.lax.scan(iterate, start, length=num_iterations)
    return _norm(push(v))


def lipschitz_constants(
    r: Relation, x0: Array, times: Array, key: Array, *, num_iterations: int = 10
) -> Array:
    """The steepest slope over the examples at each of the times, [K]; see `slope` and `over_time`.

    Args:
        r: (x0, t) -> r under the examples' own conditions.
        x0: points [B, ...], e.g. data, or their estimates x0_hat.
        times: integer [K].
        key: for the first directions.
        num_iterations: of the power iteration.
    """
    times = jnp.asarray(times, jnp.int32)
    at = lambda args: slope(r, x0, *args, num_iterations=num_iterations).max()
    return jax.lax.map(at, (times, jax.random.split(key, times.shape[0])))


def over_time(times: Array, constants: Array, num_timesteps: int) -> Array:
    """Constants at some rising times [K] as a table [T+1]: at each t the larger of the two around it.

    Raises:
        UserError: times that do not rise, or are as many as the constants are not.
    """
    times = np.asarray(times)
    if times.ndim != 1 or times.shape != jnp.shape(constants) or not times.size or np.any(np.diff(times) <= 0):
        raise UserError(f"times {times.tolist()} must rise, one for each of {jnp.size(constants)} constants")
    t = np.arange(num_timesteps + 1)
    above = np.minimum(np.searchsorted(times, t, side="left"), len(times) - 1)
    below = np.maximum(np.searchsorted(times, t, side="right") - 1, 0)
    return jnp.maximum(constants[below], constants[above])


def _norm(v: Array) -> Array:
    """Euclidean norm of each example, [B]; its gradient at 0 is 0."""
    square = jnp.sum(v**2, axis=tuple(range(1, v.ndim)))
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def _unit(v: Array) -> Array:
    """v over its norm, example by example; 0 stays 0."""
    norm = _norm(v).reshape(-1, *(1,) * (v.ndim - 1))
    return jnp.where(norm > 0, v / jnp.where(norm > 0, norm, 1.0), 0.0)
