"""Which frozen networks a model was trained with: digests of their weights and what their other files say.

A checkpoint holds only what was trained. The rest is read from where the config says it lies, and another network of
the same shapes there, another scale, schedule or tokenizer would pass unnoticed.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from contextdiff_jax import encoders, trees
from contextdiff_jax.encoders import vq
from contextdiff_jax.encoders.text import TextEncoder
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import local_path, read_object, write_json
from contextdiff_jax.formats import digests as files
from contextdiff_jax.formats import tokenizers
from contextdiff_jax.models.controlnet import read_controlnet_config
from contextdiff_jax.models.sd_unet import read_unet_config
from contextdiff_jax.samplers.scheduler_config import PRETRAINED, values_of
from contextdiff_jax.tasks import warm_start
from contextdiff_jax.tasks.readers import needs_clip, scheduler_file, tokenizer_of
from contextdiff_jax.training import distributed
from contextdiff_jax.training.workdir import only_started_from

FILE = "frozen.json"
_SHOWN = 4  # settings that a message names


def sources(config: ConfigDict) -> dict[str, Path]:
    """Where each frozen network of a diffusion model lies, {name: folder}; other tasks have none."""
    if config.task != "diffusion":
        return {}
    folder = encoders.folder_of(config.model.pretrained)
    found = {}
    if needs_clip(config):
        found["encoder.clip"] = encoders.folder_of(config.encoder.clip)
    if config.condition.kind == "text" and config.condition.encoder:
        found["condition.encoder"] = encoders.folder_of(config.condition.encoder)
    elif config.condition.kind == "text" and config.model.backbone == "sd":
        found["text_encoder"] = folder / "text_encoder"
    if config.space.kind == "latents":
        found["vae"] = vq.part_of(folder)
    partly = tuple(config.train.trainable) != (".*",)
    if config.model.backbone == "sd" and partly:
        found["unet"] = folder / "unet"
    if "edit" in config and config.edit.control:
        found["edit.control"] = encoders.folder_of(config.edit.control)
    if config.model.init_from and partly:
        found["model.init_from"] = warm_start.folder_named(config.model.init_from)
    elif config.adapter.enabled and config.adapter.start and "adapter.start" not in only_started_from(config):
        found["adapter.start"] = encoders.folder_of(config.adapter.start) / "adapter"
    return found


def settings(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """What is read of a model's files beside weights: {name: {"path", "settings": {key: value in words}}}."""
    if config.task == "contrastive":
        folder = local_path(config.clip.tokenizer_dir).absolute()
        return {"clip.tokenizer_dir": dict(path=str(folder), settings=_flat(tokenizers.settings(folder)))}
    pipeline, folders = encoders.folder_of(config.model.pretrained), sources(config)
    read: dict[str, Any] = {
        "vae": vq.config_of,
        "edit.control": read_controlnet_config,
        "unet": read_unet_config,
        "encoder.clip": encoders.described,
        "condition.encoder": encoders.described,
        "text_encoder": lambda folder: encoders.described(folder, tokenizer_dir=tokenizer_of(pipeline)),
        "scheduler": lambda folder: values_of(scheduler_file(folder.parent)),
    }
    if config.model.backbone == "sd":
        folders["unet"] = pipeline / "unet"
    if PRETRAINED in (config.process.schedule, config.model.prediction):
        folders["scheduler"] = pipeline / "scheduler"
    return {name: dict(path=str(f), settings=_in_words(read[name](f))) for name, f in folders.items() if name in read}


def _in_words(described: Any) -> dict[str, str]:
    """{key: value} of what a reader made of a network's files."""
    values = described
    if isinstance(described, TextEncoder):
        mean_std = {name: getattr(described, name) for name in ("mean", "std") if hasattr(described, name)}
        tokenizer = tokenizers.settings(described.tokenizer_dir)
        values = dataclasses.asdict(described.config) | mean_std | {"max_length": described.max_length} | tokenizer
    elif dataclasses.is_dataclass(described):
        values = {f.name: getattr(described, f.name) for f in dataclasses.fields(described) if f.name != "raw"}
    return _flat(values)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """{"section.key": value in words}; keys may hold dots themselves."""
    found: dict[str, str] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: str(value)}
    return found


def _identity(name: str, folder: Path, known: Mapping[str, Any], place: Path) -> dict[str, str]:
    """What tells a network from others; the weights are read only where the files are not those of `known`."""
    if name == "model.init_from":
        return dict(stamp="", digest=trees.digest(warm_start.read_all(folder)))
    stamp = files.stamp(folder)
    same = known.get("stamp") == stamp and known.get("path") in (_path_in(place, folder), str(folder))
    return dict(stamp=stamp, digest=known["digest"] if same else files.digest(folder))


def _path_in(place: Path, folder: Path) -> str:
    """How a record in `place` names a folder: from there where it lies in it, so that both can be moved."""
    here, there = place.resolve(), folder.resolve()
    return there.relative_to(here).as_posix() if there.is_relative_to(here) else str(folder.absolute())


def _whole(place: Path, path: str) -> str:
    """A recorded path from the root; as it is where it leads nowhere in `place`."""
    return str(place / path) if (place / path).exists() else path


def _recorded(path: Path) -> dict[str, dict[str, Any]]:
    """What `check` has written; {} where it has not."""
    remedy = "delete it to take the networks as they are"
    recorded = read_object(path, remedy) if path.is_file() else {}
    for name, known in recorded.items():
        whole = isinstance(known, dict) and "path" in known and isinstance(known.get("settings", {}), dict)
        if not whole or not known.keys() & {"digest", "settings"}:
            raise UserError(f"{path} is damaged (of {name} it says {known!r}, not path and digest); {remedy}")
    return recorded


def check(place: str | Path, config: ConfigDict, binding: bool = True) -> None:
    """Compares a model's frozen networks with those it was trained with, and those of all processes with one another;
    what is not recorded yet is recorded.

    Args:
        place: the run or the export.
        config: its config, with paths that lead to the networks.
        binding: whether what is recorded counts; otherwise another network is recorded in its place.

    Raises:
        UserError: another network, both named; or processes that have different ones.
    """
    distributed.the_same(lambda: _compared(place, config, binding), _summary)


def _compared(place: str | Path, config: ConfigDict, binding: bool) -> dict[str, dict[str, Any]]:
    """What this process finds of each network, when it is what was recorded."""
    path = Path(place) / FILE
    recorded = _recorded(path)
    now = settings(config)
    for name, folder in sources(config).items():
        now[name] = now.get(name, {"path": str(folder)}) | _identity(name, folder, recorded.get(name, {}), path.parent)
    for found in now.values():
        found["path"] = _path_in(path.parent, Path(found["path"]))
    for name, found in now.items():
        if binding and name in recorded and (differing := _differing(recorded[name], found)):
            then, there = (_whole(path.parent, network["path"]) for network in (recorded[name], found))
            raise UserError(
                f"{place} was made with the {name} of {then} ({differing[0]}), but {there} holds another "
                f"({differing[1]}); put that back, or take another place for another model"
            )
    whole = {name: _joined(recorded.get(name, {}), found) if binding else found for name, found in now.items()}
    # The same networks elsewhere, or written anew, are recorded as they are now: else they are read at every start.
    of_the_package = path.resolve().is_relative_to(encoders.ASSETS.resolve())
    if recorded | whole != recorded and distributed.is_primary() and not of_the_package:
        try:
            write_json(recorded | whole, path)
        except OSError as error:
            unknown = any(recorded.get(name, {}).keys() != found.keys() for name, found in whole.items())
            said = "the model's frozen networks are not recorded" if unknown else "where they lie now is not recorded"
            logging.warning("%s cannot be written (%s); %s", path, error, said)
    return now


def _joined(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """What was recorded of a network and what is found of it now, which agree where both say something."""
    settings = then.get("settings", {}) | now.get("settings", {})
    return {**then, **now} | ({"settings": settings} if settings else {})


def _differing(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, str] | None:
    """What tells two networks apart, said of each; None where nothing does. Only what both have said is compared: an
    earlier version recorded less."""
    if "digest" in then and "digest" in now and then["digest"] != now["digest"]:
        return f"digest {then['digest']}", f"digest {now['digest']}"
    old, new = then.get("settings", {}), now.get("settings", {})
    changed = [key for key in new if key in old and old[key] != new[key]][:_SHOWN]
    said = lambda values: ", ".join(f"{key}={values[key]}" for key in changed)
    return (said(old), said(new)) if changed else None


def _summary(found: Mapping[str, Mapping[str, Any]]) -> str:
    """All of it but the places, which may differ from host to host."""
    facts = {name: [network.get("digest", ""), network.get("settings", {})] for name, network in found.items()}
    digests = ", ".join(f"{name} {network['digest']}" for name, network in found.items() if "digest" in network)
    return f"frozen networks {digests or 'none'} (with their files {files.of_text(json.dumps(facts, sort_keys=True))})"
