"""What the config's sections `clip` and `autoencoder` accept: the sizes of encoders that are trained here."""

from ml_collections import ConfigDict

from contextdiff_jax.encoders.clip_config import ACTIVATIONS
from contextdiff_jax.errors import UserError
from contextdiff_jax.keys import Values, are

_CLIP = """
    clip.image_size clip.patch_size clip.vision_width clip.vision_heads clip.text_width clip.text_heads clip.max_length
    clip.vocab_size clip.projection_dim
"""
_LAYERS = "clip.vision_layers clip.text_layers autoencoder.num_blocks"
_AUTOENCODER = "autoencoder.latent_channels autoencoder.norm_groups"
VALUES = Values(
    choices={"clip.activation": tuple(ACTIVATIONS)},
    positive=f"{_CLIP} {_AUTOENCODER}",
    not_negative=f"{_LAYERS} autoencoder.kl_weight",
    whole=f"{_CLIP} {_LAYERS} {_AUTOENCODER}",
    listed="autoencoder.channels",
    needed=f"""
        {_CLIP} {_LAYERS} clip.activation clip.tokenizer_dir {_AUTOENCODER} autoencoder.channels autoencoder.kl_weight
    """,
)


def check(config: ConfigDict) -> None:
    """Sizes that must divide one another.

    Raises:
        UserError: names the keys, their values and the remedy.
    """
    if "clip" in config:
        _check_clip(config.clip)
    if "autoencoder" in config:
        _check_autoencoder(config.autoencoder)


def _check_clip(clip: ConfigDict) -> None:
    for size, part in (("image_size", "patch_size"), ("vision_width", "vision_heads"), ("text_width", "text_heads")):
        if clip[size] % clip[part]:
            raise UserError(
                f"config.clip.{size}={clip[size]} is not divisible by config.clip.{part}={clip[part]}; choose a "
                "multiple"
            )
    if clip.max_length < 2:
        raise UserError(f"config.clip.max_length={clip.max_length} has no room for a text's two ends; give 3 or more")


def _check_autoencoder(autoencoder: ConfigDict) -> None:
    channels, groups = tuple(autoencoder.channels), autoencoder.norm_groups
    if not channels or not are(channels, int) or any(width < 1 or width % groups for width in channels):
        raise UserError(
            f"config.autoencoder.channels={channels!r} must be multiples of config.autoencoder.norm_groups={groups} "
            "(group normalisation), one for each level, e.g. (16, 32, 64) with 8"
        )
