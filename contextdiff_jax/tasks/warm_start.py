"""Parameters to start from: those of another run or of an export (`model.init_from`)."""

from pathlib import Path

import numpy as np
from absl import logging
from flax import traverse_util
from ml_collections import ConfigDict

from contextdiff_jax import encoders, trees
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import read_object
from contextdiff_jax.formats import pretrained
from contextdiff_jax.process import schedule
from contextdiff_jax.training import checkpoint
from contextdiff_jax.training.workdir import folder_of, steps_in
from contextdiff_jax.types import Params

EXPORT = "contextdiff.json"  # what makes a folder an export
_ENCODERS = ("image_encoder", "condition_encoder")  # of an export, beside the trained networks


def tensor_name(path: str) -> str:
    """Our parameter path -> the tensor's name in an export's networks."""
    return path.replace("/", ".")


def folder_named(source: str) -> Path:
    """Where the run or the export of `model.init_from` lies: a folder, or a model by its name that ships or is cached.

    Raises:
        UserError: a name that is not in the cache, or that does not ship.
    """
    try:
        return encoders.folder_of(source)
    except UserError as error:
        raise UserError(
            f"config.model.init_from={source!r} is neither a run with a checkpoint nor an export: {error}"
        ) from error


def check(source: str) -> None:
    """Looks whether there is a model to start from; nothing is read.

    Raises:
        UserError: neither a run with a checkpoint nor an export with networks of its own.
    """
    folder = folder_named(source)
    if (folder / EXPORT).is_file() and not (folder / "denoiser").is_dir():
        raise UserError(
            f"config.model.init_from={source!r} is a Stable Diffusion pipeline; give it as config.model.pretrained"
        )
    if not (folder / EXPORT).is_file() and not steps_in(folder_of(folder)):
        raise UserError(
            f"config.model.init_from={source!r} is neither a run with a checkpoint nor an export; give the folder of "
            "one, or leave it empty to start from nothing"
        )


def check_schedule(source: str, process: ConfigDict) -> None:
    """Looks whether networks that know the times of a noise schedule that they learned would get another one, as far as
    the source's config says so.

    Args:
        source: `model.init_from`.
        process: the new model's section of that name.

    Raises:
        UserError: so it is: a fixed schedule, or one that is learned between other fixed ends.
    """
    folder = folder_named(source)
    exported = (folder / EXPORT).is_file()
    file = folder / (EXPORT if exported else "config.json")
    saved = read_object(file) if file.is_file() else {}
    config = saved.get("config", {}) if exported else saved
    theirs = config.get("process", {})
    if theirs.get("schedule") != "learned":
        return
    if process.schedule != "learned":
        raise UserError(
            f"config.model.init_from={source!r} learned its noise schedule, whose times its networks know; "
            "set config.process.schedule='learned' and the other keys of config.process as it has them"
        )
    if process.ends == theirs.get("ends") == "fixed":
        # What is read says only how the way between the ends is divided.
        ends = [schedule.from_config(section).alpha_bar[np.array([1, -1])] for section in (ConfigDict(theirs), process)]
        if not np.array_equal(*ends):
            then, now = ("alpha_bar {:.4g} to {:.4g}".format(*pair) for pair in ends)
            raise UserError(
                f"config.model.init_from={source!r} learned its noise schedule between other fixed ends ({then}) than "
                f"this model's ({now}); set config.process.init and what belongs to it as it has them"
            )


def check_adapter(source: str) -> None:
    """The same of an adapter.

    Raises:
        UserError: no export with an adapter in it.
    """
    if not (encoders.folder_of(source) / "adapter").is_dir():
        raise UserError(f"config.adapter.start={source!r} has no adapter; give an export of a run that has one")


def read_all(source: str | Path) -> Params:
    """All networks of a run (its averaged parameters) or an export, as host arrays.

    Raises:
        UserError: neither of the two, or an export whose U-Net is a Stable Diffusion pipeline's.
    """
    check(str(source))
    folder = folder_named(str(source))
    if not (folder / EXPORT).is_file():
        return checkpoint.load_params(folder)[0]
    networks = sorted(file.parent for file in folder.glob("*/model.safetensors*"))
    return {place.name: pretrained.read_tree(place) for place in networks if place.name not in _ENCODERS}


def read(source: str, expected: Params) -> Params:
    """The networks that a model starts from; those that the source does not have stay fresh, as an adapter may.

    They know the times of their own noise schedule, so one that they learned and that is left out is warned of, as is
    one that is learned from another start. A run may have begun so before `check_schedule` refused it.

    Args:
        source: `model.init_from`.
        expected: shapes of all parameters of the model.

    Raises:
        UserError: no run or export; a denoiser or adapter of other sizes, or of which a part is missing.
    """
    found, shapes = read_all(source), {name: tree for name, tree in expected.items() if name != "lora"}
    if _schedule_in(found) and not _schedule_in(shapes):
        logging.warning("%s learned its noise schedule, whose times its networks know; this model's is fixed", source)
    if _schedule_in(shapes) and not _schedule_in(found):
        logging.warning(
            "%s has a fixed noise schedule, whose times its networks know; config.process.schedule='learned' starts at "
            "the one that config.process.init names: let it be the same",
            source,
        )
    result = {}
    for name, tree in shapes.items():
        if name not in found and name != "denoiser":
            logging.info("%s has no %s; this model's starts fresh", source, name)
            continue
        _check(source, name, traverse_util.flatten_dict(found.get(name, {}), sep="/"), tree)
        result[name] = found[name]
    if dropped := sorted(found.keys() - shapes.keys()):
        logging.info("%s has %s, which this model does without", source, ", ".join(dropped))
    return result


def _schedule_in(params: Params) -> bool:
    """Whether there is a learned schedule among parameters or their shapes; a learned variance alone is none."""
    return not {"gamma_1", "steps"}.isdisjoint(params.get("process", {}))


def _check(source: str, name: str, found: dict[str, np.ndarray], expected: Params) -> None:
    """Raises UserError where a network of the source is not this one."""
    wanted = traverse_util.flatten_dict(expected, sep="/")
    lines = [f"no {path} {leaf.shape}" for path, leaf in wanted.items() if path not in found]
    lines += [
        f"{path} of {found[path].shape} instead of {leaf.shape}"
        for path, leaf in wanted.items()
        if path in found and tuple(found[path].shape) != tuple(leaf.shape)
    ]
    lines += [f"{path} that this model has not" for path in found if path not in wanted]
    if lines:
        more = f" and {len(lines) - 4} more" if len(lines) > 4 else ""
        raise UserError(
            f"config.model.init_from={source!r} has another {name}: {'; '.join(lines[:4])}{more}; give the same sizes "
            "under model and adapter, or export a run of which only a part was trained"
        )


def select(params: Params, places: Params) -> Params:
    """The leaves of `params` that are wanted at `places`."""
    return trees.select(params, set(trees.names(places)).__contains__)
