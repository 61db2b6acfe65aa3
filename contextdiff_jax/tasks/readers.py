"""Reads what the config names of a diffusion task: each of its parts, from the pretrained folders or by its section."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from contextdiff_jax import data, encoders, trees
from contextdiff_jax.conditions import (
    ClassCondition,
    Condition,
    EmbeddedClassCondition,
    LayoutCondition,
    TextCondition,
)
from contextdiff_jax.conditions.features import ClipFeatures, Features, PatchFeatures
from contextdiff_jax.conditions.spaces import Latents, Pixels, read_rgb_map
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import read_object
from contextdiff_jax.formats import hub, pretrained, single_file
from contextdiff_jax.models.adapter import with_self_attention, without_self_attention
from contextdiff_jax.process import schedule
from contextdiff_jax.process.learned import Process
from contextdiff_jax.runtime import Runtime, here
from contextdiff_jax.samplers.scheduler_config import (
    PRETRAINED,
    as_stable_diffusion,
    from_scheduler_config,
    with_zero_terminal_snr,
)
from contextdiff_jax.tasks.places import Places, within
from contextdiff_jax.training.sharding import put_tree
from contextdiff_jax.types import Params


def compute_dtype(name: str, runtime: Runtime | None = None) -> jnp.dtype:
    """bfloat16 on accelerators and float32 on CPUs for "auto"; otherwise the type of that name."""
    if name == "auto":
        return jnp.float32 if (runtime or here()).platform == "cpu" else jnp.bfloat16
    return jnp.dtype(name)


def with_located_models(config: ConfigDict) -> ConfigDict:
    """The config with the folders of models that ship with the package in the place of their names."""
    located = ConfigDict(config.to_dict())
    located.model.pretrained = encoders.located(config.model.pretrained)
    located.space.rgb_map = encoders.located(config.space.rgb_map)
    if config.adapter.enabled:
        located.adapter.start = encoders.located(config.adapter.start)
    return located


def read_adapter(folder: str | Path, expected: Params, shardings: Params) -> Params:
    """The parameters of an adapter that was trained before; the layers of attention over time and among the patches
    that it has not are left out, and start as zero.

    Args:
        folder: an export, with its `adapter` in it.
        expected: shapes of all parameters.
        shardings: of those that are wanted.

    Raises:
        UserError: no adapter there, or one of other shapes.
    """
    with naming("adapter.start", folder):
        folder, name_of = hub.local(folder) / "adapter", lambda path: path.replace("/", ".")
        stored = pretrained.stored_tensors(folder)
        there = lambda name: "temporal/" not in name or name_of(name) in stored
        expected, shardings = trees.select(expected, there), trees.select(shardings, there)
        of_self = [name for name in trees.names(expected) if "/self/" in name]
        if not of_self or any(name_of(name) in stored for name in of_self):
            return pretrained.read_params(folder, expected, name_of, shardings=shardings)
        found = with_self_attention(pretrained.read_params(folder, without_self_attention(expected), name_of))
        found = trees.select(found, set(trees.names(shardings)).__contains__)
        return put_tree(found, trees.select(shardings, set(trees.names(found)).__contains__))


@contextlib.contextmanager
def naming(key: str, value: Any) -> Iterator[None]:
    """Puts the config's key before what went wrong with its value."""
    try:
        yield
    except UserError as error:
        raise UserError(f"config.{key}={str(value)!r}: {error}") from error


def needs_clip(config: ConfigDict) -> bool:
    """Whether the model of `encoder.clip` is looked at."""
    reads_text = config.condition.kind == "text" and not config.condition.encoder and config.model.backbone != "sd"
    return reads_text or (config.adapter.enabled and config.adapter.features == "clip")


def scheduler_of(config: ConfigDict) -> dict[str, Any]:
    """scheduler_config.json of the pretrained folder, where something is to be taken from it."""
    if PRETRAINED not in (config.process.schedule, config.model.prediction, config.sample.spacing):
        return {}
    found = scheduler_file(hub.local(config.model.pretrained))
    rescaled = config.process.schedule == PRETRAINED and config.process.zero_terminal_snr
    return with_zero_terminal_snr(found) if rescaled else found


def scheduler_file(folder: Path) -> dict[str, Any]:
    """scheduler_config.json of a Stable Diffusion folder or file, as its pipeline takes it.

    Raises:
        UserError: there is none, or it is damaged.
    """
    if folder.is_file():
        return single_file.scheduler(folder)
    path = folder / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        raise UserError(f"{path} does not exist; name schedule, prediction and spacing instead of {PRETRAINED!r}")
    return as_stable_diffusion(read_object(path))


def read_process(config: ConfigDict, scheduler: dict[str, Any], space: Pixels | Latents) -> tuple[Process, str]:
    """Process and prediction; "pretrained" takes those of the folder's scheduler.

    Raises:
        UserError: only noise at T under a network that predicts it, or not as many timesteps as the schedule has.
    """
    s, prediction = None, config.model.prediction
    if PRETRAINED in (config.process.schedule, prediction):
        # As DDIM's class reads it, whatever draws: what is trained does not hang on the previews' sampler.
        found = from_scheduler_config(scheduler, "ddim")
        prediction = found.prediction if prediction == PRETRAINED else prediction
        s = found.schedule if config.process.schedule == PRETRAINED else None
    if s is None:
        s = schedule.from_config(config.process)
    if prediction == "eps" and (config.process.zero_terminal_snr or float(s.alpha_bar[-1]) == 0.0):
        raise UserError(
            "a schedule with zero terminal SNR (config.process.zero_terminal_snr, or the pretrained scheduler's "
            "rescale_betas_zero_snr) cannot work with a network that predicts eps: at T the noise says nothing about "
            "the image; use one that predicts v or x0"
        )
    if s.num_timesteps != config.process.num_timesteps:
        raise UserError(
            f"config.process.num_timesteps={config.process.num_timesteps}, but the pretrained schedule has "
            f"{s.num_timesteps}; set it to that"
        )
    return process_of(config.process, s, space.shape[-1]), prediction


def process_of(config: ConfigDict, start: schedule.Schedule, channels: int) -> Process:
    """What is learned of the process, by the config's section `process`, from this schedule on."""
    return Process(
        start,
        learned=config.schedule == "learned",
        fixed_ends=config.ends == "fixed",
        variance=config.variance,
        channels=channels if config.variance_per_channel else 0,
    )


def condition_of(
    config: ConfigDict, clip: encoders.Clip | None, load: Callable, sample_shape: tuple[int, ...], dtype: jnp.dtype
) -> Condition:
    """What c is; `load` reads a text encoder.

    Raises:
        UserError: data without the classes or boxes that c is to be, or a text encoder that cannot be read.
    """
    section, description = config.condition, data.describe(config.data)
    if section.kind in ("class", "layout"):
        how = dict(dtype=dtype, remat=config.model.remat)
        names = description.class_names if section.kind == "class" else description.object_names
        if not names:
            what = "classes" if section.kind == "class" else "boxes"
            raise UserError(
                f"config.condition.kind={section.kind!r}, but the images of config.data.source={config.data.source!r} "
                f"have no {what}; use kind text or none"
            )
        if section.kind == "layout":
            return LayoutCondition(
                names,
                description.max_objects,
                tuple(sample_shape[:2]),
                width=section.width,
                depth=section.depth,
                token_grid=section.token_grid,
                map_channels=section.map_channels,
                **how,
            )
        if section.embedding == "resnet":
            return EmbeddedClassCondition(names, section.width, section.depth, **how)
        return ClassCondition(names)
    if config.condition.kind == "none":
        return ClassCondition(())
    if config.condition.encoder:
        with naming("condition.encoder", config.condition.encoder):
            return TextCondition(load(config.condition.encoder))
    if config.model.backbone == "sd":
        with naming("model.pretrained", config.model.pretrained):
            folder = hub.local(config.model.pretrained)
            return TextCondition(load(folder / "text_encoder", tokenizer_dir=tokenizer_of(folder)))
    return TextCondition(clip)


def tokenizer_of(pipeline: Path) -> Path:
    """The folder of the tokenizer of a Stable Diffusion folder or file.

    Raises:
        UserError: a file, whose tokenizer is nowhere.
    """
    return single_file.tokenizer_folder(pipeline) if pipeline.is_file() else pipeline / "tokenizer"


def space_of(config: ConfigDict, runtime: Runtime | None, weights: bool, places: Places | None) -> Pixels | Latents:
    """Where x0 lives; arguments are those of `Parts.of`."""
    if config.space.kind == "pixels":
        return Pixels(config.data.image_size, data.describe(config.data).channels)
    return latent_space(config, runtime, weights, places)


def latent_space(
    config: ConfigDict, runtime: Runtime | None = None, weights: bool = True, places: Places | None = None
) -> Latents:
    """The latents of the pretrained folder's autoencoder; arguments are those of `Parts.of`."""
    from contextdiff_jax.encoders import vq

    with naming("model.pretrained", config.model.pretrained):
        dtype = compute_dtype(config.model.dtype, runtime)
        at = within(places, "space", "vae")
        vae = vq.load(hub.local(config.model.pretrained), dtype, weights=weights, shardings=at)
    rgb_map = read_rgb_map(config.space.rgb_map or config.space.latents)
    return Latents(vae, config.data.image_size, config.space.rgb, rgb_map)


def features_of(config: ConfigDict, clip: encoders.Clip | None, space: Pixels | Latents) -> Features | None:
    """What the adapter sees of x0; None without an adapter.

    Raises:
        UserError: patches that do not divide the samples.
    """
    if not config.adapter.enabled:
        return None
    (height, width, _), p = space.shape, config.adapter.patch_size
    if height % p or width % p:
        raise UserError(
            f"config.adapter.patch_size={p} does not divide the {height} x {width} samples; choose a divisor"
        )
    if config.adapter.features == "patches":
        return PatchFeatures(space.shape, p)
    return ClipFeatures(clip, space)
