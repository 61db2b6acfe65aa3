"""What the config's section `sample` accepts."""

from collections.abc import Collection

from ml_collections import ConfigDict

from contextdiff_jax.errors import UserError
from contextdiff_jax.keys import Values, are

# Keys of `sample` by the names that they have in other libraries.
ELSEWHERE = {
    "steps": "num_steps",
    "num_inference_steps": "num_steps",
    "guidance_scale": "guidance",
    "cfg": "guidance",
    "guidance_rescale": "rescale",
}
VALUES = Values(
    choices={
        "sample.sampler": ("ddpm", "ddim", "heun", "dpmpp_2m"),
        "sample.spacing": ("uniform", "trailing", "leading", "pretrained"),
        "sample.threshold": ("none", "static", "dynamic"),
        "sample.variance": ("posterior", "process"),
    },
    positive="sample.num_steps sample.batch_size",
    not_negative="sample.eta sample.guidance",
    fractions="sample.rescale",
    whole="sample.num_steps sample.batch_size",
    listed="sample.interval",
    needed="""
        sample.sampler sample.num_steps sample.spacing sample.eta sample.guidance sample.rescale sample.interval
        sample.threshold sample.adapter sample.batch_size
    """,
)
# What the keys are where nothing asks for them.
_AT_REST = {"eta": 0.0, "variance": "posterior", "last_noise": False, "rescale": 0.0, "interval": (0.0, 1.0)}


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
    for key, reason in _without_effect(config.sample).items():
        raise UserError(
            f"config.sample.{key}={config.sample[key]!r} cannot act: {reason}; leave it at {_AT_REST[key]!r}"
        )
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


def put_at_rest(sample: ConfigDict, asked: Collection[str]) -> None:
    """Of a model's own settings those that cannot act beside what a caller asks for; what he asks for himself stays,
    and is refused where it cannot act."""
    if not {"guidance", "sampler"} <= set(sample):  # of a damaged config; what reads it says so
        return
    for key in _without_effect(sample).keys() - set(asked):
        sample[key] = _AT_REST[key]


def _without_effect(sample: ConfigDict) -> dict[str, str]:
    """{key: why it changes no picture} of the keys that are not at rest."""
    unguided = "" if sample.guidance > 1 else f"it changes guidance, and guidance={sample.guidance:g} is none"
    noiseless = "" if sample.sampler == "ddim" else f"it is for sampler='ddim', not {sample.sampler!r}"
    ancestral = "" if sample.sampler == "ddpm" else f"it is for sampler='ddpm', not {sample.sampler!r}"
    reasons = {"eta": noiseless, "rescale": unguided, "interval": unguided}
    reasons |= {"variance": ancestral, "last_noise": ancestral}
    as_tuple = lambda value: tuple(value) if isinstance(value, list) else value
    acting = {key for key in reasons if key in sample and as_tuple(sample[key]) != _AT_REST[key]}
    return {key: why for key, why in reasons.items() if why and key in acting}
