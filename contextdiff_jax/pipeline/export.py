"""A trained diffusion model as a folder that stands alone: written by `--mode=export`, read by `Pipeline.load`.

<folder>/contextdiff.json       the config, with paths inside the folder
<folder>/README.md              model card
<folder>/denoiser/              config.json, model.safetensors; for Stable Diffusion instead the whole pipeline in
                                the diffusers layout: unet/ (trained), and all that model_index.json names
<folder>/adapter/               config.json, model.safetensors
<folder>/condition/             likewise, where the condition's network is trained: classes and layouts
<folder>/process/               likewise, where the schedule or the reverse variance is learned
<folder>/vae/ scheduler/        of the pretrained folder, where diffusion is in latents
<folder>/image_encoder/         the CLIP of config.encoder.clip, where it does not ship with the package
<folder>/condition_encoder/     likewise the text encoder, where it is another model
<folder>/controlnet/            that of edit.control, where one guided the tuning on a clip
<folder>/latent_rgb.json        the adapter's map from latents to colours, where it has one
<folder>/orbax/                 the same parameters as an Orbax checkpoint
"""

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from contextdiff_jax import __version__, encoders
from contextdiff_jax.conditions.spaces import RGB_MAP, Latents, write_rgb_map
from contextdiff_jax.config import complete, leaves
from contextdiff_jax.encoders.text import TextEncoder
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import local_path, read_json, read_object, write_json
from contextdiff_jax.formats import diffusers_format, hub, lora, pretrained, single_file
from contextdiff_jax.formats.tokenizers import TOKENIZER_FILES
from contextdiff_jax.progress import Progress
from contextdiff_jax.samplers.scheduler_config import PRETRAINED, with_zero_terminal_snr
from contextdiff_jax.tasks import identity, warm_start
from contextdiff_jax.tasks.diffusion import DiffusionTask
from contextdiff_jax.types import Params

CONFIG = warm_start.EXPORT
PIPELINE_INDEX = "model_index.json"
# Names in an export, beside those of a pipeline's parts.
WRITTEN = {
    *(CONFIG, PIPELINE_INDEX, RGB_MAP, identity.FILE, "README.md"),
    *("denoiser", "adapter", "condition", "process", "lora", "orbax", "image_encoder", "condition_encoder"),
    *("unet", "vae", "vqvae", "scheduler", "text_encoder", "tokenizer", "controlnet"),
}
PATHS = ("model.pretrained", "encoder.clip", "condition.encoder", "space.latents", "edit.control")
_KEPT = (".json", ".txt", ".model")  # of a pretrained folder's parts, beside the weights that we read ourselves
_LISTED = 100  # classes that a model card names


def write(task: DiffusionTask, params: Params, step: int, out: str | Path, half: bool = False) -> None:
    """Writes the model, whole or not at all: it is put together beside `out` and renamed.

    Args:
        task: of the run.
        params: all parameters, {"denoiser", "adapter"}.
        step: the training step they come from.
        out: the folder; an earlier export there is replaced, and what others have put into it stays.
        half: trained networks in float16 (a learned process stays float32) and no Orbax copy: the smallest folder.

    Raises:
        UserError: a folder with other content, or one that the model itself is read from.
    """
    out = local_path(out).absolute()
    _check_target(task.config, out)
    building = out.with_name(f".{out.name}.{os.getpid()}")
    shutil.rmtree(building, ignore_errors=True)
    try:
        building.mkdir(parents=True)
        _write(task, params, step, building, out.name, half)
        _replace(out, building)
        identity.check(out, read_config(out)[0])
    except OSError as error:
        raise UserError(f"export {out} cannot be written ({error}); give another --out") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _replace(out: Path, building: Path) -> None:
    """Puts an export where it belongs; of an earlier one what no export writes stays, such as pictures and figures."""
    before = out.with_name(f"{building.name}.before")
    if out.exists():
        out.rename(before)
    building.rename(out)
    if not before.exists():
        return
    index = before / PIPELINE_INDEX
    written = WRITTEN | (read_object(index).keys() if index.is_file() else set())
    for entry in before.iterdir():
        if entry.name not in written and not (out / entry.name).exists():
            entry.rename(out / entry.name)
    shutil.rmtree(before, ignore_errors=True)


def _check_target(config: ConfigDict, out: Path) -> None:
    """Refuses to replace anything but an export that is not in use."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file; give a folder")
    if out.is_dir() and any(out.iterdir()) and not is_export(out):
        raise UserError(f"{out} holds something that is no export; give an empty --out")
    for key, value in _paths(config).items():
        if hub.local(value).resolve().is_relative_to(out.resolve()):
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
        source = encoders.folder_of(config.model.pretrained)
        _write_parts_of_file(task, out) if source.is_file() else _copy_parts(source, out, ("vae", "vqvae", "scheduler"))
        portable.model.pretrained, portable.model.random_start = ".", False
        if config.process.schedule == PRETRAINED and config.process.zero_terminal_snr:
            file = out / "scheduler" / "scheduler_config.json"
            write_json(with_zero_terminal_snr(read_object(file)), file)
    portable.model.init_from = portable.space.latents = portable.space.rgb_map = ""
    if "adapter" in params:
        portable.adapter.start = ""
    if task.parts.clip is not None:
        portable.encoder.clip = _write_encoder(config.encoder.clip, task.parts.clip, out / "image_encoder")
    if config.condition.kind == "text" and config.condition.encoder:
        encoder = task.parts.condition.encoder
        portable.condition.encoder = _write_encoder(config.condition.encoder, encoder, out / "condition_encoder")
    if task.edges is not None:
        portable.edit.control = "controlnet"
        _copy(hub.local(config.edit.control), out / portable.edit.control)
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
                _write_sd(task, network, out, dtype)
            else:
                own = np.float32 if name == "process" else dtype
                pretrained.write_params(out / name, network, _tensor_name, sections[name].to_dict(), own)
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
    read = lambda name: pretrained.read_params(Path(folder) / name, expected[name], _tensor_name)
    return {name: read(name) for name in names if name in expected}


def _tensor_name(path: str) -> str:
    return warm_start.tensor_name(path)


def _write_lora(config: ConfigDict, params: Params, out: Path) -> None:
    """The change alone, for the model that was changed; the export's denoiser has it already."""
    name_of = diffusers_format.tensor_name if config.model.backbone == "sd" else _tensor_name
    lora.write(out / "lora", params, config.train.lora.scale, name_of)


def _write_parts_of_file(task: DiffusionTask, out: Path) -> None:
    """Autoencoder and scheduler of a single file; where the file's U-Net is trained, the whole pipeline around it."""
    source, parts = encoders.folder_of(task.config.model.pretrained), task.parts
    if isinstance(parts.space, Latents):
        parts.space.vae.save(out / "vae", parts.space.vae.params)
    write_json(single_file.scheduler(source), out / "scheduler" / "scheduler_config.json")
    if task.config.model.backbone != "sd" or task.config.condition.encoder:
        return
    _save_encoder(source / "text_encoder", parts.condition.encoder, out / "text_encoder")
    (out / "tokenizer").mkdir()
    for name in TOKENIZER_FILES:
        if (out / "text_encoder" / name).is_file():
            (out / "text_encoder" / name).rename(out / "tokenizer" / name)
    write_json(single_file.INDEX, out / PIPELINE_INDEX)


def _write_sd(task: DiffusionTask, params: Params, out: Path, dtype: Any) -> None:
    """The pipeline folder with the trained U-Net; what was not trained is copied as it is."""
    from contextdiff_jax.models.sd_unet import read_unet_config, save_sd_unet

    source = encoders.folder_of(task.config.model.pretrained)
    save_sd_unet(out / "unet", read_unet_config(source / "unet"), params, dtype)
    if source.is_file():
        return
    if not (source / PIPELINE_INDEX).is_file():
        _copy_parts(source, out, ("text_encoder", "tokenizer"))
        return
    index = read_object(source / PIPELINE_INDEX)
    parts = [name for name, value in index.items() if isinstance(value, list) and name != "unet"]
    _copy_parts(source, out, parts)
    # What the folder lacks as safetensors (a safety checker in an old format) is not there for diffusers either.
    absent = [name for name in parts if not (out / name).is_dir() and index[name] != [None, None]]
    write_json(index | {name: [None, None] for name in absent}, out / PIPELINE_INDEX)


def _copy_parts(source: Path, out: Path, names: Any) -> None:
    """Copies parts of a pipeline: configs, tokenizer files and the safetensors that a reader takes; never a pickle."""
    for name in names:
        _copy(source / name, out / name)


def _copy(part: Path, target: Path) -> None:
    """The same of one network's folder."""
    files = [f for f in part.glob("*") if f.suffix in _KEPT]
    if any((part / f"{stem}.safetensors").is_file() for stem in pretrained.STEMS):
        files += [part / f"{stem}.safetensors" for stem in pretrained.STEMS]
    else:
        files += part.glob("*-of-*.safetensors")
    for file in files:
        if file.is_file():
            target.mkdir(exist_ok=True)
            shutil.copyfile(file, target / file.name)


def _write_encoder(path: str, encoder: TextEncoder, folder: Path) -> str:
    """Writes an encoder into the export; returns its name there. What ships with the package stays there."""
    if path.startswith(encoders.BUILTIN):
        return path
    _save_encoder(path, encoder, folder)
    return folder.name


def _save_encoder(path: str | Path, encoder: TextEncoder, folder: Path) -> None:
    """Writes an encoder as it lies at `path`, read again: a task may hold it in another type, and on other devices."""
    read = encoders.load_text_encoder(path, tokenizer_dir=encoder.tokenizer_dir)
    read.save(folder, read.params)


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
    if sd and config.condition.kind == "text":
        lines.append(
            "The folder is also a Stable Diffusion pipeline: diffusers loads it unchanged and then samples without the "
            "shift of the adapter."
        )
    task = "text-to-image" if config.condition.kind == "text" else "unconditional-image-generation"
    pretrained.write_model_card(
        out,
        "\n\n".join(lines),
        library_name="contextdiff_jax",
        tags=("diffusion", "contextdiff", "jax", task),
        base_model=_hub_name(config.model.pretrained) if sd else None,
    )


def _hub_name(path: str) -> str | None:
    """ORG/NAME of a folder in the hub's cache, else the folder's name; None for a bare commit."""
    if cached := re.search(r"models--([^/]+)--([^/]+)/snapshots/", str(Path(path).absolute()) + "/"):
        return "/".join(cached.groups())
    name = Path(path).resolve().name
    return None if re.fullmatch(r"[0-9a-f]{40}", name) else name


def is_export(folder: str | Path) -> bool:
    """Whether a folder is an export."""
    return (Path(folder) / CONFIG).is_file()


def is_diffusers_pipeline(folder: str | Path) -> bool:
    """Whether a folder is a pipeline in the diffusers layout."""
    return (Path(folder) / PIPELINE_INDEX).is_file()
