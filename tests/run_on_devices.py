"""Samples, evaluates and exports a tiny model on as many devices as XLA_FLAGS makes; says what lay where.

    python run_on_devices.py OUT                        one process
    python run_on_devices.py OUT HOST:PORT N I          process I of N, which do not export
"""

import sys
from pathlib import Path

import jax
import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

from test_stored_figures import PROMPTS, shaken  # noqa: E402

import contextdiff_jax as cdx  # noqa: E402
from configs import t2i  # noqa: E402
from contextdiff_jax import task as task_lib  # noqa: E402
from contextdiff_jax.evaluate import suite  # noqa: E402
from contextdiff_jax.pipeline import export  # noqa: E402
from contextdiff_jax.pipeline.pipeline import _with_untrained  # noqa: E402
from contextdiff_jax.training import initialize_distributed  # noqa: E402
from contextdiff_jax.training.sharding import serving_mesh  # noqa: E402


def figures_of(found: dict) -> dict[str, np.ndarray]:
    """Of an evaluation with the adapter on: the terms of the bound, distances and the share that is recognised."""
    bound, setting = found["bits_per_dim"]["adapter on"], "adapter on"
    space = found["spaces"]["clip clip_mini"][setting]["figures"]
    distances = [found["judge_features"][setting]["frechet"], *(space[m][m] for m in ("kernel_distance", "cmmd"))]
    recognised = [row["both"] for name, row in found["alignment"].items() if name.endswith(setting)]
    return {
        "bound": np.array([bound["diffusion"], bound["reconstruction"]]),
        "distances": np.array([*distances, space["clip_score"]["clip_score"]]),
        "recognised": np.array(recognised),
    }


def main(out: Path) -> None:
    """Writes the arrays of this process and an export into `out`."""
    config = t2i.get_config("tiny")
    config.mesh.fsdp = 2
    config.model.multipliers = (1,)
    config.model.self_attention_levels = config.model.cross_attention_levels = (0,)
    config.sample.update(num_steps=2, sampler="ddpm")
    config.eval.update(num_samples=12, bpd_always=True)
    config.eval.features = ("clip:builtin:clip_mini",)
    task = task_lib.build(config, mesh=serving_mesh(config.mesh))
    pipe = cdx.Pipeline(task, shaken(task), 0)
    drawn = list(pipe.stream([*PROMPTS, *PROMPTS], key=5))
    found = suite.evaluate_run(pipe, out / "evaluated")
    arrays = {"pictures": np.concatenate([d.whole() for d in drawn])} | figures_of(found)
    if jax.process_count() == 1:
        export.write(task, pipe.params, 0, out / "export")
        arrays["again"] = cdx.Pipeline.load(out / "export").sample_arrays(PROMPTS, key=5)
    np.savez(out / f"arrays-{jax.process_index()}.npz", **arrays)
    used = {len(d.images.sharding.device_set) for d in drawn}
    fixed = _with_untrained(task, {"denoiser": jax.eval_shape(task.init, jax.random.key(0))["denoiser"]}, {})
    split = [any(not v.sharding.is_fully_replicated for v in jax.tree.leaves(p)) for p in (pipe.params, fixed)]
    print(f"devices {used}, rows on each {drawn[0].images.addressable_shards[0].data.shape[0]}, split {split}")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        initialize_distributed(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    main(Path(sys.argv[1]))
