"""A trained model as an editor of clips: of the run that was tuned on one, or of any Stable Diffusion as it is."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from contextdiff_jax import config as config_lib
from contextdiff_jax import task as task_lib
from contextdiff_jax import trees
from contextdiff_jax.data.clips import LEAST, RATE, Clip, read_clip
from contextdiff_jax.data.images import square
from contextdiff_jax.data.moving import moving
from contextdiff_jax.data.one_clip import check_identity, clip_of
from contextdiff_jax.editing.editor import Editor, controls_of
from contextdiff_jax.editing.methods import METHODS, RECIPES, values_of
from contextdiff_jax.editing.plan import needs_words
from contextdiff_jax.errors import UserError
from contextdiff_jax.training.state import initial_params, stream
from contextdiff_jax.types import Params

Frames = str | Path | Sequence[Image.Image] | np.ndarray


def editor_of(
    pipeline: Any, frames: Frames, source: str, method: str | None, options: dict[str, Any], *, progress: bool = True
) -> Editor:
    """What edits these frames with a pipeline's model.

    Args:
        pipeline: of a run that was tuned on a clip, or of any Stable Diffusion: its new layers start as identity.
        frames: pictures of one size, an array uint8 [F, H, W, 3], or the path of a folder or a video.
        source: what they show.
        method: a name of `editing.methods`, with recipes behind a plus; None takes the run's own, or contextdiff.
        progress: show a bar.
        options: "num_steps", "guidance", or any other key of `edit`, `sample` and `data`; masks, bool [F, H, W].

    Raises:
        UserError: a model that edits no clips, an unknown method or option, frames that are no clip.
    """
    masks = options.pop("masks", None)
    config = _config(pipeline.config, method)
    for name, value in options.items():
        sections = [s for s in ("edit", "sample", "data") if name in config[s]]
        if not sections:
            raise UserError(f"option {name}={value!r} is unknown; accepted: the keys of edit, sample and data")
        try:
            config[sections[0]][name] = value
        except TypeError as error:
            raise UserError(f"option {name}={value!r} has the wrong type: {error}") from error
    clip = _clip(frames, source, config, masks)
    tuned = pipeline.config.data.source == "clip"
    config.data.num_frames = config.data.num_frames if tuned else min(config.data.num_frames, len(clip.frames))
    config_lib.check(config)
    if tuned and config.data.num_frames == pipeline.config.data.num_frames:
        return Editor(pipeline.task, pipeline.params, pipeline.frozen, clip, config, progress=progress)
    task = task_lib.build(config)
    return Editor(task, _grown(task, pipeline.params), jax.device_put(task.frozen), clip, config, progress=progress)


def _config(own: ConfigDict, method: str | None) -> ConfigDict:
    """The pipeline's config with the sections that editing needs, and a method in them."""
    if own.model.backbone != "sd":
        raise UserError(f"config.model.backbone={own.model.backbone!r} edits no clips; load a Stable Diffusion model")
    config = ConfigDict(own.to_dict())
    config.sample.sampler, config.sample.eta, config.sample.threshold = "ddim", 0.0, "none"
    if "edit" in config and method is None:
        return config
    values = {}
    for name in (method or "contextdiff").split("+"):
        if (part := values_of(name)) is None:
            raise UserError(f"method {name!r} is unknown; accepted: {', '.join([*METHODS, *RECIPES])}, joined by '+'")
        values |= part
    # Nothing is tuned here; where something has been, the network is what it is.
    counts = ("edit.", "sample.") if "edit" in config else ("edit.", "sample.", "data.", "model.")
    values = {key: value for key, value in values.items() if key.startswith(counts)}
    if "edit" not in config:
        config.edit = ConfigDict()
        # The clip is the caller's; a model of single pictures could not be asked for several frames of its own data.
        config.data.source, config.data.preset, config.data.path = "clip", "demo", ""
        config.data.num_frames, config.data.overlap = 8, 4
        config.data.length, config.data.start, config.data.sampling_rate, config.data.crop = 0, 0, 1, (0, 0, 0, 0)
    for key, value in values.items():
        *sections, name = key.split(".")
        node = config
        for section in sections:
            node = node[section]
        with node.ignore_type():
            node[name] = value
    return config


def _clip(frames: Frames, source: str, config: ConfigDict, masks: np.ndarray | None) -> Clip:
    """The frames as a clip of the model's size."""
    size = config.data.image_size
    if not isinstance(source, str) or not source.strip():
        raise UserError(f"source prompt {source!r} is empty; say what the clip shows")
    if isinstance(frames, str | Path):
        data = config.data
        where = dict(start=data.start, sampling_rate=data.sampling_rate, crop=tuple(data.crop))
        read = read_clip(frames, size, data.length or data.num_frames, **where)
        arrays, rate = read.frames, read.rate
    else:
        pictures = [f if isinstance(f, Image.Image) else Image.fromarray(np.asarray(f)) for f in frames]
        if len(pictures) < LEAST or len({p.size for p in pictures}) > 1:
            sizes = sorted({p.size for p in pictures})
            raise UserError(f"{len(pictures)} frames of sizes {sizes}: give {LEAST} or more of one size")
        arrays, rate = np.stack([square(picture, size) for picture in pictures]), RATE
    if masks is not None and np.shape(masks) != arrays.shape[:3]:
        raise UserError(f"masks of shape {np.shape(masks)}; this clip needs {arrays.shape[:3]}")
    return Clip(arrays, rate, caption=source.strip(), masks=None if masks is None else np.asarray(masks, bool))


def _grown(task: Any, params: Params) -> Params:
    """A network's parameters with those of the layers that join frames beside them, as they start."""
    expected = jax.eval_shape(task.init, stream(task.config.seed, "init"))
    kept = trees.select(params, set(trees.names(expected)).__contains__)
    have = set(trees.names(kept))
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    places = jax.tree.map(lambda _: place, trees.select(expected, lambda name: name not in have))
    return trees.merge(initial_params(task, places, task.config.seed) if places else {}, kept)


def targets_of(config: ConfigDict, prompts: Sequence[str]) -> list[str]:
    """The edited prompts: those given, else the config's, else for an embedded clip another object, and another
    background where the method has no mask of words: attention to the words of a background does not mark it. Outside
    words it is another background alone.

    Raises:
        UserError: a user's clip without an edited prompt.
    """
    found = list(prompts) or list(config.edit.prompts)
    if found or config.edit.reconstruct:
        return found
    if config.data.path:
        raise UserError("no edited prompt: give --prompt='...' or --config.edit.prompts=\"('...',)\"")
    swaps = moving(config.data.preset, config.data.index, config.data.seed).other_captions()
    if not needs_words(config.edit):
        return list(swaps)
    return [swaps[config.edit.mask == "outside"]]


def check(task: Any, config: ConfigDict, prompts: Sequence[str]) -> None:
    """Refuses what cannot be edited before anything is tuned: the stages are traced, nothing is computed.

    Raises:
        UserError: prompts, words or masks that do not fit the method or the clip; a method that does not fit the model.
    """
    targets, clip = targets_of(config, prompts), clip_of(config.data)
    controls_of(task, config, clip, targets)
    params = jax.eval_shape(task.init, stream(config.seed, "init"))
    Editor(task, params, task.frozen, clip, config, progress=False).trace(targets)


def check_clip(config: ConfigDict, workdir: str | Path) -> None:
    """Refuses a clip that cannot be read, or another one than the folder was tuned on.

    Raises:
        UserError: what `clip_of` and `check_identity` raise.
    """
    check_identity(clip_of(config.data), workdir)
