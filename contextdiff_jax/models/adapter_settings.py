"""What the config's section `adapter` accepts."""

from ml_collections import ConfigDict

from contextdiff_jax.errors import UserError
from contextdiff_jax.keys import Values, leaves, require

_SIZES = "adapter.depth adapter.num_heads adapter.width adapter.patch_size"
VALUES = Values(
    choices={"adapter.features": ("clip", "patches"), "adapter.reverse": ("estimate", "head")},
    positive=_SIZES,
    not_negative="adapter.spectral_norm adapter.bound",
    whole=_SIZES,
    needed="adapter.enabled",
)

_MAX_SCALE = 0.99  # in float32 the tanh before it reaches 1


def check(config: ConfigDict) -> None:
    """Sizes that must divide one another, and how the shift is reversed.

    Raises:
        UserError: names the keys, their values and the remedy.
    """
    if "model" in config and config.adapter.enabled:
        require(leaves(config), f"{_SIZES} adapter.bound")
        _check_sizes(config)
    if "process" in config:
        _check_reverse(config)


def _check_sizes(config: ConfigDict) -> None:
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


def _check_reverse(config: ConfigDict) -> None:
    """The options of a contextual process: a second head for the shift, a forward scale."""
    adapter = config.adapter
    if not 0 <= adapter.scale <= _MAX_SCALE:
        raise UserError(
            f"config.adapter.scale={adapter.scale}: the forward scale lies within this of 1 and must not reach zero; "
            f"use 0 (none) to {_MAX_SCALE}"
        )
    head, scale = adapter.reverse == "head", adapter.scale > 0
    if not adapter.enabled or not (head or scale):
        return
    option = "config.adapter.reverse='head'" if head else f"config.adapter.scale={adapter.scale}"
    if head and scale:
        raise UserError(f"{option} does not go with config.adapter.scale={adapter.scale}; set one of them back")
    if config.model.backbone in ("ldm", "sd"):
        raise UserError(
            f"{option} does not go with config.model.backbone={config.model.backbone!r}; use reverse='estimate' and "
            "scale=0"
        )
    if config.loss.objective != "nelbo":
        raise UserError(f"{option} is trained on the bound: set config.loss.objective='nelbo'")
    if head and config.sample.adapter:
        _check_head_sampler(config)


def _check_head_sampler(config: ConfigDict) -> None:
    """A predicted shift is that of single, unguided steps."""
    sample, T = config.sample, config.process.num_timesteps
    if sample.sampler != "ddpm" or sample.num_steps != T:
        raise UserError(
            "config.adapter.reverse='head' predicts the shift of single steps: use config.sample.sampler='ddpm' with "
            f"num_steps={T}, not {sample.sampler!r} with {sample.num_steps}"
        )
    if sample.guidance > 1:
        raise UserError(f"config.adapter.reverse='head' cannot be guided: set sample.guidance={sample.guidance:g} to 1")
