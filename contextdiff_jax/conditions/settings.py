"""What the config's sections `condition` and `space` accept."""

from ml_collections import ConfigDict

from contextdiff_jax.errors import UserError
from contextdiff_jax.keys import Values

VALUES = Values(
    choices={
        "condition.kind": ("text", "class", "layout", "none"),
        "condition.embedding": ("one_hot", "resnet"),
        "space.kind": ("pixels", "latents"),
        "space.rgb": ("linear", "decode"),
    },
    positive="condition.width condition.token_grid condition.map_channels",
    not_negative="space.max_latents condition.kept_texts condition.depth",
    whole="""
        condition.width condition.token_grid condition.map_channels condition.depth condition.kept_texts
        space.max_latents
    """,
)


def check(config: ConfigDict) -> None:
    """What is named and would not be looked at, and what latents cannot do.

    Raises:
        UserError: names the keys, their values and the remedy.
    """
    if "model" not in config:
        return
    latents = config.space.kind == "latents"
    reasons = {
        "space.latents": (latents, "space.kind='pixels' has no latents"),
        "space.rgb_map": (latents, "space.kind='pixels' has no latents"),
        "condition.encoder": (config.condition.kind == "text", f"kind={config.condition.kind!r} reads no text"),
        "condition.kept_texts": (config.condition.kind == "text", f"kind={config.condition.kind!r} reads no text"),
    }
    for key, (acts, reason) in reasons.items():
        section, name = key.split(".")
        if config[section][name] and not acts:
            raise UserError(f"config.{key}={config[section][name]!r} cannot act: {reason}; leave it empty")
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
