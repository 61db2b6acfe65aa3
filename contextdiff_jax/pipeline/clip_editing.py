"""A trained model as an editor of clips: of the run that was tuned on one, or of any Stable Diffusion as it is."""

import dataclasses
import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from PIL import Image

from contextdiff_jax import config as config_lib
from contextdiff_jax import encoders, trees
from contextdiff_jax import task as task_lib
from contextdiff_jax.data.clips import LEAST, RATE, Clip, as_shown, frame_of
from contextdiff_jax.data.images import square
from contextdiff_jax.data.moving import moving
from contextdiff_jax.data.one_clip import check_identity, clip_of, given_masks
from contextdiff_jax.editing import effects
from contextdiff_jax.editing import plan as plans
from contextdiff_jax.editing.cache import Kept
from contextdiff_jax.editing.editor import PROGRAMS, Editor, controls_of, put_at_rest
from contextdiff_jax.editing.methods import (
    DEMO,
    DEMO_GUIDANCE,
    METHODS,
    OF_THE_MODEL,
    RECIPES,
    in_order,
    values_of,
    without_control,
)
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import read_object, user_path
from contextdiff_jax.models.sd_unet import read_unet_config
from contextdiff_jax.pipeline import export, requests
from contextdiff_jax.pipeline.requests import plain
from contextdiff_jax.samplers import settings as samplers
from contextdiff_jax.training import sharding
from contextdiff_jax.training.state import initial_params, stream
from contextdiff_jax.training.workdir import has_trained
from contextdiff_jax.types import Params

Frames = str | Path | Sequence[Image.Image] | np.ndarray
OF_FILES = ("length", "start", "sampling_rate", "crop", "mask_path", "flow_path")  # how a clip is read from a path
OF_THE_TASK = ("data.num_frames", "data.image_size", "sample.sampler", "sample.spacing")  # of what an editor is told
OF_DATA = (*OF_FILES, "num_frames", "overlap", "image_size")  # options of `data` that act
OF_A_TRAINING = ("batch_size", "num_threads", "prefetch")  # keys of `data` that an edit does not look at
OF_PICTURES = {  # what a model may have been trained with that clips have not
    "labels": "none",
    "class_names": (),
    "class_words": "",
    "random_crop": 0.0,
    "horizontal_flip": False,
}
REFUSED = {  # options that something else says already, or that mean another mode, and why
    "caption": "the source prompt says what the clip shows",
    "prompts": "the targets are the edited prompts",
    "after_training": "nothing is trained",
    **dict.fromkeys(("source", "preset", "index", "path"), "the frames say which clip"),
}
MODELS = 4  # of clips, that a pipeline keeps
GIVEN = "given frames"  # the path of a clip that has none: it is the caller's, not an embedded one


class ClipModel:
    """A model of clips.

    Attributes:
        task: its networks; what surrounds them is the pipeline's.
        kept: what its editors have compiled and read.
    """

    def __init__(self, task: Any):
        self.task, self.kept = task, Kept(PROGRAMS)
        self._given = self._grown = None

    def params_of(self, pipeline: Any) -> Params:
        """The pipeline's parameters with those of the layers that join frames; made anew where a LoRA has changed
        them."""
        if self._given is not pipeline.params:
            self._given, self._grown = pipeline.params, _grown(self.task, pipeline)
        return self._grown


class ClipModels:
    """The models of clips that a pipeline has been: itself, where it was tuned on one, or grown by layers over time."""

    def __init__(self):
        self._models = Kept(MODELS)

    def of(self, pipeline: Any, config: ConfigDict) -> ClipModel:
        """That of a config; one that has been is neither built nor read again."""
        own = pipeline.config.data
        fits = (config.data.num_frames, config.data.image_size) == (own.num_frames, own.image_size)
        if own.source == "clip" and fits:
            return self._models.of("itself", lambda: ClipModel(pipeline.task))
        key = tuple((name, repr(value)) for name, value in config_lib.leaves(config).items() if _of_the_task(name))
        return self._models.of(key, lambda: ClipModel(_task(config)))


def _of_the_task(key: str) -> bool:
    """Whether a key of a config decides over the task; the others say what its editor does."""
    return key in OF_THE_TASK or not key.startswith(("data.", "sample.", "edit.", "eval.", "preset"))


def _task(config: ConfigDict) -> Any:
    """The task of a config; the editor itself takes care of a ControlNet, and the pipeline of all that is frozen."""
    config = config.copy_and_resolve_references()
    config.edit.control = ""
    return task_lib.build(config, weights=False)


def editor_of(
    pipeline: Any,
    frames: Frames,
    source: str,
    method: str | None,
    options: dict[str, Any],
    *,
    targets: Sequence[str] = (),
    progress: bool = True,
) -> Editor:
    """What edits these frames with a pipeline's model.

    Args:
        pipeline: of a run that was tuned on a clip, or of any Stable Diffusion: its new layers start as identity.
        frames: pictures of one size, an array uint8 [F, H, W, 3], or the path of a folder or a video.
        source: what they show.
        method: a name of `editing.methods`, with recipes behind a plus; None takes the run's own, or contextdiff.
        targets: the edited prompts, where they are known: for what the run's own settings say of words in them.
        progress: show a bar.
        options: "num_steps", "guidance", or any other key of `edit`, `sample` and `data`, None taking its own;
            masks, bool [F, H, W], of the frames' size or of the model's. Those that say how a clip is read are for
            paths, of which all frames are taken unless `length` says how many; another model than one that was tuned
            on a clip takes at once as many as the method does, and more in windows.

    Raises:
        UserError: a model that edits no clips, an unknown method or option, frames that are no clip.
    """
    masks = options.pop("masks", None)
    config, tuned = _config(pipeline.config, method), pipeline.config.data.source == "clip"
    own = tuned and _is_own(frames, pipeline.config.data)
    if not own:
        _read_whole(config)
    _set(config, options, isinstance(frames, str | Path))
    clip = _clip(frames, source, config, whole=not own)
    if masks is not None:
        clip = dataclasses.replace(clip, masks=given_masks(masks, clip, tuple(config.data.crop)))
    config.data.num_frames = config.data.num_frames if tuned else min(config.data.num_frames, len(clip.frames))
    asked = [name for name, value in options.items() if value is not None]
    if "num_frames" in asked and "overlap" not in asked:  # what belonged to other windows
        config.data.overlap = min(config.data.overlap, config.data.num_frames // 2)
    samplers.put_at_rest(config.sample, asked)
    effects.masks_at_rest(config.edit, asked)
    config_lib.check(config)
    if targets:
        read = pipeline.task.parts.condition.read
        plans.words_at_rest(config.edit, clip.caption, targets, read, asked)
        if "cross_replace_words" not in asked:
            plans.shares_at_rest(config.edit, config.sample.num_steps, clip.caption, targets, read)
    return _editor(pipeline, clip, config, progress)


def _editor(pipeline: Any, clip: Clip, config: ConfigDict, progress: bool = True) -> Editor:
    """What edits a clip with a pipeline's model, as a config of its own says."""
    model = pipeline.clip_models.of(pipeline, config)
    how = dict(progress=progress, kept=model.kept)
    return Editor(model.task, model.params_of(pipeline), pipeline.frozen, clip, config, **how)


def editor_as_it_is(pipeline: Any, clip: Clip, given: ConfigDict) -> Editor:
    """What edits a config's clip, by the config's method, with a model that was tuned on none, as `editor_of` does.

    Args:
        pipeline: of any Stable Diffusion: its new layers start as identity.
        clip: from `clip_of`.
        given: a recipe of `configs/video_edit.py`; of the networks all but `model.video` is the pipeline's, and it runs
            as that was loaded.

    Raises:
        UserError: a model that edits no clips.
    """
    _check_backbone(own := pipeline.config)
    config, given = ConfigDict(own.to_dict()), given.copy_and_resolve_references()
    config.edit, config.sample = given.edit, given.sample
    with config.data.ignore_type():
        config.data.update({key: value for key, value in given.data.items() if key not in OF_A_TRAINING})
    config.model.video, config.preset = given.model.video, given.preset
    config.encoder.clip = own.encoder.clip or given.encoder.clip
    config.sample.adapter = given.sample.adapter and given.adapter.enabled and own.adapter.enabled
    config.data.num_frames = min(given.data.num_frames, len(clip.frames))
    config_lib.put_at_rest(config)  # such as a judge of the data that it was trained on
    config_lib.check(config)
    return _editor(pipeline, clip, config)


def tuned_on(model: str | Path) -> dict[str, Any] | None:
    """What the config of a run that was tuned on a clip, or of the export of one, says of its data; None of any other
    model. Nothing else is read, and what has no config that can be read is taken for a run that says nothing, {}:
    whoever reads the model says what is wrong.

    Raises:
        UserError: an export that is damaged, or no model of that name.
    """
    path = encoders.folder_of(model)
    if export.is_export(path):
        data = export.read_config(path)[0].data.to_dict()
    elif path.is_file() or export.is_diffusers_pipeline(path):
        return None
    elif not (file := path / "config.json").is_file():
        return {}
    else:
        data = read_object(file).get("data")  # of another library's model there is none
    return data if isinstance(data, dict) and data.get("source") == "clip" else None


def is_tuned(model: str | Path) -> bool:
    """Whether a model is a run that was tuned on a clip, or the export of one; see `tuned_on`."""
    return tuned_on(model) is not None


def unread_model(own: ConfigDict, given: ConfigDict, model: str) -> str:
    """The model that the recipe of an edit names and that is not read: another than the one that edits, and than that
    was made from; "" where it names none."""
    named = given.model.pretrained
    return "" if not named or any(map(partial(_same_model, named), (model, own.model.pretrained))) else named


def _same_model(one: str, other: str) -> bool:
    """Whether two names are of one model; a name that no cache holds is of no other."""
    try:
        return one == other or encoders.folder_of(one).resolve() == encoders.folder_of(other).resolve()
    except UserError:
        return False


def recipe_for(own: ConfigDict) -> str:
    """The recipe that fits a model which was tuned on no clip.

    Raises:
        UserError: a model that edits no clips.
    """
    _check_backbone(own)
    return "configs/video_edit.py" + ":contextdiff" * (not _is_demo(own))


def own_clip(own: ConfigDict, given: ConfigDict) -> ConfigDict:
    """The `data` of the clip that a tuned run is edited on under another config: its own from a file, which that config
    need not name again, or else the one that is named, to be compared with what the run was tuned on.

    Args:
        own: as the run was loaded under the other config, which has put in what that says of the clip.
        given: the other config.
    """
    return own.data if own.data.path else given.data


def _set(config: ConfigDict, options: dict[str, Any], of_a_path: bool) -> None:
    """Puts a caller's options into a config; those of a training are left out, and said.

    Raises:
        UserError: an unknown option, one of another type, or one that the caller's frames have no use for.
    """
    requests.check_adapter(config, options)
    for name, value in options.items():
        sections = [s for s in ("edit", "sample", "data") if name in config[s]]
        if not sections and name not in (*REFUSED, *OF_A_TRAINING):
            hint = requests.elsewhere(name) or "accepted: the keys of edit, sample and data"
            raise UserError(f"option {name}={value!r} is unknown; {hint}")
        if value is None:  # the run's own, or the method's
            continue
        if name in REFUSED:
            raise UserError(f"option {name}={value!r} cannot act: {REFUSED[name]}; leave it out")
        if name in OF_A_TRAINING or (sections[0] == "data" and name not in OF_DATA):
            why = "nothing is trained; num_frames says how many frames the network takes at once"
            logging.warning("option %s=%r has no effect: %s", name, value, why)
            continue
        if name in OF_FILES and not of_a_path:
            raise UserError(f"option {name}={value!r} is for a clip's path; leave it out, and give the frames you mean")
        try:
            config[sections[0]][name] = str(value) if isinstance(value, Path) else plain(value)
        except TypeError as error:
            wanted = requests.kind_of(config[sections[0]][name])
            raise UserError(f"option {name}={value!r} has the wrong type; it is {wanted}") from error


def _config(own: ConfigDict, method: str | None) -> ConfigDict:
    """The pipeline's config with the sections that editing needs, and a method in them."""
    _check_backbone(own)
    config = ConfigDict(own.to_dict())
    config.sample.sampler, config.sample.eta, config.sample.threshold = "ddim", 0.0, "none"
    tuned = "edit" in config
    if tuned and method is None:
        return config
    names, values = str(method or "contextdiff").split("+"), {}
    if not tuned and not set(names) & set(METHODS):
        names = ["contextdiff", *names]
    for name in in_order(names):
        if (part := values_of(name)) is None:
            raise UserError(f"method {name!r} is unknown; accepted: {', '.join([*METHODS, *RECIPES])}, joined by '+'")
        values |= part
    config.preset = "+".join(names)
    if _is_demo(own) and "sample.guidance" in values:
        values["sample.guidance"] = min(values["sample.guidance"], DEMO_GUIDANCE)
    if tuned:  # the network is what it is
        values = {k: v for k, v in values.items() if k.startswith(("edit.", "sample.")) and k not in OF_THE_MODEL}
    else:  # nothing is tuned
        values = {k: v for k, v in values.items() if k.startswith(("edit.", "sample.", "data.", "model."))}
        values |= DEMO if _is_demo(own) else {}
        config.edit = ConfigDict()
        # The clip is the caller's; a model of single pictures could not be asked for several frames of its own data.
        config.data.source, config.data.preset = "clip", "demo"
        with config.data.ignore_type():
            config.data.update(OF_PICTURES)
        config.data.num_frames, config.data.overlap = 8, 4
        config.edit.rate = 0.0
        config_lib.put_at_rest(config)  # such as a judge of the data that it was trained on
    for key, value in values.items():
        *sections, name = key.split(".")
        node = config
        for section in sections:
            node = node[section]
        with node.ignore_type():
            node[name] = value
    return config


def _check_backbone(own: ConfigDict) -> None:
    """Raises UserError where a model is no Stable Diffusion."""
    if own.model.backbone != "sd":
        raise UserError(f"config.model.backbone={own.model.backbone!r} edits no clips; load a Stable Diffusion model")


def _is_own(frames: Frames, own: ConfigDict) -> bool:
    """Whether a caller's frames are the path of the clip that a run was tuned on."""
    real = lambda path: os.path.realpath(os.path.expanduser(path))
    return isinstance(frames, str | Path) and bool(own.path) and real(frames) == real(own.path)


def _read_whole(config: ConfigDict) -> None:
    """Of another clip nothing is cut off or left out, and it plays at its own rate: how a run's own was read, and where
    its masks and its flow are, says nothing of it."""
    data, config.edit.rate = config.data, 0.0
    with data.ignore_type():
        data.length, data.start, data.sampling_rate, data.crop, data.index = 0, 0, 1, (0, 0, 0, 0), 0
        data.mask_path = data.flow_path = ""


def _is_demo(config: ConfigDict) -> bool:
    """Whether the network is that of the model that ships, in a run or an export of it as well: made from it, or of its
    sizes."""
    made_from, shipped = (encoders.folder_of(path) for path in (config.model.pretrained, "builtin:demo"))
    if made_from.resolve() == shipped.resolve():
        return True
    return read_unet_config(made_from / "unet") == read_unet_config(shipped / "unet")


def _clip(frames: Frames, source: str, config: ConfigDict, whole: bool) -> Clip:
    """The frames as a clip of the model's size, of a path `whole` or as the config says; the config's `data` becomes
    that of this clip."""
    if not isinstance(source, str) or not source.strip():
        raise UserError(f"source prompt {source!r} is empty; say what the clip shows")
    config.data.caption = source.strip()
    if isinstance(frames, str | Path):
        config.data.path = str(Path(frames))
        return clip_of(config.data, whole)
    config.data.path = GIVEN
    if not isinstance(frames, Iterable):
        raise UserError(f"frames={frames!r} are no clip; give pictures, an array uint8 [F, H, W, 3], or a path")
    pictures = [_picture(frame) for frame in frames]
    sizes = sorted({p.size for p in pictures})
    if len(pictures) < LEAST or len(sizes) > 1:
        raise UserError(f"{len(pictures)} frames of sizes {sizes}: give {LEAST} or more of one size")
    arrays = np.stack([square(picture, config.data.image_size) for picture in pictures])
    return Clip(arrays, RATE, caption=config.data.caption, size=sizes[0])


def _picture(frame: Image.Image | np.ndarray | str | Path) -> Image.Image:
    """A frame, or its file, as a picture as it is shown: masks are of what one sees."""
    if isinstance(frame, str | Path):
        return frame_of(user_path(frame))
    if isinstance(frame, Image.Image):
        return as_shown(frame)
    array = np.asarray(frame)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3:
        raise UserError(
            f"a frame of {array.dtype} {array.shape} is no picture; give PIL images, their files, or uint8 [F, H, W, 3]"
        )
    return Image.fromarray(array)


def _grown(task: Any, pipeline: Any) -> Params:
    """A pipeline's parameters with those of the layers that join frames beside them, as they start."""
    expected = jax.eval_shape(task.init, stream(task.config.seed, "init"))
    kept = trees.select(pipeline.params, set(trees.names(expected)).__contains__)
    have = set(trees.names(kept))
    missing = trees.select(expected, lambda name: name not in have)
    if not missing:
        return kept
    places = sharding.tree_shardings(missing, task.config.sharding.rules, pipeline.mesh)
    return trees.merge(initial_params(task, places, task.config.seed), kept)


def targets_of(config: ConfigDict, prompts: Sequence[str]) -> list[str]:
    """The edited prompts: those given, else the config's, else for an embedded clip another object and another
    background. With a mask it is what the mask lets change: outside words, or around the clip's own masks, another
    background alone, elsewhere another object alone.

    Raises:
        UserError: a user's clip without an edited prompt.
    """
    found = list(prompts) or list(config.edit.prompts)
    if found or config.edit.reconstruct:
        return found
    if config.data.path:
        raise UserError("no edited prompt: give --prompt='...' or --config.edit.prompts=\"('...',)\"")
    swaps = moving(config.data.preset, config.data.index, config.data.seed).other_captions()
    if not effects.masked(config.edit):
        return list(swaps)
    return [swaps[config.edit.mask in effects.OF_THE_BACKGROUND]]


def check(task: Any, config: ConfigDict, prompts: Sequence[str], resumed: bool = False) -> Kept:
    """Refuses what cannot be edited before anything is tuned, as `Editor.check` does; nothing is computed.

    Args:
        task: of the run.
        config: of the run; what it says of the edit counts.
        prompts: of the command line.
        resumed: whether the run has saved anything, begun when what cannot act was taken: that is left out.

    Returns:
        What the editor has compiled for that, to be given to the one that edits.

    Raises:
        UserError: prompts, words or masks that do not fit the method or the clip; a method that does not fit the model;
            too many frames for the device; a CLIP or a judge of the figures that cannot be read.
    """
    targets, clip, kept = targets_of(config, prompts), clip_of(config.data), Kept(PROGRAMS)
    if resumed:
        put_at_rest(task, config, clip, targets)
    controls_of(task, config, clip, targets)
    if why := without_control(config.preset, config.edit.control):
        logging.warning("left out: %s", why)
    params = jax.eval_shape(task.init, stream(config.seed, "init"))
    Editor(task, params, task.frozen, clip, config, progress=False, kept=kept, tuned=resumed).check(targets)
    return kept


def check_clip(config: ConfigDict, workdir: str | Path) -> None:
    """Refuses a clip that cannot be read, or another one than the folder was tuned on, once that has saved anything.

    Raises:
        UserError: what `clip_of` and `check_identity` raise.
    """
    clip = clip_of(config.data)
    if has_trained(workdir):
        check_identity(clip, workdir)
