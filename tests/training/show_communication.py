"""Prints what eight simulated devices tell one another in the programs of `:tiny`: for test_communication.py."""

import dataclasses
import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from configs import t2i  # noqa: E402
from contextdiff_jax import task as task_lib  # noqa: E402
from contextdiff_jax.training import Setup, sharding  # noqa: E402
from contextdiff_jax.training.setup import spec_of  # noqa: E402

BATCH = 256  # activations larger than the weights and smaller than the table, as in training: what is smaller is sent
COLLECTIVE = re.compile(r"= (\S+) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")


def show(name: str, function, *args) -> None:
    """One line per collective: the program, what it does, the shape."""
    text = jax.jit(function).lower(*args).compile().as_text()
    for shape, what in sorted(set(COLLECTIVE.findall(text))):
        print(name, what, shape)


def shift_of(task, features):
    """The two shifts, with the features as they are."""

    def pair(params, frozen, context, x0, t):
        shift = dataclasses.replace(task.shift(params, frozen, context), features=lambda _: features)
        return shift.pair(x0, t, t - 1)

    return pair


task = task_lib.build(t2i.get_config("tiny"), weights=False)
for name, data, fsdp in (("encode", 4, 2), ("pair", 8, 1)):
    task.config.mesh.data, task.config.mesh.fsdp = data, fsdp
    setup = Setup.of(task)
    rows = jax.sharding.NamedSharding(setup.mesh, sharding.ROWS)
    frozen, params = setup.frozen_spec, setup.abstract.params
    tokens = jax.tree.map(jnp.asarray, task.parts.condition.empty(BATCH))
    condition = spec_of(tokens, rows)
    if name == "encode":
        show(name, task.encode, params, frozen, condition)
        continue
    x0 = spec_of(jax.ShapeDtypeStruct((BATCH, *task.sample_shape), jnp.float32), rows)
    context = spec_of(jax.eval_shape(task.encode, params, frozen, condition), rows)
    features = spec_of(jax.eval_shape(task._features, frozen, x0), rows)
    t = spec_of(jax.ShapeDtypeStruct((BATCH,), jnp.int32), rows)
    show(name, lambda f, *rest: shift_of(task, f)(*rest), features, params, frozen, context, x0, t)
print("done")
