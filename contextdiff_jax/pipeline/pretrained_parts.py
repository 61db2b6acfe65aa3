"""What an export takes of the pretrained folder or file that a model was made from, for us and for diffusers."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from contextdiff_jax import encoders
from contextdiff_jax.conditions.spaces import Latents
from contextdiff_jax.encoders.text import TextEncoder
from contextdiff_jax.files import read_object, write_json
from contextdiff_jax.formats import pretrained, single_file
from contextdiff_jax.formats.tokenizers import TOKENIZER_FILES
from contextdiff_jax.models.backbones import two_headed
from contextdiff_jax.samplers.scheduler_written import written
from contextdiff_jax.tasks.diffusion import DiffusionTask
from contextdiff_jax.types import Params

PIPELINE_INDEX = "model_index.json"
_WHOLE = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")  # without which there is no pipeline
_KEPT = (".json", ".txt", ".model")  # of a pretrained folder's parts, beside the weights that we read ourselves


def write(task: DiffusionTask, out: Path) -> None:
    """Writes what lies around the trained networks: autoencoder, text encoder and scheduler; and the pipeline's index,
    where diffusers can draw with all that."""
    source = encoders.folder_of(task.config.model.pretrained)
    if source.is_file():
        _write_parts_of_file(task, source, out)
    else:
        _copy_parts(source, out, _copied(task, source))
    _write_scheduler(task, source, out)


def _copied(task: DiffusionTask, source: Path) -> set[str]:
    """The parts of a folder that are taken as they are."""
    found = {"vae", "vqvae", "scheduler"}
    if task.config.model.backbone == "sd" and not task.config.condition.encoder:
        found |= {"text_encoder", "tokenizer"}
    return (found | set(_parts_of(_index(source))) if _is_pipeline(task) else found) - {"unet"}


def write_unet(task: DiffusionTask, params: Params, out: Path, dtype: Any) -> None:
    """The trained U-Net of Stable Diffusion."""
    from contextdiff_jax.models.sd_unet import read_unet_config, save_sd_unet

    source = encoders.folder_of(task.config.model.pretrained)
    save_sd_unet(out / "unet", read_unet_config(source / "unet"), params, dtype)


def _write_parts_of_file(task: DiffusionTask, source: Path, out: Path) -> None:
    """Of a single file: its autoencoder, and where its U-Net is trained, its text encoder."""
    parts = task.parts
    if isinstance(parts.space, Latents):
        parts.space.vae.save(out / "vae", parts.space.vae.params)
    if task.config.model.backbone != "sd" or task.config.condition.encoder:
        return
    save_encoder(source / "text_encoder", parts.condition.encoder, out / "text_encoder")
    (out / "tokenizer").mkdir()
    for name in TOKENIZER_FILES:
        if (out / "text_encoder" / name).is_file():
            (out / "text_encoder" / name).rename(out / "tokenizer" / name)


def _write_scheduler(task: DiffusionTask, source: Path, out: Path) -> None:
    """The pretrained scheduler's file for the process that was trained on, and with it the pipeline's index."""
    config, parts, file = task.config, task.parts, Path("scheduler") / "scheduler_config.json"
    found = {}
    if source.is_file():
        found = single_file.scheduler(source)
    elif (source / file).is_file():
        found = read_object(source / file)
    if not found and config.model.backbone != "sd":
        return
    scheduler = written(found, config.process, config.sample.spacing, parts.schedule, parts.prediction)
    if scheduler:
        write_json(scheduler, out / file)
    if _is_pipeline(task):
        _write_index(_index(source), scheduler if scheduler != found else {}, out)


def _write_index(index: dict[str, Any], scheduler: dict[str, Any], out: Path) -> None:
    """The pipeline's index, where all is there that it needs; `scheduler` is the file where it is not the source's."""
    # What the folder lacks as safetensors (a safety checker in an old format) is not there for diffusers either.
    absent = [name for name in _parts_of(index) if not (out / name).is_dir() and index[name] != [None, None]]
    if set(absent) & set(_WHOLE):
        return
    index |= {name: [None, None] for name in absent}
    if scheduler:
        index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    write_json(index, out / PIPELINE_INDEX)


def _index(source: Path) -> dict[str, Any]:
    """model_index.json of a pretrained folder, or that of the folder that diffusers would make of it."""
    return read_object(source / PIPELINE_INDEX) if is_diffusers_pipeline(source) else dict(single_file.INDEX)


def _parts_of(index: dict[str, Any]) -> list[str]:
    """The parts that a pipeline's index names."""
    return [name for name, value in index.items() if isinstance(value, list)]


def _is_pipeline(task: DiffusionTask) -> bool:
    """Whether these networks make a pipeline of Stable Diffusion for diffusers.

    It draws without the adapter, and knows no process that was learned, no second head, no text encoder but the
    pipeline's own, and no clips.
    """
    config = task.config
    own_text = config.condition.kind == "text" and not config.condition.encoder
    plain = not two_headed(config) and not task.process_params() and config.data.num_frames == 1
    return config.model.backbone == "sd" and isinstance(task.parts.space, Latents) and own_text and plain


def _copy_parts(source: Path, out: Path, names: Iterable[str]) -> None:
    """Copies parts of a pipeline: configs, tokenizer files and the safetensors that a reader takes; never a pickle."""
    for name in names:
        copy(source / name, out / name)


def copy(part: Path, target: Path) -> None:
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


def save_encoder(path: str | Path, encoder: TextEncoder, folder: Path) -> None:
    """Writes an encoder as it lies at `path`, read again: a task may hold it in another type, and on other devices."""
    read = encoders.load_text_encoder(path, tokenizer_dir=encoder.tokenizer_dir)
    read.save(folder, read.params)


def is_diffusers_pipeline(folder: str | Path) -> bool:
    """Whether a folder is a pipeline in the diffusers layout."""
    return (Path(folder) / PIPELINE_INDEX).is_file()
