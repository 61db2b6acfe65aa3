"""Checks of a config before anything is built, and comparison of two configs."""

import os
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from contextdiff_jax.config_process import check_process, check_reverse
from contextdiff_jax.errors import UserError

SECTIONS = ("task", "preset", "seed", "data", "optim", "ema", "train", "mesh", "sharding")
CHOICES = {
    "data.source": ("openmoji", "folder", "digits", "cifar10", "fashion", "coco", "clip"),
    "data.labels": ("none", "subfolders"),
    "condition.kind": ("text", "class", "layout", "none"),
    "condition.embedding": ("one_hot", "resnet"),
    "space.kind": ("pixels", "latents"),
    "space.rgb": ("linear", "decode"),
    "model.backbone": ("unet", "vdm", "ldm", "sd"),
    "adapter.features": ("clip", "patches"),
    "process.schedule": ("cosine", "linear", "scaled_linear", "log_snr", "learned", "pretrained"),
    "adapter.reverse": ("estimate", "head"),
    "process.init": ("cosine", "linear", "scaled_linear", "log_snr"),
    "process.ends": ("free", "fixed"),
    "process.variance": ("beta", "posterior", "learned"),
    "model.dtype": ("auto", "float32", "bfloat16"),
    "model.prediction": ("x0", "eps", "v", "pretrained"),
    "loss.objective": ("simple", "posterior", "nelbo"),
    "loss.weighting": ("constant", "prediction", "snr", "snr_plus_1", "min_snr", "p2", "vlb", "lemma4"),
    "optim.schedule": ("constant", "cosine"),
    "sample.sampler": ("ddpm", "ddim", "heun", "dpmpp_2m"),
    "sample.spacing": ("uniform", "trailing", "leading", "pretrained"),
    "sample.threshold": ("none", "static", "dynamic"),
    "edit.inversion_prompt": ("source", "empty"),
    "edit.alignment": ("refine", "replace", "none"),
    "edit.mask": ("attention", "clip", "around"),
}
POSITIVE = """
    data.batch_size data.image_size process.num_timesteps model.channels model.num_blocks model.head_dim
    model.patch_size adapter.depth adapter.num_heads adapter.width adapter.patch_size optim.lr optim.eps
    optim.accum_steps train.num_steps train.log_every train.checkpoint_every train.keep train.validate_batches
    sample.num_steps sample.batch_size eval.num_samples
"""
NOT_NEGATIVE = """
    seed data.seed adapter.spectral_norm adapter.bound loss.gamma optim.weight_decay optim.warmup_steps optim.clip_norm
    sample.eta sample.guidance train.keep_every train.preview_every train.validate_every
    eval.bpd_images eval.bpd_timesteps eval.judge_steps loss.num_times space.max_latents
"""
LARGEST_FLOAT = 3.4e38  # of float32, in which everything is computed
FRACTIONS = """
    edit.cross_replace_steps edit.self_replace_steps edit.mask_threshold
    loss.cond_drop_prob model.dropout ema.decay optim.b1 optim.b2 data.max_bad_fraction data.random_crop
    sample.rescale
"""


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


def check_sections(config: Any, where: str) -> None:
    """Raises UserError where a config lacks what every run reads; `where` it comes from."""
    if not isinstance(config, ConfigDict):
        raise UserError(f"{where}: get_config() must return an ml_collections.ConfigDict, not {type(config).__name__}")
    missing = [name for name in SECTIONS if name not in config]
    if missing:
        raise UserError(
            f"{where}: the config has no {', '.join(missing)}; start from configs.common.base(TASK), or from a shipped "
            "config's get_config(), and change that"
        )


def check(config: ConfigDict) -> None:
    """Values that no part of the library accepts.

    Raises:
        UserError: names the key, the value and what is accepted.
    """
    flat = leaves(config)
    _check_numbers(flat)
    for key, accepted in CHOICES.items():
        if key in flat and flat[key] not in accepted:
            raise UserError(f"config.{key}={flat[key]!r} is unknown; accepted: {', '.join(accepted)}")
    _check_range(flat, POSITIVE, lambda v: 0 < v < float("inf"), "greater than 0 and finite")
    _check_range(flat, NOT_NEGATIVE, lambda v: v >= 0, "0 or more")
    _check_range(flat, FRACTIONS, lambda v: 0 <= v <= 1, "between 0 and 1")
    if "data.batch_size" in flat and flat["data.batch_size"] % flat["optim.accum_steps"]:
        raise UserError(
            f"config.data.batch_size={flat['data.batch_size']} is not divisible by "
            f"config.optim.accum_steps={flat['optim.accum_steps']}; choose a multiple"
        )
    if max(config.seed, config.data.seed) >= 2**32:
        raise UserError(
            f"config.seed={config.seed}, config.data.seed={config.data.seed}: the largest seed is {2**32 - 1}"
        )
    if "train.lora.rank" in flat:
        _check_lora(config)
    if "model" in config:
        _check_model(config)
    if "process" in config:
        check_process(config)
        check_reverse(config)
    if "sample" in config:
        _check_sample(config)
    if "edit" in config:
        _check_edit(config)


def _check_edit(config: ConfigDict) -> None:
    """What editing would otherwise find out after tuning."""
    if config.model.backbone != "sd" or config.data.num_frames < 2:
        raise UserError(
            f"config.model.backbone={config.model.backbone!r} with config.data.num_frames={config.data.num_frames} "
            "edits no clip; it takes 'sd' and 2 or more"
        )
    for key in ("mask_resolution", "max_tokens"):
        if config.edit[key] < 1:
            raise UserError(f"config.edit.{key}={config.edit[key]} must be 1 or more")
    blend = tuple(config.edit.latent_blend)
    if blend and (len(blend) != 2 or not 0 <= blend[0] <= blend[1] <= 1):
        raise UserError(f"config.edit.latent_blend={blend} is not (from, to) with 0 <= from <= to <= 1, or () for none")
    for key in ("equalizer", "cross_replace_words"):
        for pair in config.edit[key]:
            if isinstance(pair, str) or len(pair) != 2 or not isinstance(pair[0], str):
                raise UserError(f"config.edit.{key}={config.edit[key]!r} must hold pairs (word, number)")


def _check_sample(config: ConfigDict) -> None:
    """What a sampler would otherwise only find out when it is traced."""
    low_high = tuple(config.sample.interval)
    if not _are(low_high, int | float) or len(low_high) != 2 or not 0 <= low_high[0] < low_high[1] <= 1:
        raise UserError(f"config.sample.interval={low_high} is not (low, high) with 0 <= low < high <= 1")
    if not 0 <= config.sample.eta <= 1:
        raise UserError(f"config.sample.eta={config.sample.eta} is outside 0..1; 0 is deterministic DDIM")
    if config.condition.kind == "none" and config.sample.guidance != 1:
        raise UserError(
            f"config.sample.guidance={config.sample.guidance:g} needs a condition to guide by; with "
            "config.condition.kind='none' it must be 1"
        )
    if config.process.zero_terminal_snr and config.model.prediction == "eps":
        raise UserError(
            "config.process.zero_terminal_snr=True with config.model.prediction='eps' cannot work: at T the noise says "
            "nothing about the image; use prediction 'v' or 'x0'"
        )
    if config.sample.num_steps > config.process.num_timesteps:
        raise UserError(
            f"config.sample.num_steps={config.sample.num_steps} is more than the process has; "
            f"at most config.process.num_timesteps={config.process.num_timesteps}"
        )


def _check_numbers(flat: dict[str, Any]) -> None:
    """Numbers that arrays and programs can hold; the ranges of each key come after."""
    for key, value in flat.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if isinstance(value, float) and not abs(value) <= LARGEST_FLOAT:
            raise UserError(f"config.{key}={value!r} must be finite, and at most {LARGEST_FLOAT:g} in size")
        if isinstance(value, int) and not abs(value) < 2**32:
            raise UserError(f"config.{key}={value!r} is too large; the largest is {2**32 - 1}")


def _are(values: Any, kind: Any) -> bool:
    """Whether all of a tuple's values are numbers, or texts, of a kind; True is no number."""
    return all(isinstance(v, kind) and not isinstance(v, bool) for v in values)


def _check_range(flat: dict[str, Any], keys: str, holds: Callable[[Any], bool], words: str) -> None:
    for key in keys.split():
        if key in flat and not holds(flat[key]):
            raise UserError(f"config.{key}={flat[key]!r} must be {words}")


def _check_model(config: ConfigDict) -> None:
    """Sizes that must divide one another."""
    model = config.model
    _check_acting(config)
    if (config.space.kind == "latents" or model.backbone == "sd") and not model.pretrained:
        raise UserError(
            "config.model.pretrained is empty; give the folder of a Stable Diffusion model in the diffusers layout"
        )
    for key in ("process.schedule", "model.prediction", "sample.spacing"):
        section, name = key.split(".")
        if config[section][name] == "pretrained" and not model.pretrained:
            raise UserError(
                f"config.{key}='pretrained' needs config.model.pretrained, a folder in the diffusers layout"
            )
    if model.backbone == "sd" and (config.space.kind != "latents" or config.condition.kind == "none"):
        raise UserError(
            f"config.model.backbone='sd' works on latents under a condition, not on config.space.kind="
            f"{config.space.kind!r} with config.condition.kind={config.condition.kind!r}"
        )
    if config.condition.kind in ("class", "layout") and config.condition.width % 16:
        raise UserError(
            f"config.condition.width={config.condition.width} must be a multiple of 16 (group normalisation)"
        )
    if config.space.kind == "latents" and config.sample.threshold != "none":
        raise UserError(
            f"config.sample.threshold={config.sample.threshold!r} is for pixels in [-1, 1]; latents need 'none'"
        )
    if config.space.kind == "latents" and config.space.precomputed:
        for key, off in (("horizontal_flip", False), ("random_crop", 0.0)):
            if (value := config.data[key]) != off:
                raise UserError(f"config.data.{key}={value} cannot act on stored latents; set it to {off}")
    if model.backbone == "unet":
        _check_unet(config)
    if model.backbone == "ldm":
        _check_ldm(config)
    if model.backbone == "vdm" and not _are(model.fourier_bands, int):
        raise UserError(f"config.model.fourier_bands={tuple(model.fourier_bands)!r} must be whole numbers, e.g. (6, 7)")
    if model.backbone == "vdm" and (model.channels % 16 or model.channels % model.head_dim):
        raise UserError(
            f"config.model.channels={model.channels} must be a multiple of 16 (group normalisation) and of "
            f"config.model.head_dim={model.head_dim}"
        )
    if config.adapter.enabled:
        _check_adapter(config)


def _check_acting(config: ConfigDict) -> None:
    """Refuses what is named and would not be looked at."""
    uses_folder = config.space.kind == "latents" or any(
        config[section][name] == "pretrained"
        for section, name in (("process", "schedule"), ("model", "prediction"), ("sample", "spacing"))
    )
    reasons = {
        "model.pretrained": (uses_folder, "nothing is taken from it: space.kind='pixels'"),
        "space.latents": (config.space.kind == "latents", "space.kind='pixels' has no latents"),
        "space.rgb_map": (config.space.kind == "latents", "space.kind='pixels' has no latents"),
        "condition.encoder": (config.condition.kind == "text", f"kind={config.condition.kind!r} reads no text"),
    }
    if config.model.init_from and config.adapter.enabled and config.adapter.start:
        raise UserError(
            f"config.adapter.start={config.adapter.start!r} cannot act: the adapter starts from config.model.init_from="
            f"{config.model.init_from!r}; leave one of them empty"
        )
    for key, (acts, reason) in reasons.items():
        section, name = key.split(".")
        if config[section][name] and not acts:
            raise UserError(f"config.{key}={config[section][name]!r} cannot act: {reason}; leave it empty")


def _check_ldm(config: ConfigDict) -> None:
    """Sizes of latent diffusion's U-Net."""
    model = config.model
    if not model.multipliers or any(not isinstance(m, int) or m < 1 for m in model.multipliers):
        raise UserError(f"config.model.multipliers={tuple(model.multipliers)} must be whole numbers from 1")
    if model.channels % 32:
        raise UserError(f"config.model.channels={model.channels} must be a multiple of 32 (group normalisation)")
    last = len(model.multipliers) - 1
    for level in {*model.cross_attention_levels, last}:
        if not 0 <= level <= last:
            raise UserError(
                f"config.model.cross_attention_levels={tuple(model.cross_attention_levels)} names level {level}; "
                f"accepted: 0 to {last}"
            )
        if (width := model.channels * model.multipliers[level]) % model.head_dim:
            raise UserError(
                f"config.model.head_dim={model.head_dim} does not divide the {width} channels of level {level}, which "
                "attends; choose a divisor"
            )
    if model.dropout:
        raise UserError(f"config.model.dropout={model.dropout} cannot act on config.model.backbone='ldm'; set it to 0")


def _check_lora(config: ConfigDict) -> None:
    """What a LoRA needs before its layers are known."""
    lora = config.train.lora
    if isinstance(lora.rank, bool) or not isinstance(lora.rank, int) or lora.rank < 0:
        raise UserError(f"config.train.lora.rank={lora.rank!r} must be a whole number from 0 (none)")
    if lora.rank and config.task != "diffusion":
        raise UserError(f"config.train.lora.rank={lora.rank} cannot act on the task {config.task!r}; set it to 0")
    if not 0 < abs(lora.scale) < float("inf"):
        raise UserError(f"config.train.lora.scale={lora.scale} must be finite and other than 0; 1 is usual")


def _check_unet(config: ConfigDict) -> None:
    """Sizes of the pixel U-Net."""
    size, model = config.data.image_size, config.model
    for key in ("multipliers", "self_attention_levels", "cross_attention_levels"):
        if not _are(model[key], int):
            raise UserError(f"config.model.{key}={tuple(model[key])!r} must be whole numbers, e.g. (1, 2)")
    if not model.multipliers:
        raise UserError("config.model.multipliers=() leaves no level; give e.g. (1, 2, 3)")
    factor = model.patch_size * 2 ** (len(model.multipliers) - 1)
    if config.space.kind == "pixels" and size % factor:
        raise UserError(
            f"config.data.image_size={size} is not divisible by the U-Net's factor {factor} "
            f"(model.patch_size={model.patch_size} x 2^{len(model.multipliers) - 1} levels); "
            f"try {max(1, size // factor) * factor}"
        )
    if model.channels % 16:
        raise UserError(f"config.model.channels={model.channels} must be a multiple of 16 (group normalisation)")
    if any(m < 1 for m in model.multipliers):
        raise UserError(f"config.model.multipliers={tuple(model.multipliers)} must be whole numbers from 1")
    for key in ("self_attention_levels", "cross_attention_levels"):
        for level in model[key]:
            if not 0 <= level < len(model.multipliers):
                raise UserError(
                    f"config.model.{key}={tuple(model[key])} names level {level}; "
                    f"accepted: 0 to {len(model.multipliers) - 1}"
                )
            if (width := model.channels * model.multipliers[level]) % model.head_dim:
                raise UserError(
                    f"config.model.head_dim={model.head_dim} does not divide the {width} channels of level {level}, "
                    f"which attends ({key}); choose a divisor"
                )


def _check_adapter(config: ConfigDict) -> None:
    """Sizes of the adapter."""
    size, adapter = config.data.image_size, config.adapter
    if config.space.kind == "pixels" and size % adapter.patch_size:
        raise UserError(
            f"config.data.image_size={size} is not divisible by config.adapter.patch_size={adapter.patch_size}"
        )
    if adapter.width % adapter.num_heads or adapter.width % 4:
        raise UserError(
            f"config.adapter.width={adapter.width} is not divisible by config.adapter.num_heads={adapter.num_heads} "
            "and by 4 (position code); choose a multiple of both"
        )


# Keys that came after the first runs were saved, with the values that describe those.
_LATER = {
    "train.validate_every": 0,
    "train.validate_batches": 4,
    "data.random_crop": 0.0,
    "data.labels": "none",
    "data.class_names": (),
    "condition.kind": "text",
    "condition.encoder": "",
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
    "train.trainable": (".*",),
    "train.lora": dict(rank=0, scale=1.0, targets=(r"(attn\d|self|cross)/(query|key|value|out)/kernel$",)),
    "eval.after_training": False,
    "eval.bpd_dequantize": False,
    "eval.bpd_always": False,
    "eval.judge_steps": 0,
}


def complete(saved: ConfigDict) -> ConfigDict:
    """A saved config with the keys that an older version did not have."""
    result = saved.copy_and_resolve_references()
    for key, value in _LATER.items():
        section, name = key.split(".")
        if section not in result and section in ("condition", "space") and saved.get("task") == "diffusion":
            result[section] = ConfigDict()
        if section in result and name not in result[section]:
            result[section][name] = value
    return result


_PATHS = """
    data.path data.mask_path data.flow_path encoder.clip condition.encoder space.latents space.rgb_map model.pretrained
    model.init_from eval.recogniser clip.tokenizer_dir
"""


def whole_paths(config: ConfigDict) -> ConfigDict:
    """The config with every path that leads somewhere from here written from the root; the others, such as names of
    a hub, stay as they are. The config itself is not changed."""
    flat = leaves(config)
    changed = {}
    for key in _PATHS.split():
        if (value := flat.get(key)) and os.path.exists(path := os.path.expanduser(value)):
            changed[key] = os.path.abspath(path)
    result = config.copy_and_resolve_references()
    result.update_from_flattened_dict(changed)
    return result


def differences(saved: ConfigDict, now: ConfigDict, ignore: tuple[str, ...] = ()) -> list[str]:
    """Lines "key: saved X, now Y" for every leaf that differs; keys starting with one of `ignore` do not count."""
    old, new = leaves(saved), leaves(now)
    absent = "absent"
    return [
        f"{key}: saved {old.get(key, absent)!r}, now {new.get(key, absent)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, absent) != new.get(key, absent) and not key.startswith(ignore)
    ]
