"""A task on a mesh: everything that is known before the first array is made, and the compiled step."""

import dataclasses
import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from contextdiff_jax import flops, trees
from contextdiff_jax.errors import UserError
from contextdiff_jax.runtime import Runtime, here, in_use
from contextdiff_jax.training import distributed, sharding
from contextdiff_jax.training import state as state_lib
from contextdiff_jax.training.optimizer import make_optimizer
from contextdiff_jax.training.settings import check_averages
from contextdiff_jax.training.step import Guard, make_step
from contextdiff_jax.types import Batch, Params, TrainState


@dataclasses.dataclass(frozen=True)
class Setup:
    """What the loop, and a benchmark, need to run the training step of a task.

        setup = Setup.of(task)
        state, guard = setup.init_state(), setup.init_guard()
        batch = setup.put(next(setup.train_iterator()))
        step = setup.compile(batch)
        state, guard, metrics = step(state, guard, setup.frozen, batch)

    Attributes:
        task: what is trained.
        mesh: the devices.
        runtime: whose devices they are.
        optimizer: the update rule.
        abstract: shapes and shardings of the state.
        fixed: shapes and shardings of the parameters that `train.trainable` leaves out.
    """

    task: Any
    mesh: Mesh
    runtime: Runtime
    optimizer: optax.GradientTransformation
    abstract: TrainState
    fixed: Params

    @classmethod
    def of(cls, task: Any, runtime: Runtime | None = None) -> "Setup":
        """Checks that batch, mesh, sharding rules and optimizer fit the task and the devices.

        Args:
            task: what is trained.
            runtime: for which devices; None takes this machine's.

        Raises:
            UserError: they do not.
        """
        config, runtime = task.config, runtime or here()
        check_averages(config)
        mesh = sharding.make_mesh(config.mesh, runtime)
        sharding.check_batch(mesh, config.data.batch_size, config.optim.accum_steps)
        if not runtime.described:
            sharding.data_shard(mesh, config.data.batch_size)
        everything = jax.eval_shape(task.init, state_lib.stream(config.seed, "init"))
        params, fixed = _split(everything, config.train.trainable)
        optimizer = make_optimizer(config, params)
        shapes = state_lib.abstract_state(optimizer, params)
        places = state_lib.state_shardings(shapes, optimizer, config.sharding.rules, mesh)
        abstract = spec_of(shapes, places)
        fixed = spec_of(fixed, sharding.tree_shardings(fixed, config.sharding.rules, mesh))
        return cls(task, mesh, runtime, optimizer, abstract, fixed)

    @property
    def shardings(self) -> TrainState:
        """Where every leaf of the state lies."""
        return jax.tree.map(lambda x: x.sharding, self.abstract)

    @property
    def frozen_spec(self) -> Params:
        """Shapes and shardings of `frozen`."""
        frozen = spec_of(self.task.frozen, self._frozen_places)
        if hasattr(self.task, "computed_spec"):
            frozen |= spec_of(self.task.computed_spec(frozen), sharding.replicated(self.mesh))
        return frozen | {"fixed": self.fixed} if self.fixed else frozen

    @property
    def _frozen_places(self) -> Any:
        return sharding.tree_shardings(self.task.frozen, self.task.config.sharding.rules, self.mesh)

    @cached_property
    def frozen(self) -> Params:
        """The frozen parameters on the devices, by the same rules as the trained ones: the encoders', what is computed
        from them once, and under "fixed" those of the networks that are not trained."""
        frozen = sharding.put_tree(self.task.frozen, self._frozen_places)
        if hasattr(self.task, "computed"):
            whole = sharding.replicated(self.mesh)
            more = self.task.computed(frozen, whole)
            frozen |= sharding.put_tree(more, jax.tree.map(lambda _: whole, more))
        if not self.fixed:
            return frozen
        places = jax.tree.map(lambda x: x.sharding, self.fixed)
        return frozen | {"fixed": state_lib.initial_params(self.task, places, self.task.config.seed)}

    def init_state(self) -> TrainState:
        """The state at step 0."""
        places = self.shardings
        params = state_lib.initial_params(self.task, places.params, self.task.config.seed)
        return state_lib.init_state(params, self.optimizer, places)

    def init_guard(self) -> Guard:
        """A guard that has seen nothing, with the key of the config's seed."""
        guard = self._clear_guard()
        return sharding.put_tree(guard, jax.tree.map(lambda _: sharding.replicated(self.mesh), guard))

    def _clear_guard(self) -> Guard:
        return Guard.clear(self.task.config.data.batch_size, self.task.config.seed)

    def train_iterator(self) -> Iterator[dict[str, np.ndarray]]:
        """This process's rows of the batches.

        Raises:
            UserError: the processes do not see the same records.
        """
        return distributed.the_same(lambda: self.task.train_iterator(*self.shard), _records)

    def held_out_batches(self) -> tuple[str, Iterator[dict[str, np.ndarray]]]:
        """(split, the same of the held-out records), of a task that has some; errors as `train_iterator`."""
        return distributed.the_same(lambda: self.task.held_out_batches(*self.shard), lambda found: _records(found[1]))

    @property
    def shard(self) -> tuple[int, int]:
        """Which block of every batch this process reads, see `sharding.data_shard`."""
        return sharding.data_shard(self.mesh, self.task.config.data.batch_size)

    def put(self, batch: dict[str, np.ndarray]) -> Batch:
        """The global batch on the devices, from every process's own rows."""
        return sharding.put_batch(batch, self.mesh)

    def lower(self, batch_spec: Batch, frozen_spec: Params) -> jax.stages.Lowered:
        """The training step traced for batches and frozen parameters of these shapes, ready to be compiled for the
        runtime; it takes state and guard for itself (donation).

        Args:
            batch_spec: arrays, or their shapes with shardings (`spec_of`).
            frozen_spec: the same for `frozen`.
        """
        with in_use(self.runtime):
            return self._traced(batch_spec, frozen_spec).lower()

    def flops(self, batch_spec: Batch, frozen_spec: Params) -> float:
        """Floating-point operations of a step on each device (`contextdiff_jax.flops`)."""
        # A GPU's fused kernels cannot be looked into; without its capability there are none.
        with in_use(dataclasses.replace(self.runtime, capability=0.0)):
            return flops.counted(self._traced(batch_spec, frozen_spec)) / len(self.runtime.devices)

    def _traced(self, batch_spec: Batch, frozen_spec: Params) -> jax.stages.Traced:
        whole = sharding.replicated(self.mesh)
        guard = spec_of(jax.eval_shape(self._clear_guard), whole)
        step = jax.jit(
            make_step(self.task, self.optimizer, self.mesh),
            donate_argnums=(0, 1),
            out_shardings=(self.shardings, whole, whole),
        )
        return step.trace(self.abstract, guard, frozen_spec, batch_spec)

    def compile(self, batch: Batch) -> jax.stages.Compiled:
        """The training step for batches of this shape."""
        return self.lower(batch, self.frozen).compile()


def _records(batches: Any) -> str:
    """The identity of the records behind an iterator."""
    return str(batches.get_state().get("records", ""))


def spec_of(tree: Any, places: Any) -> Any:
    """Shapes and shardings of arrays or shapes; `places` is one sharding for all, or a tree of them."""
    if isinstance(places, jax.sharding.Sharding):
        places = jax.tree.map(lambda _: places, tree)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, places)


def _split(params: Params, patterns: Any) -> tuple[Params, Params]:
    """(trained parameters, the others) by the regular expressions of `train.trainable`.

    Raises:
        UserError: a pattern that is none, or that matches no parameter.
    """
    names = trees.names(params)
    for pattern in patterns:
        try:
            found = any(re.search(pattern, name) for name in names)
        except (re.error, TypeError) as error:
            raise UserError(f"config.train.trainable: {pattern!r} is no regular expression: {error}") from error
        if not found:
            raise UserError(
                f"config.train.trainable: {pattern!r} matches no parameter; names are like {names[0]} and {names[-1]}"
                + ("; without an adapter leave it out" if "adapter" in pattern else "")
            )
    trained, fixed = trees.split(params, patterns)
    if not trained:
        raise UserError("config.train.trainable is empty; ('.*',) trains everything")
    return trained, fixed
