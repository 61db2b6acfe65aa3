"""A trained diffusion model as a folder that stands alone: written by `--mode=export`, read by `Pipeline.load`.

<folder>/contextdiff.json       the config, with paths inside the folder
<folder>/README.md              model card
<folder>/denoiser/              config.json, model.safetensors; for Stable Diffusion instead the whole pipeline in
                                the diffusers layout: unet/ (trained), vae/ text_encoder/ tokenizer/ scheduler/
<folder>/adapter/               config.json, model.safetensors
<folder>/image_encoder/         the CLIP that the adapter looks through, where it does not ship with the package
<folder>/condition_encoder/     likewise the text encoder, where it is another model
<folder>/latent_rgb.json        the adapter's map from latents to colours, where it has one
<folder>/orbax/                 the same parameters as an Orbax checkpoint
"""

import shutil
from pathlib import Path

import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from contextdiff_jax import __version__, encoders
from contextdiff_jax.encoders import pretrained
from contextdiff_jax.encoders.spaces import read_rgb_map, write_rgb_map
from contextdiff_jax.encoders.text import TextEncoder
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import write_json
from contextdiff_jax.tasks.diffusion import DiffusionTask
from contextdiff_jax.types import Params

CONFIG = "contextdiff.json"
PIPELINE_INDEX = "model_index.json"
_PARTS_OF_SD = ("vae", "text_encoder", "tokenizer", "scheduler", "feature_extractor")


def write(task: DiffusionTask, params: Params, step: int, out: str | Path) -> None:
    """Writes the model.

    Args:
        task: of the run.
        params: all parameters, {"denoiser", "adapter"}.
        step: the training step they come from.
        out: the folder; refused if it holds something that is no export.

    Raises:
        UserError: a folder with other content.
    """
    config, out = task.config, Path(out)
    if out.is_dir() and any(out.iterdir()) and not (out / CONFIG).is_file():
        raise UserError(f"{out} holds something that is no export; give an empty --out")
    out.mkdir(parents=True, exist_ok=True)
    # The config goes last: without it a half-written folder is no export to a reader.
    (out / CONFIG).unlink(missing_ok=True)
    portable = ConfigDict(config.to_dict())
    if config.model.backbone == "sd":
        _write_sd(config, params["denoiser"], out)
        portable.model.pretrained = "."
    else:
        _write_network(out / "denoiser", params["denoiser"], config.model)
    if "adapter" in params:
        _write_network(out / "adapter", params["adapter"], config.adapter)
        if config.adapter.features == "clip":
            portable.encoder.clip = _write_encoder(config.encoder.clip, task.parts.features.clip, out / "image_encoder")
    if config.condition.kind == "text" and config.condition.encoder:
        encoder = task.parts.condition.encoder
        portable.condition.encoder = _write_encoder(config.condition.encoder, encoder, out / "condition_encoder")
    if config.space.kind == "latents" and (rgb_map := read_rgb_map(config.space.latents)):
        write_rgb_map(rgb_map, out)
        portable.space.latents = "."
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((out / "orbax").absolute(), params, force=True)
    _write_card(config, step, out)
    write_json({"step": step, "version": __version__, "config": portable.to_dict()}, out / CONFIG)


def read_config(folder: str | Path) -> tuple[ConfigDict, int]:
    """(config, with its paths made whole, and training step) of an export.

    Raises:
        UserError: damaged, or incomplete.
    """
    folder = Path(folder)
    content = pretrained.read_json(folder / CONFIG)
    config = ConfigDict(content["config"])
    for section, key in (("model", "pretrained"), ("encoder", "clip"), ("condition", "encoder"), ("space", "latents")):
        value = config[section][key]
        if value and not value.startswith(encoders.BUILTIN):
            config[section][key] = str(folder / value)
    return config, content["step"]


def read_networks(folder: str | Path, config: ConfigDict, expected: Params) -> Params:
    """The parameters that an export holds as networks of its own; the task loads the others by itself.

    Args:
        folder: the export.
        config: from `read_config`.
        expected: shapes of all parameters.
    """
    folder = Path(folder)
    names = ["adapter"] if config.model.backbone == "sd" else ["denoiser", "adapter"]
    return {
        name: pretrained.read_params(folder / name, expected[name], _tensor_name) for name in names if name in expected
    }


def _tensor_name(path: str) -> str:
    return path.replace("/", ".")


def _write_network(folder: Path, params: Params, section: ConfigDict) -> None:
    pretrained.write_params(folder, params, _tensor_name, section.to_dict())


def _write_sd(config: ConfigDict, params: Params, out: Path) -> None:
    """The pipeline folder with the trained U-Net; what was not trained is copied as it is."""
    from contextdiff_jax.models.sd_unet import read_unet_config, save_sd_unet

    source = Path(config.model.pretrained)
    for name in _PARTS_OF_SD:
        if (source / name).is_dir():
            shutil.copytree(source / name, out / name, dirs_exist_ok=True)
    if (source / PIPELINE_INDEX).is_file():
        shutil.copyfile(source / PIPELINE_INDEX, out / PIPELINE_INDEX)
    save_sd_unet(out / "unet", read_unet_config(source / "unet"), params)


def _write_encoder(path: str, encoder: TextEncoder, folder: Path) -> str:
    """Writes an encoder into the export; returns its name there. What ships with the package stays there."""
    if path.startswith(encoders.BUILTIN):
        return path
    encoder.save(folder, encoder.params)
    return folder.name


def _write_card(config: ConfigDict, step: int, out: Path) -> None:
    """README.md: what it is, how it was trained, how to use it."""
    process = f"{config.process.schedule} schedule, T = {config.process.num_timesteps}"
    adapter = config.adapter
    shift = (
        f"relational adapter, {adapter.depth} blocks of {adapter.num_heads} heads, bound {adapter.bound:g}"
        if adapter.enabled
        else "none: plain diffusion"
    )
    sd = config.model.backbone == "sd"
    base = Path(config.model.pretrained).name if sd else None
    lines = [
        f"# {out.name}",
        "A contextual diffusion model (ContextDiff, ICLR 2024), trained with contextdiff_jax.",
        f"- data: {config.data.source} {config.data.preset or config.data.path}, {config.data.image_size} pixels",
        f"- process: {process}; the network predicts {config.model.prediction}",
        f"- shift of the forward process: {shift}",
        f"- trained for {step} steps of batch {config.data.batch_size}, objective `{config.loss.objective}`",
        *(
            [f"- trained parameters: `{list(config.train.trainable)}`"]
            if tuple(config.train.trainable) != (".*",)
            else []
        ),
        "```python\nimport contextdiff_jax as cdx\n\n"
        f'images = cdx.Pipeline.load("{out.name}").sample({_example(config)})\n```',
    ]
    if sd:
        lines.append(
            "The folder is also a Stable Diffusion pipeline: diffusers loads it unchanged and then samples without the "
            "shift of the adapter."
        )
    pretrained.write_model_card(
        out,
        "\n\n".join(lines),
        library_name="contextdiff_jax",
        tags=(
            "diffusion",
            "contextdiff",
            "jax",
            "text-to-image" if config.condition.kind == "text" else "image-generation",
        ),
        base_model=base,
    )


def _example(config: ConfigDict) -> str:
    """An argument for `sample`."""
    return {"text": '["a red apple on a blue background"]', "class": '["0"]', "none": "16"}[config.condition.kind]


def is_export(folder: str | Path) -> bool:
    """Whether a folder is an export."""
    return (Path(folder) / CONFIG).is_file()


def is_diffusers_pipeline(folder: str | Path) -> bool:
    """Whether a folder is a pipeline in the diffusers layout."""
    return (Path(folder) / PIPELINE_INDEX).is_file() and (Path(folder) / "unet").is_dir()
