"""Finding a trained model: in a run, in an export, or in a Stable Diffusion folder or file as it is."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging
from ml_collections import ConfigDict

from contextdiff_jax import config as config_lib
from contextdiff_jax import encoders
from contextdiff_jax.conditions.spaces import RGB_MAP
from contextdiff_jax.encoders import BUILTIN
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import read_object
from contextdiff_jax.formats import hub, recognise, single_file
from contextdiff_jax.formats.kinds import check
from contextdiff_jax.formats.pretrained import read_config
from contextdiff_jax.models.sd_config import sample_side
from contextdiff_jax.pipeline import export
from contextdiff_jax.tasks import identity
from contextdiff_jax.training import checkpoint, distributed
from contextdiff_jax.training.workdir import HOW_IT_RUNS, STARTS, folder_of, only_started_from
from contextdiff_jax.types import Params

# What makes a config another model; all else about a run does not matter once it is trained.
_MODEL_KEYS = (
    "task",
    "encoder.",
    "condition.",
    "space.kind",
    "process.",
    "model.",
    "adapter.",
    "data.source",
    "data.preset",
    "data.image_size",
    "data.num_frames",
    "train.trainable",
    "train.lora.",
)
# How a clip is read from its path, and what a config says where it says nothing of that.
_OF_A_CLIP = {"caption": "", "length": 0, "start": 0, "sampling_rate": 1, "crop": (0, 0, 0, 0)}
# What a preset for clips says of the network and its tuning beside the edit: a run that was tuned keeps its own.
_OF_TUNING = ("model.video.", "train.trainable")


class Saved(NamedTuple):
    """A model that can be read.

    Attributes:
        config: the whole config.
        step: the training step of its parameters, 0 where nothing was trained.
        read: shapes of all parameters -> those that are saved here; the task loads or draws the others.
    """

    config: ConfigDict
    step: int
    read: Callable[[Params], Params]


def find(path: str | Path, *, step: int | None, ema: bool, config: ConfigDict | None) -> Saved:
    """What lies at `path`, of every process; arguments and errors are those of `Pipeline.load`."""
    with distributed.together():
        path = encoders.folder_of(path)
        found = _find(path, step, ema, config)
    if export.is_export(path) or folder_of(path).is_dir():
        identity.check(path, found.config)
    return found


def _find(path: Path, step: int | None, ema: bool, config: ConfigDict | None) -> Saved:
    """The same of one process."""
    if export.is_export(path):
        _only_checkpoint(path, step, ema)
        own, step = export.read_config(path)
        read = partial(export.read_networks, path, own)
    elif path.is_file() or export.is_diffusers_pipeline(path):
        if path.is_file():
            single_file.check(path)
        elif problem := recognise.refuse_pipeline(path / export.PIPELINE_INDEX):
            raise UserError(problem)
        _only_checkpoint(path, step, ema)
        own, step, read = stable_diffusion_config(path), 0, lambda expected: {}
    else:
        if not folder_of(path).is_dir() and (problem := recognise.no_model(path)):
            raise UserError(problem)
        params, own, step = checkpoint.load_params(path, step=step, ema=ema)
        own, read = config_lib.complete(ConfigDict(own)), lambda expected: params
        if (Path(path) / RGB_MAP).is_file():
            own.space.rgb_map = str(path)
    if own.task != "diffusion":
        raise UserError(f"{path} holds a run of the task {own.task!r}; only diffusion runs can be sampled")
    own = config_lib.whole_paths(own)
    if config is not None:
        own = _with_sampling_of(own, config_lib.whole_paths(config_lib.with_later(config)), path)
    return Saved(own, step, read)


def _only_checkpoint(path: Path, step: int | None, ema: bool) -> None:
    """A folder without checkpoints has neither a step nor parameters to choose."""
    for name, value, chosen in (("step", step, step is not None), ("ema", ema, not ema)):
        if chosen:
            raise UserError(f"{name}={value}: {path} is no run with checkpoints but one model; leave the {name} out")


def _with_sampling_of(own: ConfigDict, config: ConfigDict, path: str | Path) -> ConfigDict:
    """The model's own config with the `sample`, `eval` and `edit` sections of another one for the same model, and with
    what that says of how it runs, and of where its data lie. A run that was tuned on a clip keeps its network under the
    preset of another method.

    Where pretrained folders lie does not make another model: an export has its own, and for a run that names a folder
    which has moved, the other config's counts.
    """
    result = own.copy_and_resolve_references()
    for name in ("sample", "eval"):
        if name in config:
            result[name] = config[name]
    mine, given = config_lib.leaves(own), config_lib.leaves(config)
    if "edit" in config:
        result.edit = config.edit.copy_and_resolve_references()
        if "data.overlap" in mine:
            result.data.overlap = config.data.overlap
        if control := mine.get("edit.control"):
            result.edit.control = _control(path, control, config.edit.control)
    if own.data.source == config.data.source:
        with result.data.ignore_type():  # lists of a file, and tuples
            result.data.update(_data_of(own.data, config.data, path))
    path = hub.local(path)
    if path.is_file() or (export.is_diffusers_pipeline(path) and not export.is_export(path)):
        return result
    result.update_from_flattened_dict({key: given[key] for key in HOW_IT_RUNS if key in mine and key in given})
    paths = {key for key in export.PATHS if key in mine}
    if not export.is_export(path):
        paths = {key for key in paths if key != "edit.control" and _is_gone(mine[key])}
        result.update_from_flattened_dict({key: given[key] for key in paths if key in given})
    # Whatever was trained, an export has it whole: a LoRA is in its weights.
    unread = (*STARTS, "train.lora.", "train.trainable") if export.is_export(path) else only_started_from(own)
    differing = [
        line
        for line in config_lib.differences(own, config, ignore=("model.random_start", *HOW_IT_RUNS, *unread))
        if line.startswith(_MODEL_KEYS) and line.split(":")[0] not in paths
    ]
    kept = [line for line in differing if "edit" in own and line.startswith(_OF_TUNING)]
    if differing := [line for line in differing if line not in kept]:
        raise UserError(f"{path} holds another model than --config describes ({'; '.join(differing)}); give its own")
    if kept:
        logging.warning("%s stays the network that was tuned, edited as --config says (%s)", path, "; ".join(kept))
    return result


def run_as(own: ConfigDict, given: ConfigDict) -> ConfigDict:
    """A model's config with what that of any other model says of how it runs, and of a mesh that splits parameters;
    where it says nothing of that (a dtype of "auto", a mesh of 1), the model's own counts."""
    mine, said = config_lib.leaves(own), config_lib.leaves(given)
    taken = {key: said[key] for key in HOW_IT_RUNS if key in mine and said.get(key, "auto") != "auto"}
    taken |= {key: said[key] for key in ("mesh.fsdp", "mesh.tensor") if key in mine and said.get(key, 1) != 1}
    result = own.copy_and_resolve_references()
    result.update_from_flattened_dict(taken)
    return result


def _data_of(own: ConfigDict, given: ConfigDict, path: str | Path) -> dict[str, Any]:
    """What another config says of where a model's data lie and of how they are read here; where it says nothing, the
    model's own counts: the path of a recipe is empty, or one that is not there.

    A clip is one with its caption, its masks and how it is read: under another path these stay as well, unless the
    other config says otherwise, but those of another clip are all its own.
    """
    taken = {key: given[key] for key in ("num_threads", "prefetch") if key in given}
    if "max_bad_fraction" in given:  # of two, the one that was trained with is not refused now
        taken["max_bad_fraction"] = max(given.max_bad_fraction, own.get("max_bad_fraction", 0.0))
    taken |= {key: _place(key, own.get(key, ""), given.get(key, ""), path) for key in ("path", "class_words")}
    if own.source != "clip":
        return taken
    files = {key: own.get(key, "") for key in ("mask_path", "flow_path")}
    if taken["path"] != own.path and not (own.path and _is_gone(own.path)):
        return taken | {key: given[key] for key in (*_OF_A_CLIP, *files, "index") if key in given}
    flat = config_lib.leaves(given)
    said = {key: given[key] for key, unsaid in _OF_A_CLIP.items() if flat.get(key, unsaid) != unsaid}
    return taken | said | {key: given.get(key) or ("" if _is_gone(place) else place) for key, place in files.items()}


def _place(key: str, own: str, given: str, path: str | Path) -> str:
    """Where data lie of two places that configs name, "" being none."""
    if not given or given == own:
        return own
    if own and not _is_gone(own):
        if _is_gone(given):
            logging.warning("config.data.%s=%r is not there; that of %s is taken, %r", key, given, path, own)
            return own
        logging.warning("config.data.%s=%r is taken, in the place of %r of %s", key, given, own, path)
    return given


def _control(path: str | Path, own: str, given: str) -> str:
    """The ControlNet of a run that was tuned with one, which guides its edits under another preset too; another config
    may say where it lies now. That of an export is in it."""
    if export.is_export(path) or not given or given == own:
        return own
    if not _is_gone(own):
        logging.warning("%s was tuned with the ControlNet %s, and is edited with %s as --config says", path, own, given)
    return given


def _is_gone(path: str) -> bool:
    """Whether a path of a config, or a name of a hub, leads nowhere any more."""
    if not path or path.startswith(BUILTIN):
        return False
    try:
        return not hub.local(path).exists()
    except UserError:  # a name that no cache holds; what reads it will say so, and some models read none of it
        return True


def stable_diffusion_config(folder: str | Path) -> ConfigDict:
    """The config of a Stable Diffusion folder or file as it is, without an adapter: everything from its own."""
    folder = Path(folder)
    unet, vae = read_config(folder / "unet"), read_config(folder / "vae")
    check("vae/config.json:", vae, dict(block_out_channels=tuple[int, ...]))
    side = sample_side(unet) * 2 ** (len(vae.get("block_out_channels", (0,))) - 1)
    scheduler = folder / "scheduler" / "scheduler_config.json"
    noise = read_object(scheduler) if scheduler.is_file() else {}
    check("scheduler config:", noise, dict(num_train_timesteps=int))
    num_timesteps = noise.get("num_train_timesteps", 1000)
    config = ConfigDict(
        dict(
            task="diffusion",
            seed=0,
            data=dict(
                source="folder",
                preset="",
                path="",
                labels="none",
                class_names=(),
                image_size=side,
                seed=0,
                horizontal_flip=False,
                random_crop=0.0,
            ),
            encoder=dict(clip=""),
            condition=dict(kind="text", encoder=""),
            space=dict(kind="latents", latents="", precomputed=False, rgb_map="", rgb="linear"),
            process=dict(schedule="pretrained", num_timesteps=num_timesteps, zero_terminal_snr=False),
            model=dict(
                backbone="sd",
                pretrained=str(folder),
                random_start=False,
                prediction="pretrained",
                dtype="auto",
                remat=False,
                dropout=0.0,
            ),
            adapter=dict(enabled=False),
            loss=dict(objective="simple", weighting="prediction", gamma=5.0, cond_drop_prob=0.1),
            sample=dict(
                sampler="ddim",
                num_steps=50,
                spacing="pretrained",
                eta=0.0,
                guidance=7.5,
                rescale=0.0,
                interval=(0.0, 1.0),
                threshold="none",
                adapter=False,
                batch_size=4,
            ),
            train=dict(trainable=(".*",)),
            mesh=dict(data=-1, fsdp=1, tensor=1),
            sharding=dict(rules=((".*", "fsdp"),)),
        )
    )
    return config_lib.complete(config)
