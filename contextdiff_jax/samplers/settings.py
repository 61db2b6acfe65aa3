"""What the config's section `sample` accepts."""

from ml_collections import ConfigDict

from contextdiff_jax.errors import UserError
from contextdiff_jax.keys import Values, are

VALUES = Values(
    choices={
        "sample.sampler": ("ddpm", "ddim", "heun", "dpmpp_2m"),
        "sample.spacing": ("uniform", "trailing", "leading", "pretrained"),
        "sample.threshold": ("none", "static", "dynamic"),
    },
    positive="sample.num_steps sample.batch_size",
    not_negative="sample.eta sample.guidance",
    fractions="sample.rescale",
)


def check(config: ConfigDict) -> None:
    """What a sampler would otherwise only find out when it is traced.

    Raises:
        UserError: names the keys, their values and the remedy.
    """
    if "sample" not in config:
        return
    low_high = tuple(config.sample.interval)
    if not are(low_high, int | float) or len(low_high) != 2 or not 0 <= low_high[0] < low_high[1] <= 1:
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
