"""Edits embedded clips by every method, with and without the adapter; what is stored already is not run again.

    python -m docs.video.run                                              # everything that is missing
    python -m docs.video.run --seeds=0 --clips=9,15 --methods=contextdiff,ddim --arms=adapter,plain

Arms: with the `adapter`; without it, `plain`; and without it on a base model that never had one, `never`: the model
that ships was trained together with its adapter, and so loses by its absence what another model would not
(docs/video/base.py trains that base where it is needed). Methods that tune the same network share its tuning; a stopped
run continues. docs/video/table.py makes the table, launch/video_study.sh does both.
"""

import argparse
import hashlib
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs import video_edit
from contextdiff_jax import config as config_lib
from contextdiff_jax.compilation import keep_programs
from contextdiff_jax.data.moving import moving
from contextdiff_jax.data.one_clip import clip_of
from contextdiff_jax.editing.editor import Editor
from contextdiff_jax.editing.methods import METHODS
from contextdiff_jax.editing.plan import needs_words
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import write_json
from contextdiff_jax.pipeline import Pipeline
from docs import scripts
from docs.video import base

RESULTS, RUNS = Path(__file__).parent / "results", Path("runs/video_study")
PLAIN = RUNS / "plain"  # where the base is made that never had an adapter
SEEDS = (0, 1, 2)
ARMS = ("adapter", "plain", "never")
# Embedded clips, and the object and the background that are asked for: what the small model that ships draws legibly.
CLIPS: dict[int, tuple[str, str]] = {
    9: ("pumpkin", "purple"),  # a red apple on green
    15: ("frog", "green"),  # a pumpkin on blue
    17: ("red apple", "purple"),  # a frog on yellow
    7: ("blue heart", "red"),  # a pumpkin on green
    5: ("red apple", "green"),  # a frog on white
    12: ("red apple", "green"),  # a bear on yellow
}


def targets_of(index: int) -> dict[str, str]:
    """{kind of edit: prompt} of a clip: another object, another background, both."""
    scene, vocab = moving("demo", index).scene, moving("demo", index).vocab
    object_, background = CLIPS[index]
    o, b = vocab.objects.index(object_), vocab.backgrounds.index(background)
    pairs = dict(object=(o, scene.background), background=(scene.objects[0], b), both=(o, b))
    return {kind: vocab.caption(*pair) for kind, pair in pairs.items()}


def recipes_of(method: str, index: int) -> list[tuple[str, dict[str, Any], tuple[str, ...]]]:
    """(preset, what else is set, kinds of edit). Where a method has a mask of words, another background is asked for
    outside the object's words, and both of them without a mask, where the shares of the steps stay the method's."""
    if not needs_words(video_edit.get_config(method).edit):
        return [(method, {}, ("object", "background", "both"))]
    scene, vocab = moving("demo", index).scene, moving("demo", index).vocab
    outside = {"edit.mask": "outside", "edit.blend_words": (vocab.objects[scene.objects[0]],)}
    unmasked = {"edit.self_blend": False, "edit.latent_blend": ()}
    return [(method, {}, ("object",)), (method, outside, ("background",)), (method, unmasked, ("both",))]


def config_of(preset: str, arm: str, index: int, seed: int, **changed: Any) -> ConfigDict:
    """The recipe of one run; `changed` are keys of it."""
    config = video_edit.get_config(f"{preset}+demo")
    config.adapter.enabled, config.data.index, config.seed = arm == "adapter", index, seed
    if arm == "never":
        config.model.pretrained, config.adapter.start = str(PLAIN / "model"), ""
    config.update_from_flattened_dict(changed)
    config_lib.check(config)
    return config


def tuned(config: ConfigDict, runs: Path) -> Path:
    """The folder of the run that was tuned as this config says; methods that only edit differently share it."""
    tuning = {name: section for name, section in config.to_dict().items() if name not in ("edit", "sample", "preset")}
    return base.trained(config, runs / hashlib.sha256(json.dumps(tuning, sort_keys=True).encode()).hexdigest()[:16])


def edited(config: ConfigDict, workdir: Path, targets: dict[str, str], shown: Path) -> dict[str, dict[str, float]]:
    """Figures of the edits by kind, and of the two rows that bound them; pictures go to the folder `shown`."""
    pipeline, clip = Pipeline.load(workdir, config=config), clip_of(config.data)
    editor = Editor(pipeline.task, pipeline.params, pipeline.frozen, clip, pipeline.config, progress=False)
    edit = editor.run(list(targets.values()))
    kinds = {prompt: kind for kind, prompt in targets.items()}
    edit.write(shown)
    return {kinds.get(name, name): row for name, row in edit.figures["rows"].items()}


def study(
    methods: Sequence[str], indices: Sequence[int], seeds: Sequence[int], arms: Sequence[str], results: Path, runs: Path
) -> None:
    """Runs whatever is not in the results yet, seed by seed, and stores it one by one."""
    for seed, index, arm, method in itertools.product(seeds, indices, arms, methods):
        path = results / f"{method}-{arm}-clip{index}-seed{seed}.json"
        if path.is_file():
            continue
        if arm == "never":
            base.plain_base(PLAIN)
        start, rows, targets = time.perf_counter(), {}, targets_of(index)
        for preset, changed, kinds in recipes_of(method, index):
            config = config_of(preset, arm, index, seed, **changed)
            shown = runs / "shown" / f"{path.stem}-{kinds[0]}"
            rows |= edited(config, tuned(config, runs), {kind: targets[kind] for kind in kinds}, shown)
        write_json(dict(method=method, arm=arm, clip=index, seed=seed, targets=targets, rows=rows), path)
        print(f"{path.stem}: {time.perf_counter() - start:.0f} s", flush=True)


def chosen(name: str, given: str, accepted: Sequence[Any]) -> list[Any]:
    """The values of a flag, divided by commas; empty takes all.

    Raises:
        UserError: a value that is not accepted.
    """
    by_name = {str(value): value for value in accepted}
    values = given.split(",") if given else list(by_name)
    if unknown := [value for value in values if value not in by_name]:
        raise UserError(f"--{name}={','.join(unknown)} is unknown; accepted: {', '.join(by_name)}")
    return [by_name[value] for value in values]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags = dict(methods=METHODS, clips=CLIPS, seeds=SEEDS, arms=ARMS)
    for name, accepted in flags.items():
        parser.add_argument(f"--{name}", default="", help=f"divided by commas; default {', '.join(map(str, accepted))}")
    args = parser.parse_args()
    keep_programs("auto")
    study(*(chosen(name, getattr(args, name), accepted) for name, accepted in flags.items()), RESULTS, RUNS)


if __name__ == "__main__":
    scripts.run(main)
