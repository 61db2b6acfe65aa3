"""The training state: its shapes, its place on the mesh, its first value."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from contextdiff_jax import trees
from contextdiff_jax.training import sharding
from contextdiff_jax.training.sharding import Rules
from contextdiff_jax.types import Array, Params, TrainState


def stream(seed: int, name: str) -> Array:
    """The root key of one named stream of randomness."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def abstract_state(optimizer: optax.GradientTransformation, params: Any) -> TrainState:
    """Shapes of the state, from the shapes of the parameters; nothing is allocated."""
    step = jax.ShapeDtypeStruct((), jnp.int32)
    return TrainState(step=step, params=params, ema=params, opt_state=jax.eval_shape(optimizer.init, params))


def state_shardings(
    abstract: TrainState, optimizer: optax.GradientTransformation, rules: Rules, mesh: Mesh
) -> TrainState:
    """The sharding of every leaf of the state; moments lie where their parameters lie."""
    params = sharding.tree_shardings(abstract.params, rules, mesh)
    whole = sharding.replicated(mesh)
    absent = lambda x: isinstance(x, optax.transforms.MaskedNode)  # what another optimizer has the moments of
    opt_state = optax.tree_map_params(
        optimizer,
        lambda x, place: x if absent(x) else place,
        abstract.opt_state,
        params,
        transform_non_params=lambda _: whole,
        is_leaf=absent,
    )
    return TrainState(step=whole, params=params, ema=params, opt_state=opt_state)


def initial_params(task: Any, places: Params, seed: int) -> Params:
    """Parameters at the start, created in place: no device ever holds more than its part.

    Args:
        task: what is trained; its `load`, where it has one, gives what is pretrained.
        places: shardings of the wanted leaves; what is not in it is not made.
        seed: of the fresh ones.
    """
    loaded = task.load(places) if hasattr(task, "load") else {}
    have = set(trees.names(loaded))
    fresh_places = trees.select(places, lambda name: name not in have)
    if not fresh_places:
        return loaded
    wanted = set(trees.names(fresh_places))
    init = lambda key: trees.select(task.init(key), wanted.__contains__)
    return trees.merge(loaded, jax.jit(init, out_shardings=fresh_places)(stream(seed, "init")))


def init_state(params: Params, optimizer: optax.GradientTransformation, shardings: TrainState) -> TrainState:
    """The state at step 0; it takes the parameters' buffers for itself."""
    # The average needs buffers of its own: the step donates both.
    ema = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=shardings.ema)(params)
    opt_state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(params)
    step = jax.jit(lambda: jnp.zeros((), jnp.int32), out_shardings=shardings.step)()
    return TrainState(step=step, params=params, ema=ema, opt_state=opt_state)
