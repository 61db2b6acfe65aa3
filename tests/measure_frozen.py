"""Builds a task around a large text encoder and prints how much memory that took at most, beside its parameters.

Run by test_frozen_memory.py in a process of its own, on eight simulated devices: `python measure_frozen.py FOLDER`.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from configs import t2i
from contextdiff_jax import task as task_lib
from contextdiff_jax.encoders import ASSETS, T5, t5
from contextdiff_jax.training.setup import Setup
from contextdiff_jax.training.sharding import make_mesh
from tests.formats.measure_memory import measured

SIZES = dict(vocab_size=512, d_model=1024, d_kv=64, d_ff=4096, num_layers=3, num_heads=16)


def write(folder: Path) -> int:
    """Writes a T5 encoder; returns how many parameters it has."""
    encoder = T5(t5.T5Config.from_dict({"model_type": "t5"} | SIZES), None, ASSETS / "clip_mini", 16)
    params = jax.jit(encoder.init)(jax.random.key(0))
    encoder.save(folder, params)
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def main(folder: Path) -> None:
    count = write(folder)
    config = t2i.get_config("tiny")
    config.model.dtype, config.mesh.fsdp = "bfloat16", 8
    build = lambda: task_lib.build(config, mesh=make_mesh(config.mesh))
    build()  # what is imported only once
    config.condition.encoder = str(folder)
    task, more = measured(build, 2 * count)
    leaves = jax.tree.leaves(task.frozen["condition"])
    assert all(leaf.dtype == jnp.bfloat16 for leaf in leaves)
    on_one = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    placed = Setup.of(task).frozen["condition"]
    copied = any(a is not b for a, b in zip(jax.tree.leaves(placed), leaves, strict=True))
    print(json.dumps(dict(float32=4 * count, more=more, on_one=on_one, copied=copied)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
