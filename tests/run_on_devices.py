"""Samples, measures the bound and exports a tiny model on as many devices as XLA_FLAGS makes; says what lay where."""

import sys
from pathlib import Path

import jax
import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

from test_stored_figures import PROMPTS, shaken  # noqa: E402

import contextdiff_jax as cdx  # noqa: E402
from configs import t2i  # noqa: E402
from contextdiff_jax import export  # noqa: E402
from contextdiff_jax import task as task_lib  # noqa: E402
from contextdiff_jax.evaluate import suite  # noqa: E402


def main(out: Path) -> None:
    """Writes arrays.npz and an export into `out`."""
    config = t2i.get_config("tiny")
    config.mesh.fsdp = 2
    config.sample.update(num_steps=2, sampler="ddpm")
    task = task_lib.build(config)
    pipe = cdx.Pipeline(task, shaken(task.init(jax.random.key(0))), 0)
    drawn = list(pipe.stream([*PROMPTS, *PROMPTS], key=5))
    bound = suite._bits_per_dim(pipe, 0)[0]["adapter on"]
    export.write(task, pipe.params, 0, out / "export")
    again = cdx.Pipeline.load(out / "export").sample_arrays(PROMPTS, key=5)
    pictures = np.concatenate([d.whole() for d in drawn])
    np.savez(out / "arrays.npz", pictures=pictures, again=again, bound=[bound["diffusion"], bound["reconstruction"]])
    used = {len(d.images.sharding.device_set) for d in drawn}
    split = sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(pipe.params))
    print(f"devices {used}, rows on each {drawn[0].images.addressable_shards[0].data.shape[0]}, split {split > 0}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
