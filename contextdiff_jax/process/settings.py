"""What the config's section `process` accepts: what can be learned of the diffusion process, and sampled."""

from ml_collections import ConfigDict

from contextdiff_jax.errors import UserError
from contextdiff_jax.keys import Values, are, leaves, require

VALUES = Values(
    choices={
        "process.schedule": ("cosine", "linear", "scaled_linear", "log_snr", "learned", "pretrained"),
        "process.init": ("cosine", "linear", "scaled_linear", "log_snr"),
        "process.ends": ("free", "fixed"),
        "process.variance": ("beta", "posterior", "learned"),
    },
    positive="process.num_timesteps",
    whole="process.num_timesteps",
    listed="process.log_snr",
    needed="process.schedule process.num_timesteps process.zero_terminal_snr",
)


def check(config: ConfigDict) -> None:
    """What cannot be learned, or not by this objective, or not be sampled.

    Raises:
        UserError: names the key, the value and the remedy.
    """
    if "process" not in config:
        return
    process = config.process
    if (process.init if process.schedule == "learned" else process.schedule) in ("linear", "scaled_linear"):
        require(leaves(config), "process.beta_start process.beta_end")
    if len(process.log_snr) != 2 or not are(process.log_snr, int | float):
        raise UserError(f"config.process.log_snr={tuple(process.log_snr)!r} must be two numbers, e.g. (6.0, -8.0)")
    learned = [key for key in ("schedule", "variance") if process[key] == "learned"]
    if learned and config.loss.objective != "nelbo":
        raise UserError(
            f"config.process.{learned[0]}='learned' needs the bound: config.loss.objective='nelbo', not "
            f"{config.loss.objective!r}, whose minimum is a process without noise"
        )
    pretrained = config.model.backbone == "sd" and not config.model.random_start
    if process.schedule == "learned" and pretrained:
        raise UserError(
            "config.process.schedule='learned' with the network of config.model.pretrained: it knows the times of its "
            "own schedule; use process.schedule='pretrained', or model.random_start=True"
        )
    if process.schedule == "learned" and process.zero_terminal_snr:
        raise UserError("config.process.zero_terminal_snr=True fixes what config.process.schedule='learned' learns")
    if process.variance == "learned":
        _check_sampler(config)
    elif process.variance_per_channel:
        raise UserError("config.process.variance_per_channel is for config.process.variance='learned'; set it")
    elif config.sample.variance == "process":
        _check_steps(config, "sample.variance='process'", "or set sample.variance='posterior'")
    elif config.sample.last_noise:
        raise UserError(
            "config.sample.last_noise is for the variance of the bound: set config.sample.variance='process', or "
            "config.process.variance='learned'"
        )


def _check_sampler(config: ConfigDict) -> None:
    """A learned variance is that of single steps, and of no other sampler."""
    sample = config.sample
    _check_steps(config, "process.variance='learned'", "or use ddim, heun or dpmpp_2m")
    if sample.sampler == "ddim" and sample.eta > 0:
        raise UserError(
            f"config.sample.eta={sample.eta} draws with another variance than the learned one; use ddpm, or eta 0"
        )


def _check_steps(config: ConfigDict, named: str, or_else: str) -> None:
    """The variance of the bound is that of single steps."""
    sample, T = config.sample, config.process.num_timesteps
    if sample.sampler == "ddpm" and sample.num_steps != T:
        # No other sampler takes more than there are either.
        remedy = f"; {or_else}" if sample.num_steps < T else ""
        raise UserError(
            f"config.sample.num_steps={sample.num_steps}: config.{named} is that of single steps; "
            f"sampler ddpm takes all {T} of them{remedy}"
        )
