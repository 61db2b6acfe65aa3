"""A config as a flat table: its leaves, what they may be, what older versions lacked, and how two configs differ."""

import dataclasses
import os
from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict

from contextdiff_jax.errors import UserError
from contextdiff_jax.files import composed, is_remote


@dataclasses.dataclass(frozen=True)
class Values:
    """What single keys accept, stated by the owner of their section; what needs several of them is its `check`.

    Attributes:
        choices: {"section.key": the words that it accepts}.
        positive, not_negative, fractions: keys of numbers above 0, from 0, and from 0 to 1, separated by blanks.
        whole: of these, those that count something, which no array or loop takes as a fraction.
        listed: keys of tuples or lists.
        needed: keys without which a config that has their section is read by nothing.
        trained: those that a training reads as well; models from elsewhere were never trained here.
    """

    choices: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    positive: str = ""
    not_negative: str = ""
    fractions: str = ""
    whole: str = ""
    listed: str = ""
    needed: str = ""
    trained: str = ""


# Of the sections that configs/t2i.py lacks, a recipe that has them.
_RECIPES = {"edit": "video_edit", "clip": "clip_mini", "recogniser": "recogniser", "autoencoder": "autoencoder"}


def require(flat: Mapping[str, Any], keys: str) -> None:
    """Raises UserError where a config, as `leaves` has it, lacks some of these keys, separated by blanks."""
    if missing := [key for key in keys.split() if key not in flat]:
        recipe = _RECIPES.get(missing[0].partition(".")[0], "t2i")
        raise UserError(
            f"the config has no {', '.join(f'config.{key}' for key in missing)}; start from a shipped one, such as "
            f"configs/{recipe}.py, and change that"
        )


def leaves(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """{"section.key": value} of a nested config; lists and tuples compare equal."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            flat.update(leaves(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = _frozen(value)
    return flat


def _frozen(value: Any) -> Any:
    """JSON turns tuples into lists; for comparison both are tuples."""
    return tuple(_frozen(v) for v in value) if isinstance(value, list | tuple) else value


def are(values: Any, kind: Any) -> bool:
    """Whether all of a tuple's values are numbers, or texts, of a kind; True is no number."""
    return all(isinstance(v, kind) and not isinstance(v, bool) for v in values)


# Keys that came after the first runs were saved, with the values that describe those.
_LATER = {
    "optim.muon": (),
    "optim.momentum": 0.95,
    "train.validate_every": 0,
    "train.validate_batches": 4,
    "data.random_crop": 0.0,
    "data.labels": "none",
    "data.class_names": (),
    "data.class_words": "",
    "condition.kind": "text",
    "condition.encoder": "",
    "condition.kept_texts": 0,
    "condition.embedding": "one_hot",
    "condition.width": 64,
    "condition.depth": 2,
    "condition.token_grid": 8,
    "condition.map_channels": 16,
    "space.kind": "pixels",
    "space.latents": "",
    "space.precomputed": True,
    "space.max_latents": 0,
    "space.rgb_map": "",
    "space.rgb": "linear",
    "model.backbone": "unet",
    "model.pretrained": "",
    "model.init_from": "",
    "model.random_start": False,
    "model.fourier_bands": (6, 7),
    "adapter.features": "clip",
    "adapter.spectral_norm": 0.0,
    "adapter.self_attention": False,
    "adapter.frames_back": 0,
    "adapter.start": "",
    "data.num_frames": 1,
    "model.video": dict(temporal_conv_rank=0, temporal_attention="none", key_frames=(), key_frames_min_channels=0),
    "adapter.track_lipschitz": False,
    "adapter.reverse": "estimate",
    "adapter.scale": 0.0,
    "process.init": "log_snr",
    "process.ends": "free",
    "process.log_snr": (6.0, -8.0),
    "process.variance": "beta",
    "process.variance_per_channel": False,
    "loss.num_times": 0,
    "sample.last_noise": False,
    "sample.variance": "posterior",
    "train.trainable": (".*",),
    "train.lora": dict(rank=0, scale=1.0, targets=(r"(attn\d|self|cross)/(query|key|value|out)/kernel$",)),
    "eval.after_training": False,
    "eval.bpd_dequantize": False,
    "eval.bpd_always": False,
    "eval.judge_steps": 0,
    "eval.features": (),
    "eval.reference": 1000,
    "edit.mask_scale": "maximum",
    "edit.reconstruct": False,
    "edit.equalize_added": 1.0,
    "edit.rate": 0.0,
}


# Keys of `data` that only some sources read, and what leaves them out.
_OF_SOURCES = {
    "path": (("folder", "cifar10", "fashion", "coco", "clip"), ""),
    "labels": (("folder", "imagenet2012"), "none"),
    "class_names": (("folder", "imagenet2012", "coco"), ()),
}


def unread(section: ConfigDict) -> dict[str, Any]:
    """{key: what leaves it out} of the keys of `data` that are set and that its source does not read."""
    found = {}
    for key, (sources, empty) in _OF_SOURCES.items():
        acts = section.source in sources
        if key == "class_names" and section.source == "folder":
            acts = "labels" in section and section.labels != "none"
        if key in section and not acts and _frozen(section[key]) != empty:
            found[key] = empty
    return found


# What names a schedule: `process.init` of a learned one, else `process.schedule`
_NAMED = "the name of the schedule"
# {key: (what it is at rest, the key beside which alone it acts, and the values of that)}
_ACTS_BESIDE = {
    "loss.weighting": ("constant", "loss.objective", ("simple",)),
    "loss.gamma": (5.0, "loss.weighting", ("min_snr",)),
    "adapter.scale": (0.0, "adapter.enabled", (True,)),
    "adapter.reverse": ("estimate", "adapter.enabled", (True,)),
    "adapter.track_lipschitz": (False, "adapter.enabled", (True,)),
    "process.init": ("log_snr", "process.schedule", ("learned",)),
    "process.ends": ("free", "process.schedule", ("learned",)),
    "process.log_snr": ((6.0, -8.0), _NAMED, ("log_snr",)),
    "process.beta_start": (1e-4, _NAMED, ("linear", "scaled_linear")),
    "process.beta_end": (2e-2, _NAMED, ("linear", "scaled_linear")),
    "sample.last_noise": (False, "sample.sampler", ("ddpm",)),
    "eval.bpd_always": (False, "space.kind", ("pixels",)),
    "eval.judge_steps": (0, "condition.kind", ("class",)),
}
# {key: (what it is at rest, whether a user's clip alone reads it, or an embedded one alone)}
_OF_CLIPS = {"data.sampling_rate": (1, True), "data.index": (0, False)}


def idle(config: ConfigDict) -> dict[str, tuple[Any, str]]:
    """{key: (what it is at rest, why it cannot act)} of the keys that are not at rest and change nothing, or that spoil
    what they act on."""
    flat, found = leaves(config), {}
    for key, (rest, other, values) in _ACTS_BESIDE.items():
        if other == _NAMED:
            other = "process.init" if flat.get("process.schedule") == "learned" else "process.schedule"
        if key in flat and other in flat and flat[key] != rest and flat[other] not in values:
            wanted = " or ".join(map(repr, values))
            found[key] = rest, f"it is for config.{other}={wanted}, not {flat[other]!r}"
    for key, (rest, of_a_path) in _OF_CLIPS.items():
        has_path = bool(flat.get("data.path"))
        if flat.get("data.source") == "clip" and flat.get(key, rest) != rest and has_path != of_a_path:
            embedded = "config.data.path names the clip, and it is for embedded ones"
            found[key] = rest, "without config.data.path the clip is an embedded one" if of_a_path else embedded
    by_classifier = flat.get("condition.kind") == "class" and flat.get("eval.judge_steps")
    of_scenes = flat.get("data.source") == "openmoji" and flat.get("condition.kind") != "none"
    if flat.get("eval.recogniser") and not (by_classifier or of_scenes):
        found["eval.recogniser"] = (
            "",
            "it names a judge of what is asked for in openmoji's scenes or, with config.eval.judge_steps, of classes",
        )
    headed = flat.get("adapter.enabled") and flat.get("adapter.reverse") == "head" and flat.get("sample.adapter")
    if headed and flat.get("sample.threshold", "none") != "none":
        found["sample.threshold"] = "none", "it would clip x0_hat and not the shift of config.adapter.reverse='head'"
    return found


def put_at_rest(config: ConfigDict, asked: Collection[str] = ()) -> None:
    """Leaves out what cannot act beside the rest of the config, unless it is among the keys that were asked for: those
    are refused by `config.check`, what a recipe brings is not."""
    # What is put at rest may leave another key idle
    while changes := {key: rest for key, (rest, _) in idle(config).items() if key not in asked}:
        config.update_from_flattened_dict(changes)
    if "data" in config and "source" in config.data:
        config.data.update({key: empty for key, empty in unread(config.data).items() if f"data.{key}" not in asked})


def with_later(config: ConfigDict) -> ConfigDict:
    """The config with the keys that an older version did not have, at what that did; itself where it has them all.

    Raises:
        UserError: a section that is none.
    """
    result, added = config, {}
    for key, value in _LATER.items():
        section, name = key.split(".")
        if section not in config and (section not in ("condition", "space") or config.get("task") != "diffusion"):
            continue
        if not isinstance(there := config.get(section, ConfigDict()), ConfigDict):
            raise UserError(f"config.{section}={there!r} is no section of a config")
        if isinstance(value, dict) and not isinstance(there.get(name, ConfigDict()), ConfigDict):
            raise UserError(f"config.{key}={there.get(name)!r} is no section of a config")
        if isinstance(value, dict) and isinstance(inner := there.get(name), ConfigDict):
            value = {part: default for part, default in value.items() if part not in inner}
        elif name in there:
            continue
        if value != {}:
            added.setdefault(section, {})[name] = value
    if added:
        result = ConfigDict(config.copy_and_resolve_references())
        with result.unlocked():
            result.update(added)
    return result


def complete(saved: ConfigDict) -> ConfigDict:
    """A saved config with the keys that an older version did not have, and without what changed nothing.

    Raises:
        UserError: a section that is none.
    """
    result = with_later(saved.copy_and_resolve_references())
    # What changed nothing was taken once, a dropout that the backbone never had as well.
    put_at_rest(result)
    if "model" in result and result.model.backbone == "sd" and "dropout" in result.model:
        result.model.dropout = 0.0
    return result


_PATHS = """
    data.path data.class_words data.mask_path data.flow_path encoder.clip condition.encoder space.latents space.rgb_map
    model.pretrained model.init_from adapter.start edit.control eval.recogniser
"""

_READ_FROM_A_PATH = ("inception", "clip", "dinov2")  # feature spaces; a name behind "judge:" is none


def whole_paths(config: ConfigDict) -> ConfigDict:
    """The config with every path that leads somewhere from here written from the root; the others, such as names of
    a hub, stay as they are. The config itself is not changed."""
    flat = leaves(config)
    changed = {key: _whole(flat[key]) for key in _PATHS.split() if isinstance(flat.get(key), str)}
    if isinstance(made := flat.get("clip.tokenizer_dir"), str) and not is_remote(made):
        changed["clip.tokenizer_dir"] = os.path.abspath(os.path.expanduser(made))  # made where it is not there yet
    if isinstance(spaces := flat.get("eval.features"), tuple):
        changed["eval.features"] = tuple(_whole_space(space) for space in spaces)
    result = config.copy_and_resolve_references()
    result.update_from_flattened_dict(changed)
    return result


def _whole(path: str) -> str:
    """The path from the root where it leads somewhere."""
    here = os.path.expanduser(path)
    return os.path.abspath(here) if path and os.path.exists(here) else path


def _whole_space(space: Any) -> Any:
    """A feature space with its path from the root: "dinov2:FOLDER"."""
    kind, colon, place = str(space).partition(":")
    return f"{kind}:{_whole(place)}" if colon and kind in _READ_FROM_A_PATH else space


def _spelled(value: Any) -> Any:
    """Texts in the one spelling in which they are compared."""
    if isinstance(value, tuple):
        return tuple(_spelled(v) for v in value)
    return composed(value) if isinstance(value, str) else value


def differences(saved: ConfigDict, now: ConfigDict, ignore: tuple[str, ...] = ()) -> list[str]:
    """Lines "key: saved X, now Y" for every leaf that differs; keys starting with one of `ignore` do not count."""
    old, new = leaves(saved), leaves(now)
    absent = "absent"
    return [
        f"{key}: saved {old.get(key, absent)!r}, now {new.get(key, absent)!r}"
        for key in sorted(old.keys() | new.keys())
        if _spelled(old.get(key, absent)) != _spelled(new.get(key, absent)) and not key.startswith(ignore)
    ]
