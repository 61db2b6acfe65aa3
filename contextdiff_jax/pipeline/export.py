"""A trained diffusion model as a folder that stands alone: written by `--mode=export`, read by `Pipeline.load`.

<folder>/contextdiff.json       the config, with paths inside the folder
<folder>/README.md              model card
<folder>/denoiser/              config.json, model.safetensors; for Stable Diffusion instead unet/ (trained),
                                text_encoder/ and tokenizer/ in the diffusers layout, and model_index.json where
                                diffusers can draw with all that, without the adapter
<folder>/adapter/               config.json, model.safetensors
<folder>/condition/             likewise, where the condition's network is trained: classes and layouts
<folder>/process/               likewise, where the schedule or the reverse variance is learned
<folder>/vae/ scheduler/        of the pretrained folder, the latter with the process that was trained on
<folder>/image_encoder/         the CLIP of config.encoder.clip, where it does not ship with the package
<folder>/condition_encoder/     likewise the text encoder, where it is another model
<folder>/controlnet/            that of edit.control, where one guided the tuning on a clip
<folder>/latent_rgb.json        the adapter's map from latents to colours, where it has one
<folder>/orbax/                 the same parameters as an Orbax checkpoint
"""

import filecmp
import itertools
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from ml_collections import ConfigDict

from contextdiff_jax import __version__, encoders
from contextdiff_jax.conditions.spaces import RGB_MAP, Latents, write_rgb_map
from contextdiff_jax.config import complete, leaves
from contextdiff_jax.encoders.text import TextEncoder
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import local_path, read_json, read_object, unique, write_json
from contextdiff_jax.formats import diffusers_format, hub, lora, pretrained
from contextdiff_jax.pipeline import pretrained_parts
from contextdiff_jax.pipeline.pretrained_parts import PIPELINE_INDEX, is_diffusers_pipeline
from contextdiff_jax.progress import Progress
from contextdiff_jax.tasks import identity, warm_start
from contextdiff_jax.tasks.diffusion import DiffusionTask
from contextdiff_jax.training.workdir import STARTS, only_started_from
from contextdiff_jax.types import Params

CONFIG = warm_start.EXPORT
# Names in an export, beside those of a pipeline's parts.
WRITTEN = {
    *(CONFIG, PIPELINE_INDEX, RGB_MAP, identity.FILE, "README.md"),
    *("denoiser", "adapter", "condition", "process", "lora", "orbax", "image_encoder", "condition_encoder"),
    *("unet", "vae", "vqvae", "scheduler", "text_encoder", "tokenizer", "controlnet"),
}
# What others put there that is of one model alone: figures, pages, and which clip is edited with it.
_OF_ONE_MODEL = re.compile(r"(clip|eval)\.json|eval|report\.(html|png)|(edit|heatmaps)(-\d+)?")
PATHS = ("model.pretrained", "encoder.clip", "condition.encoder", "space.latents", "edit.control", *STARTS)
_LISTED = 100  # classes that a model card names


def write(task: DiffusionTask, params: Params, step: int, out: str | Path, half: bool = False) -> None:
    """Writes the model, whole or not at all: it is put together beside `out` and renamed.

    Args:
        task: of the run.
        params: all parameters, {"denoiser", "adapter"}.
        step: the training step they come from.
        out: the folder; an earlier export there is replaced, and what others have put into it stays. What it tells
            of another model than this one is moved into a folder `earlier` in it.
        half: trained networks in float16 (a learned process stays float32) and no Orbax copy: the smallest folder.

    Raises:
        UserError: a folder with other content, or one that the model itself is read from.
    """
    named = local_path(out).absolute()
    out = named.resolve()  # of a link, the folder behind it
    _check_target(task.config, out)
    _put_back(out)
    building = out.with_name(f".{out.name[:80]}.{unique()}")
    try:
        building.mkdir(parents=True)
        _write(task, params, step, building, named.name, half)
        _replace(out, building)
        identity.check(out, read_config(out)[0])
    except OSError as error:
        raise UserError(f"export {named} cannot be written ({error}); give another --out") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _put_back(out: Path) -> None:
    """Puts an earlier export back where it was, if it was set aside for another that was then cut off."""
    ours = re.compile(rf"\.{re.escape(out.name)}\.[^.]+-\d+-[0-9a-f]{{8}}\.before")  # and not of NAME.more
    aside = [path for path in out.parent.glob(".*.before") if ours.fullmatch(path.name)]
    aside.sort(key=lambda path: path.stat().st_mtime)
    if aside and not out.exists():
        aside[-1].rename(out)
        logging.warning("%s is put back: the export that was to replace it was cut off", out)


def _replace(out: Path, building: Path) -> None:
    """Puts an export where it belongs; of an earlier one what no export writes stays, such as pictures, and what tells
    of another model is set aside."""
    before = out.with_name(f"{building.name}.before")
    if out.exists():
        written, told = _written(out), _told_of_another(out, building)
        out.rename(before)
    try:
        building.rename(out)
    except OSError:
        if before.exists():
            before.rename(out)
        raise
    if not before.exists():
        return
    names = itertools.chain(["earlier"], (f"earlier-{i}" for i in itertools.count(2)))
    aside = out / next(name for name in names if not (before / name).exists())
    if told:
        aside.mkdir()
        logging.warning("%s holds another model now; what was made with the one before is in %s", out, aside)
    for entry in before.iterdir():
        place = (aside if entry.name in told else out) / entry.name
        if entry.name not in written and not place.exists():
            entry.rename(place)
    shutil.rmtree(before, ignore_errors=True)


def _written(out: Path) -> set[str]:
    """What an export has of its own, with the parts that a pipeline's index names; a damaged one names none."""
    index = out / PIPELINE_INDEX
    try:
        return WRITTEN | (read_object(index).keys() if index.is_file() else set())
    except UserError:
        return WRITTEN


def _told_of_another(out: Path, building: Path) -> set[str]:
    """What lies in an export and is of its model alone, if the new one is another: not the same to the last bit."""
    told = {entry.name for entry in out.iterdir() if _OF_ONE_MODEL.fullmatch(entry.name)}
    weights = lambda at: {p.relative_to(at) for p in at.glob("*/*.safetensors") if p.parent.name in WRITTEN}
    same = lambda file: filecmp.cmp(out / file, building / file, shallow=False)
    if not told or (weights(out) == (files := weights(building)) and all(map(same, files))):
        return set()
    return told


def _check_target(config: ConfigDict, out: Path) -> None:
    """Refuses to replace anything but an export that is not in use."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file; give a folder")
    if out.is_dir() and any(out.iterdir()) and not is_export(out):
        raise UserError(f"{out} holds something that is no export; give an empty --out")
    started = only_started_from(config)
    for key, value in _paths(config).items():
        if key not in started and hub.local(value).resolve().is_relative_to(out.resolve()):
            raise UserError(f"the model is read from {out} itself (config.{key}={value}); give another --out")


def _paths(config: ConfigDict) -> dict[str, str]:
    """Those of `PATHS` that name a folder of one's own."""
    found = leaves(config)
    return {key: value for key in PATHS if (value := found.get(key)) and not value.startswith(encoders.BUILTIN)}


def _write(task: DiffusionTask, params: Params, step: int, out: Path, name: str, half: bool) -> None:
    """All files of an export."""
    config, portable = task.config, ConfigDict(task.config.to_dict())
    if "lora" in params:
        _write_lora(config, params["lora"], out)
        params, portable.train.lora.rank = task.merged(params), 0
    _write_networks(task, params, out, half)
    if config.model.pretrained:
        pretrained_parts.write(task, out)
        portable.model.pretrained, portable.model.random_start = ".", False
    portable.space.latents = portable.space.rgb_map = ""
    portable.update_from_flattened_dict({key: "" for key in STARTS if leaves(config).get(key)})
    if task.parts.clip is not None:
        portable.encoder.clip = _write_encoder(config.encoder.clip, task.parts.clip, out / "image_encoder")
    if config.condition.kind == "text" and config.condition.encoder:
        encoder = task.parts.condition.encoder
        portable.condition.encoder = _write_encoder(config.condition.encoder, encoder, out / "condition_encoder")
    if task.edges is not None:
        portable.edit.control = "controlnet"
        pretrained_parts.copy(hub.local(config.edit.control), out / portable.edit.control)
    if isinstance(task.parts.space, Latents) and (rgb_map := task.parts.space.params["rgb"]):
        write_rgb_map(rgb_map, out)
        portable.space.latents = "."
    _write_card(config, step, out, name, getattr(task.parts.condition, "names", ()))
    write_json({"step": step, "version": __version__, "config": portable.to_dict()}, out / CONFIG)


def _write_networks(task: DiffusionTask, params: Params, out: Path, half: bool) -> None:
    """What was trained, each network as others read it, and all of them for Orbax."""
    config, dtype = task.config, np.float16 if half else np.float32
    sections = dict(denoiser=config.model, adapter=config.adapter, condition=config.condition, process=config.process)
    with Progress("exporting", len(params) + (not half), "network") as progress:
        for name, network in params.items():
            if (name, config.model.backbone) == ("denoiser", "sd"):
                pretrained_parts.write_unet(task, network, out, dtype)
            else:
                own = np.float32 if name == "process" else dtype
                pretrained.write_params(out / name, network, warm_start.tensor_name, sections[name].to_dict(), own)
            progress.update()
        if not half:
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(out / "orbax", params)
            progress.update()


def read_config(folder: str | Path) -> tuple[ConfigDict, int]:
    """(config, with its paths made whole, and training step) of an export.

    Raises:
        UserError: damaged, or incomplete.
    """
    folder = Path(folder)
    content = read_json(folder / CONFIG)
    try:
        config = complete(ConfigDict(content["config"]))
        config.update_from_flattened_dict({key: str(folder / value) for key, value in _paths(config).items()})
        return config, int(content["step"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / CONFIG} is no export's config ({error}); export the run again") from error


def read_networks(folder: str | Path, config: ConfigDict, expected: Params) -> Params:
    """The parameters that an export holds as networks of its own; the task loads the others by itself.

    Args:
        folder: the export.
        config: from `read_config`.
        expected: shapes of all parameters.
    """
    names = ["adapter", "condition", "process"] + (["denoiser"] if config.model.backbone != "sd" else [])
    read = lambda name: pretrained.read_params(Path(folder) / name, expected[name], warm_start.tensor_name)
    return {name: read(name) for name in names if name in expected}


def _write_lora(config: ConfigDict, params: Params, out: Path) -> None:
    """The change alone, for the model that was changed; the export's denoiser has it already."""
    name_of = diffusers_format.tensor_name if config.model.backbone == "sd" else warm_start.tensor_name
    lora.write(out / "lora", params, config.train.lora.scale, name_of)


def _write_encoder(path: str, encoder: TextEncoder, folder: Path) -> str:
    """Writes an encoder into the export; returns its name there. What ships with the package stays there."""
    if path.startswith(encoders.BUILTIN):
        return path
    pretrained_parts.save_encoder(path, encoder, folder)
    return folder.name


def _write_card(config: ConfigDict, step: int, out: Path, name: str, classes: Sequence[str]) -> None:
    """README.md: what it is, how it was trained, how to use it."""
    adapter, sd = config.adapter, config.model.backbone == "sd"
    shift = "none: plain diffusion"
    if adapter.enabled:
        shift = f"relational adapter, {adapter.depth} blocks of {adapter.num_heads} heads, bound {adapter.bound:g}"
    example = {
        "text": '["a red apple on a blue background"]',
        "class": f"[{classes[0]!r}]" if classes else "",
        "layout": f"layouts=[[({classes[0]!r}, (0.1, 0.2, 0.5, 0.8))]]" if classes else "",
        "none": "16",
    }[config.condition.kind]
    facts = [
        f"data: {config.data.source} {config.data.preset or config.data.path}, {config.data.image_size} pixels",
        f"process: {config.process.schedule} schedule, T = {config.process.num_timesteps}; "
        f"the network predicts {config.model.prediction}",
        f"shift of the forward process: {shift}",
        f"trained for {step} steps of batch {config.data.batch_size}, objective `{config.loss.objective}`"
        if step
        else "not trained here",
    ]
    if classes:
        more = f", and {len(classes) - _LISTED} more" if len(classes) > _LISTED else ""
        facts.append(f"{len(classes)} classes: {', '.join(classes[:_LISTED])}{more}")
    if tuple(config.train.trainable) != (".*",):
        facts.append(f"trained parameters: `{list(config.train.trainable)}`")
    lines = [
        f"# {name}",
        "A contextual diffusion model (ContextDiff, ICLR 2024), written by contextdiff_jax.",
        "\n".join(f"- {fact}" for fact in facts),
        f'```python\nimport contextdiff_jax as cdx\n\nimages = cdx.Pipeline.load("{name}").sample({example})\n```',
    ]
    if is_diffusers_pipeline(out):
        without = ", and draws without the adapter, as `sample(adapter=False)` does" if config.adapter.enabled else ""
        lines.append(f"The folder is also a Stable Diffusion pipeline: diffusers loads it unchanged{without}.")
    task = "text-to-image" if config.condition.kind == "text" else "unconditional-image-generation"
    pretrained.write_model_card(
        out,
        "\n\n".join(lines),
        library_name="contextdiff_jax",
        tags=("diffusion", "contextdiff", "jax", task),
        base_model=hub.name_of(encoders.folder_of(config.model.pretrained)) if sd else None,
    )


def is_export(folder: str | Path) -> bool:
    """Whether a folder is an export."""
    return (Path(folder) / CONFIG).is_file()
