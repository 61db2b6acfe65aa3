"""What the config's section `recogniser` accepts."""

from ml_collections import ConfigDict

from contextdiff_jax.errors import UserError
from contextdiff_jax.keys import Values, are

_AUGMENT = "recogniser.augment.blur recogniser.augment.noise recogniser.augment.gain recogniser.augment.shift"
VALUES = Values(not_negative=_AUGMENT, listed="recogniser.channels", needed=f"recogniser.channels {_AUGMENT}")
GROUP = 16  # channels of a group of its normalisation


def check(config: ConfigDict) -> None:
    """Widths that groups divide.

    Raises:
        UserError: names the key, its value and the remedy.
    """
    if "recogniser" not in config:
        return
    channels = tuple(config.recogniser.channels)
    if len(channels) != 3 or not are(channels, int) or not all(map(_fits, (channels[0] // 2, *channels))):
        raise UserError(
            f"config.recogniser.channels={channels!r} must be three whole numbers, of which the half of the first and "
            f"each are {GROUP} or less, or multiples of it (group normalisation), e.g. (64, 96, 128)"
        )


def _fits(width: int) -> bool:
    return width > 0 and width % min(GROUP, width) == 0
