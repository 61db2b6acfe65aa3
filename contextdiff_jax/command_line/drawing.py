"""The modes that draw: pictures, and heatmaps of the words of a prompt."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from contextdiff_jax.command_line import shared
from contextdiff_jax.command_line.options import Options
from contextdiff_jax.data import captions_on_disk
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import atomic, read_text, text_lines, user_path, write_json

NAME = "{:04d}.png"  # of a picture


def sample(config: ConfigDict | None, options: Options) -> None:
    """Draws the prompts, writes every picture when it is there, and at the end their captions, as folders of training
    pictures have them, and a grid. How they were drawn is in sample.json."""
    from contextdiff_jax.pipeline.places import check_place, home_of
    from contextdiff_jax.pipeline.requests import as_array, read_size, strength_of
    from contextdiff_jax.training.distributed import is_primary, together

    with together():
        place = check_place(options.out, home_of(options.workdir) / "samples")
    # Without a config the model must be read before the rest can be checked against its own.
    pipeline = shared.pipeline_of(None, options) if config is None else None
    config = pipeline.config if config is None else config
    with together():
        prompts = asked_for(config, options)
        size = read_size(options.size) if options.size else None
        start: dict[str, Any] = {"size": size, "strength": options.strength}
        strength_of(options.strength, config.sample.num_steps, bool(options.image))
        if options.image:
            as_array(options.image, size or (config.data.image_size,) * 2)
            start["image"] = options.image
        if options.negative:
            start["negative"] = options.negative
    pipeline = pipeline or shared.pipeline_of(config, options)
    with together():
        batches = pipeline.stream(prompts, key=options.seed, **start)  # draws nothing yet; faults leave no folder
        out = None
        if is_primary():
            name = f"step-{pipeline.step}-seed-{options.seed}"
            out = shared.make_folder(place if options.out else shared.unused(place / name))
            write_json(_how(pipeline, prompts, options), out / "sample.json")
    _write_pictures(pipeline, prompts, batches, out)


def _how(pipeline: Any, prompts: list[Any] | int, options: Options) -> dict[str, Any]:
    """How pictures were drawn: what it takes to draw them again, beside their captions."""
    from contextdiff_jax.pipeline.requests import strength_of

    config, asked = pipeline.config, {name: getattr(options, name) for name in ("negative", "size", "image")}
    if options.image:
        asked["strength"] = strength_of(options.strength, config.sample.num_steps, True)
    if isinstance(prompts, int):
        asked["num_samples"] = prompts
    elif config.condition.kind == "layout":  # whose captions are words
        asked["layout"] = prompts
    of_model = {"model": options.workdir, "step": pipeline.step, "seed": options.seed}
    return of_model | {"sample": config.sample.to_dict()} | {k: v for k, v in asked.items() if v}


def _write_pictures(pipeline: Any, prompts: list[Any] | int, batches: Iterable[Any], out: Path | None) -> None:
    """Writes the pictures of a stream batch by batch, then their captions and a grid of the first; without a folder it
    draws alone."""
    from contextdiff_jax.pictures import GRID, IN_GRID, caption_grid, to_uint8
    from contextdiff_jax.progress import Progress

    captions = pipeline.task.parts.captions(prompts) if isinstance(prompts, list) else [str(i) for i in range(prompts)]
    of_words = captions if isinstance(prompts, list) else []  # numbers are no captions
    shown, written = [], 0
    try:
        with Progress("sampling", len(captions), "img", before="compiling") as progress:
            for drawn in progress.each(batches):
                pixels = to_uint8(drawn.whole())
                for row, image in zip(drawn.rows, pipeline.to_images(pixels), strict=True):
                    if out is not None:
                        with atomic(out / NAME.format(row)) as temporary:
                            image.save(temporary)
                        written += 1
                shown += list(pixels[: IN_GRID - len(shown)])
                progress.update(len(pixels))
    except KeyboardInterrupt:
        if out is not None:
            _write_captions(of_words[:written], out)
            print(f"{written} of {len(captions)} pictures are in {out}" if written else "no picture was finished")
        raise
    if out is None:
        return
    _write_captions(of_words, out)
    grid = np.stack(shown)
    if pipeline.config.condition.kind == "layout":
        from contextdiff_jax.evaluate.conditions import with_boxes

        grid = with_boxes(grid, prompts[: len(grid)])
    caption_grid(grid, captions[: len(grid)], out / GRID)
    which = "all of them" if len(grid) == len(captions) else f"the first {len(grid)}"
    print(f"{len(captions)} pictures in {out}; {which} with their captions: {out / GRID}")


def _write_captions(captions: Sequence[str], out: Path) -> None:
    """The table that measures, studies and trainings read the captions of a folder from; none without captions."""
    if not captions:
        return
    lines = [json.dumps({"file_name": NAME.format(row), "text": text}) for row, text in enumerate(captions)]
    with atomic(out / captions_on_disk.TABLES[0]) as temporary:
        temporary.write_text("\n".join([*lines, ""]), encoding="utf-8")


def heatmaps(config: ConfigDict | None, options: Options) -> None:
    """Draws prompts with a heatmap of each word, with the adapter on and off; of a run tuned on a clip, the clip."""
    from contextdiff_jax.evaluate.heat_pictures import write_heatmaps
    from contextdiff_jax.pipeline.places import check_place, home_of

    shared.check_alone("--mode=heatmaps", "run it in one")
    home = home_of(options.workdir)
    place = check_place(options.out, home / "heatmaps")
    pipeline = shared.pipeline_of(config, options)
    if pipeline.config.condition.kind != "text":
        kind = pipeline.config.condition.kind
        raise UserError(f"--mode=heatmaps shows where words look, but config.condition.kind={kind!r} has no words")
    of_a_clip = pipeline.config.data.source == "clip"
    if of_a_clip and (options.prompts or options.prompts_file or options.num_samples):
        raise UserError("--prompt cannot act: of a run that was tuned on a clip, the clip's own prompt is shown")
    prompts = [] if of_a_clip else asked_for(pipeline.config, options)
    out = shared.make_folder(place if options.out else shared.unused(place))
    about = write_heatmaps(pipeline, prompts, out, key=options.seed)
    for name, row in about["shares"].items():
        share, mask = (f"{row[k]:.3f} +- {row[k + '_stderr']:.3f}" for k in ("heat_in_mask", "mask_of_picture"))
        print(f"{name:40s} {share} of the heat on the object, which is {mask} of the picture  (n = {row['n']})")
    print(f"{len(about['pictures'])} pictures and heatmaps.json in {out}")
    if not options.out and (home / "config.json").is_file():
        shared.write_page(home)


def asked_for(config: ConfigDict, options: Options) -> list[str] | int:
    """Every prompt as often as asked; for a model that takes no prompt, how many pictures.

    Raises:
        UserError: no prompt, an empty one, a negative number, or prompts where none are taken.
    """
    from contextdiff_jax.pipeline.requests import check_prompts, read_layouts

    if options.num_samples < 0:
        raise UserError(f"--num_samples={options.num_samples} is negative; give how many pictures of each prompt")
    prompts = list(options.prompts) + read_prompts(options.prompts_file)
    if config.condition.kind == "layout":
        if prompts:
            raise UserError("--prompt is given, but this model draws layouts; use --layout=FILE.json instead")
        return [layout for layout in read_layouts(options.layout) for _ in range(options.num_samples or 1)]
    if options.layout:
        raise UserError("--layout is given, but config.condition.kind is no 'layout'; use --prompt instead")
    if config.condition.kind != "none":
        check_prompts(prompts)
        return [prompt for prompt in prompts for _ in range(options.num_samples or 1)]
    if prompts:
        raise UserError("--prompt is given, but config.condition.kind='none' takes none; use --num_samples=16 instead")
    return options.num_samples or 16


def read_prompts(path: str) -> list[str]:
    """The lines of a text file; "" reads nothing.

    Raises:
        UserError: the file is missing or no text, or has an empty line before its end.
    """
    if not path:
        return []
    if not user_path(path).exists():
        raise UserError(f"prompts file {path!r} does not exist; give a text file with one prompt per line")
    lines = text_lines(read_text(path).rstrip())
    for i, line in enumerate(lines):
        if not line.strip():
            raise UserError(f"{path} line {i + 1} is empty; every line is one prompt")
    return lines
