"""Every method, with and without the adapter, on any clip through a small random Stable Diffusion: mechanics.

    python -m tests.editing.every_method clip.mp4 'a jeep on a road' 'a car on a road' --out=/tmp/shown

Pictures of random weights mean nothing; what is seen is that every preset tunes, inverts, edits and writes, that what
it writes is finite and no two of them are alike. Takes minutes.
"""

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import conftest  # noqa: E402, F401  (compiles quickly)
import diffusers  # noqa: E402
import editing_helpers  # noqa: E402
import stable_diffusion_helpers as helpers  # noqa: E402
from diffusers_helpers import randomised  # noqa: E402

from contextdiff_jax import command_line  # noqa: E402
from contextdiff_jax.editing.methods import METHODS  # noqa: E402
from contextdiff_jax.editing.plan import needs_words  # noqa: E402

CASES = (*METHODS, "controlvideo with edges", "contextdiff+style", "contextdiff+background")


def save_models(folder: Path) -> tuple[Path, Path]:
    """A random Stable Diffusion and a ControlNet that fits it."""
    helpers.save_pipeline(folder / "sd", max_length=77, text=helpers.TEXT | dict(max_position_embeddings=77))
    names = ("block_out_channels", "layers_per_block", "down_block_types", "cross_attention_dim", "norm_num_groups")
    sizes = {name: helpers.UNET[name] for name in names} | dict(attention_head_dim=4)
    net = diffusers.ControlNetModel(**sizes, conditioning_embedding_out_channels=(4, 8))
    randomised(net, seed=0).save_pretrained(folder / "control")
    return folder / "sd", folder / "control"


def run(case: str, adapter: bool, args: argparse.Namespace, models: tuple[Path, Path], workdir: Path) -> None:
    """Tunes for two steps and edits, as the command line does."""
    method, _, edges = case.partition(" with ")
    config = editing_helpers.config_of(models[0], method, data__path=args.clip, data__caption=args.source)
    config.adapter.enabled, config.data.num_frames, config.data.sampling_rate = adapter, args.frames, 1
    config.edit.control = str(models[1]) if edges else ""
    with config.edit.ignore_type():
        config.edit.blend_words = tuple(args.blend) if needs_words(config.edit) else ()
    options = command_line.Options(str(workdir), tuple(args.targets), compilation_cache="auto")
    command_line.run("train", config, options)


def check(folder: Path, targets: list[str]) -> None:
    """What was written is there and finite."""
    for name in ("edit.mp4", "edit.gif", "edit.png", *(f"edit-{i + 1}.mp4" for i in range(len(targets)))):
        assert (folder / name).stat().st_size > 0, name
    rows = json.loads((folder / "edit.json").read_text())["rows"]
    assert set(targets) < set(rows) and len(rows) == len(targets) + 3
    for row, figures in rows.items():
        assert all(math.isfinite(value) for value in figures.values()), (row, figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", help="a folder of frames or a video")
    parser.add_argument("source", help="what it shows")
    parser.add_argument("targets", nargs="+", help="edited prompts")
    parser.add_argument("--blend", nargs="*", default=[], help="words of the source prompt that make the mask")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--out", default="", help="where runs are kept; default: nowhere")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        models, out = save_models(Path(temporary)), Path(args.out or temporary)
        for case in args.cases.split(","):
            for adapter in (True, False):
                workdir = out / f"{case.replace(' ', '-')}-{'adapter' if adapter else 'plain'}"
                run(case, adapter, args, models, workdir)
                check(workdir / "edit", args.targets)
                print(f"{case}, {'with' if adapter else 'without'} the adapter: written", flush=True)


if __name__ == "__main__":
    main()
