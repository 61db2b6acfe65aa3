"""Which frozen networks a model was trained with: digests of their weights, kept beside it.

A checkpoint holds only what was trained. The rest is read from where the config says it lies, and another network of
the same shapes there would pass unnoticed.
"""

from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from contextdiff_jax import encoders, trees
from contextdiff_jax.encoders import vq
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import read_object, write_json
from contextdiff_jax.formats import digests as files
from contextdiff_jax.tasks import warm_start
from contextdiff_jax.tasks.parts import needs_clip

FILE = "frozen.json"


def sources(config: ConfigDict) -> dict[str, Path]:
    """Where each frozen network of a diffusion model lies: {name: folder}."""
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
        found["model.init_from"] = Path(config.model.init_from).expanduser()
    return found


def _identity(name: str, folder: Path, known: dict[str, str]) -> dict[str, str]:
    """What tells a network from others; the weights are read only where the files are not those of `known`."""
    if name == "model.init_from":
        return dict(path=str(folder), stamp="", digest=trees.digest(warm_start.read_all(folder)))
    stamp = files.stamp(folder)
    same = known.get("stamp") == stamp and known.get("path") == str(folder)
    return dict(path=str(folder), stamp=stamp, digest=known["digest"] if same else files.digest(folder))


def _recorded(path: Path) -> dict[str, dict[str, str]]:
    """What `check` has written; {} where it has not."""
    remedy = "delete it to take the networks as they are"
    recorded = read_object(path, remedy) if path.is_file() else {}
    for name, known in recorded.items():
        if not isinstance(known, dict) or not {"path", "digest"} <= known.keys():
            raise UserError(f"{path} is damaged (of {name} it says {known!r}, not path and digest); {remedy}")
    return recorded


def check(place: str | Path, config: ConfigDict) -> None:
    """Compares a model's frozen networks with those it was trained with; what is not recorded yet is recorded.

    Args:
        place: the run or the export.
        config: its config, with paths that lead to the networks.

    Raises:
        UserError: another network, both named.
    """
    path = Path(place) / FILE
    recorded = _recorded(path)
    now: dict[str, Any] = {}
    for name, folder in sources(config).items():
        known = recorded.get(name, {})
        now[name] = _identity(name, folder, known)
        if known and known["digest"] != now[name]["digest"]:
            raise UserError(
                f"{place} was made with the {name} of {known['path']} (digest {known['digest']}), but {folder} holds "
                f"another (digest {now[name]['digest']}); put that back, or take another place for another model"
            )
    if now.keys() - recorded.keys():
        try:
            write_json(recorded | now, path)
        except OSError as error:
            logging.warning("%s cannot be written (%s); the model's frozen networks are not recorded", path, error)
