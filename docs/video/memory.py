"""What an edit needs in memory, by the compiler: against the number of steps, of frames, and through windows.

    python -m docs.video.memory                                       # the small model that ships, on this machine
    python -m docs.video.memory --model=SD --clip=CLIP --size=512 --steps=20 --frames=8 --topology=v5e:2x2

Of SD and CLIP the config.json files suffice: no weights are read, nothing is run. Figures are bytes on one device;
`peak` is the sum of arguments (parameters, and the trajectory of the inversion), temporaries and results.
"""

import argparse
import time
from collections.abc import Iterator

import jax
from ml_collections import ConfigDict

from configs import video_edit
from contextdiff_jax import task as task_lib
from contextdiff_jax.compilation import bytes_of, fitting, keep_programs
from contextdiff_jax.data.one_clip import clip_of
from contextdiff_jax.editing.editor import Editor
from contextdiff_jax.errors import UserError
from contextdiff_jax.pipeline.clip_editing import targets_of
from contextdiff_jax.runtime import described, here, in_use
from contextdiff_jax.training.state import stream
from docs import scripts


def config_of(model: str, clip: str, size: int) -> ConfigDict:
    """The default method on another model; without a `clip` the adapter has the one that ships."""
    if not model:
        return video_edit.get_config()
    config = video_edit.get_config("contextdiff")
    config.model.pretrained, config.data.image_size = model, size
    config.encoder.clip = clip or config.encoder.clip
    config.space.rgb = "decode"
    return config


def measure(config: ConfigDict, topology: str) -> Iterator[tuple[str, str]]:
    """(stage, its bytes in words) of an edit by this config; of one that does not fit the device why."""
    runtime = described(topology) if topology else here()
    task = task_lib.build(config, runtime, weights=False)
    place = jax.sharding.SingleDeviceSharding(runtime.devices[0])
    on_device = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)
    params = on_device(jax.eval_shape(task.init, stream(config.seed, "init")))
    editor = Editor(task, params, on_device(task.frozen), clip_of(config.data), config, progress=False)
    with in_use(runtime):
        for name, stage in editor.trace(targets_of(config, ())[:1]).items():
            try:
                with fitting(name, "take fewer frames or smaller ones"):
                    found = bytes_of(stage.lower().compile())
            except UserError as error:
                yield name, str(error)
            else:
                yield name, ", ".join(f"{part} {value / 1e6:.2f} MB" for part, value in found.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="folder of a Stable Diffusion; empty: the model that ships")
    parser.add_argument("--clip", default="", help="folder of its adapter's CLIP; empty: the one that ships")
    parser.add_argument("--size", type=int, default=512, help="side of the frames, with --model")
    parser.add_argument("--steps", default="10,20,50")
    parser.add_argument("--frames", default="8", help="of a window; FRAMES:LENGTH for longer clips in windows")
    parser.add_argument("--topology", default="", help="such as v5e:2x2, which needs libtpu; empty: this machine")
    args = parser.parse_args()
    keep_programs("auto")
    for frames in args.frames.split(","):
        for steps in map(int, args.steps.split(",")):
            config = config_of(args.model, args.clip, args.size)
            window, _, length = frames.partition(":")
            config.data.num_frames, config.data.length, config.sample.num_steps = int(window), int(length or 0), steps
            start = time.perf_counter()
            for stage, said in measure(config, args.topology):
                print(f"{frames} frames, {steps} steps, {stage}: {said}", flush=True)
            print(f"compiled in {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    scripts.run(main)
