"""How well an inversion leads back: PSNR of embedded clips sampled again under their own prompt, by steps and adapter.

    python -m docs.video.reconstruction                                    # minutes on two CPU cores
    python -m docs.video.reconstruction --clips=9 --steps=10,20 --arms=off,shipped

Neither guidance nor control, float32. The autoencoder alone is the ceiling; "from the latents" is the error of the
process alone, against the autoencoder's pictures. Arms: the adapter switched `off`; `random`, drawn so that every part
acts; `shipped`, trained on images; and after one-shot tuning on the clip `tuned`, or tuned and then switched off
(`tuned_off`). Tunings are those of docs/video/run.py, which are kept.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from contextdiff_jax import task as task_lib
from contextdiff_jax.compilation import keep_programs
from contextdiff_jax.data.one_clip import clip_of
from contextdiff_jax.editing import figures
from contextdiff_jax.editing.editor import Editor
from contextdiff_jax.editing.result import AUTOENCODER, INVERSION, SOURCE
from contextdiff_jax.pipeline import Pipeline
from contextdiff_jax.training.state import initial_params, stream
from contextdiff_jax.types import Params
from docs import scripts
from docs.video.run import CLIPS as RUN_CLIPS
from docs.video.run import RUNS, chosen, config_of, tuned

ARMS = ("off", "random", "shipped", "tuned", "tuned_off")
STEPS = (10, 20, 50)
CLIPS = (9, 15, 17)


def drawn(adapter: Params, seed: int) -> Params:
    """An adapter of the same shapes in which no part is zero, so that its shift is large."""
    rng = np.random.default_rng(seed)

    def draw(path: tuple, leaf: Any) -> np.ndarray:
        noise = rng.normal(size=leaf.shape).astype(np.float32)
        if path[-1].key == "scale":
            return 1.0 + 0.1 * noise
        return 0.1 * noise if leaf.ndim < 2 else noise / np.float32(np.sqrt(np.prod(leaf.shape[:-1])))

    return jax.tree_util.tree_map_with_path(draw, adapter)


def model_of(arm: str, config: ConfigDict, runs: Path) -> tuple[Any, Params, Params]:
    """(task, parameters, frozen parameters) of an arm."""
    if arm.startswith("tuned"):
        pipeline = Pipeline.load(tuned(config, runs), config=config)
        return pipeline.task, pipeline.params, pipeline.frozen
    task = task_lib.build(config)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    expected = jax.eval_shape(task.init, stream(config.seed, "init"))
    params = initial_params(task, jax.tree.map(lambda _: place, expected), config.seed)
    if arm == "random":
        params = params | {"adapter": jax.device_put(drawn(params["adapter"], config.seed))}
    return task, params, jax.device_put(task.frozen)


def measured(arm: str, index: int, steps: Sequence[int], frames: int, runs: Path) -> dict[int, dict[str, float]]:
    """{steps: figures} of an arm on the first frames of a clip: PSNR in dB of pixels against the clip and, from the
    latents, against the autoencoder's pictures."""
    config = config_of("inversion", "adapter", index, 0, **{"data.num_frames": frames, "data.overlap": 1})
    task, params, frozen = model_of(arm, config, runs)
    found = {}
    for count in steps:
        asked = ConfigDict(config.to_dict())
        asked.sample.num_steps, asked.sample.adapter = count, not arm.endswith("off")
        editor = Editor(task, params, frozen, clip_of(config.data), asked, progress=False)
        arrays = editor.run([]).arrays
        against = {"psnr": SOURCE, "from_latents": AUTOENCODER}
        found[count] = {name: figures.psnr(arrays[INVERSION], arrays[bound]) for name, bound in against.items()}
        found[count]["autoencoder"] = figures.psnr(arrays[AUTOENCODER], arrays[SOURCE])
        print(f"{arm}, clip {index}, {count} steps: {found[count]}", flush=True)
    return found


def lines(found: dict[str, list[dict[int, dict[str, float]]]], steps: Sequence[int]) -> list[str]:
    """A table: for each arm the mean over clips at each number of steps, and in brackets that from the latents.

    Args:
        found: {arm: what `measured` gives for each clip}.
        steps: the columns.
    """
    mean = lambda runs, count, name: np.mean([run[count][name] for run in runs])
    table = ["| adapter | " + " | ".join(f"{count} steps" for count in steps) + " | autoencoder alone |"]
    table.append("|-" * (len(steps) + 2) + "|")
    for arm, runs in found.items():
        cells = [f"{mean(runs, n, 'psnr'):.2f} ({mean(runs, n, 'from_latents'):.2f})" for n in steps]
        table.append(f"| {arm} | {' | '.join(cells)} | {mean(runs, steps[0], 'autoencoder'):.2f} |")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--clips", default=",".join(map(str, CLIPS)), help="of docs/video/run.py")
    parser.add_argument("--steps", default=",".join(map(str, STEPS)))
    parser.add_argument("--frames", type=int, default=8)
    args = parser.parse_args()
    keep_programs("auto")
    steps, indices = [int(n) for n in args.steps.split(",")], chosen("clips", args.clips, tuple(RUN_CLIPS))
    arms = chosen("arms", args.arms, ARMS)
    found = {arm: [measured(arm, i, steps, args.frames, RUNS) for i in indices] for arm in arms}
    print("\n".join(lines(found, steps)))


if __name__ == "__main__":
    scripts.run(main)
