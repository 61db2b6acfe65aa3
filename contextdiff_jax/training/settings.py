"""What the config's sections `optim`, `ema` and `train`, and its seeds, accept."""

import re
from typing import Any

from ml_collections import ConfigDict

from contextdiff_jax.errors import UserError
from contextdiff_jax.keys import Values, are, leaves, require

VALUES = Values(
    choices={"optim.schedule": ("constant", "cosine")},
    positive="""
        optim.lr optim.eps optim.accum_steps train.num_steps train.log_every train.checkpoint_every train.keep
        train.validate_batches
    """,
    not_negative="""
        seed optim.weight_decay optim.warmup_steps optim.clip_norm train.keep_every train.preview_every
        train.validate_every
    """,
    fractions="ema.decay optim.b1 optim.b2 optim.momentum",
    whole="""
        seed optim.accum_steps train.num_steps train.validate_batches mesh.data mesh.fsdp mesh.tensor
    """,
    listed="optim.lr_multipliers train.trainable train.lora.targets sharding.rules",
    needed="task seed train.trainable mesh.data mesh.fsdp mesh.tensor sharding.rules",
    trained="""
        optim.lr optim.b1 optim.b2 optim.eps optim.weight_decay optim.warmup_steps optim.schedule optim.clip_norm
        optim.accum_steps optim.lr_multipliers ema.decay ema.warmup train.num_steps train.log_every
        train.checkpoint_every train.keep train.keep_every train.preview_every
    """,
)


def check(config: ConfigDict) -> None:
    """Seeds that a key holds, and what a LoRA needs before its layers are known.

    Raises:
        UserError: names the keys, their values and the remedy.
    """
    if max(config.seed, config.data.seed) >= 2**32:
        raise UserError(
            f"config.seed={config.seed}, config.data.seed={config.data.seed}: the largest seed is {2**32 - 1}"
        )
    muon = config.optim.muon if "optim" in config else ()  # a model that was never trained here has none
    if not isinstance(muon, list | tuple) or not are(muon, str):
        raise UserError(f"config.optim.muon={muon!r} must be a tuple of regular expressions; () steps with Adam alone")
    _check_patterns("train.trainable", config.train.trainable)
    if "lora" in config.train and "rank" in config.train.lora:
        _check_lora(config)


def check_averages(config: ConfigDict) -> None:
    """Refuses a training whose averages never move, or that nothing is said of; what was trained so can still be used.

    Raises:
        UserError: names the key, its value and the remedy.
    """
    require(leaves(config), f"{VALUES.needed} {VALUES.trained}")
    for name in ("b1", "b2", "momentum"):
        if name in config.optim and config.optim[name] == 1:
            raise UserError(f"config.optim.{name}=1 keeps its average at 0 for ever; give a value below 1")
    if config.ema.decay == 1 and not config.ema.warmup:
        raise UserError(
            "config.ema.decay=1 with config.ema.warmup=False keeps the parameters of the start for ever; give a decay "
            "below 1, such as 0.999"
        )


def _check_patterns(key: str, patterns: Any) -> None:
    """Refuses what is no tuple of regular expressions."""
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise UserError(f"config.{key}: {pattern!r} is no regular expression: {error}") from error


def _check_lora(config: ConfigDict) -> None:
    """What a LoRA needs before its layers are known."""
    lora = config.train.lora
    _check_patterns("train.lora.targets", lora.targets)
    if isinstance(lora.rank, bool) or not isinstance(lora.rank, int) or lora.rank < 0:
        raise UserError(f"config.train.lora.rank={lora.rank!r} must be a whole number from 0 (none)")
    if lora.rank and config.task != "diffusion":
        raise UserError(f"config.train.lora.rank={lora.rank} cannot act on the task {config.task!r}; set it to 0")
    if not 0 < abs(lora.scale) < float("inf"):
        raise UserError(f"config.train.lora.scale={lora.scale} must be finite and other than 0; 1 is usual")
