"""Where arrays live: the device mesh, regex rules for parameters, rows of the batch."""

import math
import re
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from contextdiff_jax.errors import UserError
from contextdiff_jax.runtime import Runtime, here
from contextdiff_jax.types import Array, Batch, Params

AXES = ("data", "fsdp", "tensor")
ROWS = P(("data", "fsdp"))  # examples of a batch are split over both
Rules = Iterable[tuple[str, Any]]


def make_mesh(config: ConfigDict, runtime: Runtime | None = None) -> Mesh:
    """All devices as a mesh with the axes data, fsdp and tensor.

    Args:
        config: the config's `mesh` section; one size may be -1, which takes the devices that are left.
        runtime: whose devices; None takes this machine's.

    Raises:
        UserError: the sizes do not multiply to the number of devices.
    """
    runtime = runtime or here()
    sizes, count = [config[axis] for axis in AXES], len(runtime.devices)
    given = ", ".join(f"mesh.{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"{given}: sizes are positive, and at most one is -1 (the devices that are left)")
    if count % known or (-1 not in sizes and known != count):
        raise UserError(f"{given} does not fit {count} devices; the product of the sizes must be {count}")
    shape = tuple(count // known if size == -1 else size for size in sizes)
    auto = (AxisType.Auto,) * len(AXES)
    mesh = jax.make_mesh(shape, AXES, axis_types=auto, devices=runtime.devices)
    if not runtime.described and _process_rows(mesh, count) is None:
        # The fastest ring is not in the order of the processes; each must hold one block of the batch.
        devices = sorted(runtime.devices, key=lambda d: (d.process_index, d.id))
        mesh = Mesh(np.asarray(devices).reshape(shape), AXES, axis_types=auto)
    return mesh


def _process_rows(mesh: Mesh, num_rows: int) -> tuple[int, int] | None:
    """(q, Q) when this process holds block q of Q equal contiguous blocks of rows; None otherwise."""
    indices = NamedSharding(mesh, ROWS).addressable_devices_indices_map((num_rows,)).values()
    spans = sorted({index[0].indices(num_rows)[:2] for index in indices})
    start, stop = spans[0][0], spans[-1][1]
    size = stop - start
    contiguous = all(a[1] == b[0] for a, b in zip(spans[:-1], spans[1:], strict=True))
    if not contiguous or start % size or num_rows % size:
        return None
    return start // size, num_rows // size


def check_batch(mesh: Mesh, batch_size: int, accum_steps: int) -> None:
    """Raises UserError where the batch cannot be split evenly over devices and accumulation steps."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"] * accum_steps
    if batch_size % ways:
        raise UserError(
            f"config.data.batch_size={batch_size} is not divisible by {ways} "
            f"(mesh.data={mesh.shape['data']} x mesh.fsdp={mesh.shape['fsdp']} x "
            f"optim.accum_steps={accum_steps}); try {-(-batch_size // ways) * ways}"
        )


def data_shard(mesh: Mesh, batch_size: int) -> tuple[int, int]:
    """Which block of every global batch this process reads: (q, Q) for rows [q * B / Q, (q + 1) * B / Q).

    Processes that share rows (when the tensor axis spans processes) get the same answer.

    Raises:
        UserError: this process's rows are not one block.
    """
    rows = _process_rows(mesh, batch_size)
    if rows is None:
        raise UserError(f"{dict(mesh.shape)}: a process would hold scattered rows; use a smaller mesh.tensor")
    return rows


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, P())


def serving_mesh(config: ConfigDict) -> Mesh:
    """All devices for a model that is used: fsdp and tensor as far as they divide the devices, data the rest.

    A model is used on other machines than it was trained on, so nothing here need fit.
    """
    left, sizes = len(here().devices), {}
    for axis in ("tensor", "fsdp"):
        sizes[axis] = math.gcd(left if config[axis] == -1 else config[axis], left)
        left //= sizes[axis]
    return make_mesh(ConfigDict(sizes | {"data": left}))


def place(tree: Params, rules: Rules, mesh: Mesh) -> Params:
    """Parameters that every process has whole, on the mesh by the rules."""
    return put_tree(tree, tree_shardings(tree, rules, mesh))


def gather(array: Array | np.ndarray) -> np.ndarray:
    """The whole of an array, however it is split, on every process; what one process has whole is its own."""
    split = isinstance(array, jax.Array) and not array.is_fully_addressable
    return np.asarray(multihost_utils.process_allgather(array, tiled=True) if split else array)


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> Batch:
    """This process's rows, made part of the global batch."""
    rows = NamedSharding(mesh, ROWS)
    return {name: jax.make_array_from_process_local_data(rows, np.asarray(v)) for name, v in batch.items()}


def put_tree(tree: Params, shardings: Any) -> Params:
    """Host arrays that every process has whole, placed on the mesh; arrays that lie there already stay as they are."""

    def put(value: Any, sharding: NamedSharding) -> Array:
        if isinstance(value, jax.Array) and value.sharding.is_equivalent_to(sharding, value.ndim):
            return value
        value = np.asarray(value)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return jax.tree.map(put, tree, shardings)


def leaf_name(path: tuple) -> str:
    """A leaf's path as text, e.g. denoiser/down_0/kernel."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def tree_shardings(tree: Params, rules: Rules, mesh: Mesh) -> Any:
    """The sharding of every leaf: the first rule whose regex is found in the leaf's name counts.

    Args:
        tree: arrays or their shapes.
        rules: (regex, rule) pairs; a rule is "replicate", "fsdp" (the largest axis that fsdp divides), or one
            mesh axis name or None per array axis. A leaf without a rule is replicated.
        mesh: the device mesh.

    Raises:
        UserError: unknown rules, or axes that do not divide.
    """
    try:
        rules = [(re.compile(pattern), rule) for pattern, rule in rules]
    except (re.error, TypeError, ValueError) as error:
        raise UserError(f"config.sharding.rules={rules!r} must be (regex, rule) pairs: {error}") from error

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        name = leaf_name(path)
        rule = next((rule for pattern, rule in rules if pattern.search(name)), "replicate")
        return NamedSharding(mesh, _spec(name, leaf.shape, rule, mesh))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def _spec(name: str, shape: tuple[int, ...], rule: Any, mesh: Mesh) -> P:
    """The partition of one array under one rule."""
    if rule == "replicate":
        return P()
    if rule == "fsdp":
        ways = mesh.shape["fsdp"]
        fitting = [axis for axis, size in enumerate(shape) if size % ways == 0]
        if ways == 1 or not fitting:
            return P()
        largest = max(fitting, key=lambda axis: shape[axis])
        return P(*("fsdp" if axis == largest else None for axis in range(len(shape))))
    if isinstance(rule, str) or any(axis is not None and axis not in AXES for axis in rule):
        raise UserError(f"sharding rule {rule!r} is unknown; accepted: replicate, fsdp, or a tuple of {AXES} and None")
    if len(rule) != len(shape) or any(a and size % mesh.shape[a] for a, size in zip(rule, shape, strict=True)):
        raise UserError(f"sharding rule {tuple(rule)} does not fit {name} of shape {shape} on {dict(mesh.shape)}")
    return P(*rule)
