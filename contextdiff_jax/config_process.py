"""Checks of what a config asks of the diffusion process: what is learned of it, and how it is reversed."""

from ml_collections import ConfigDict

from contextdiff_jax.errors import UserError


def check_process(config: ConfigDict) -> None:
    """What cannot be learned, or not by this objective, or not be sampled.

    Raises:
        UserError: names the key, the value and the remedy.
    """
    process, T = config.process, config.process.num_timesteps
    if isinstance(T, bool) or not isinstance(T, int):
        raise UserError(f"config.process.num_timesteps={T!r} must be a whole number from 1")
    learned = [key for key in ("schedule", "variance") if process[key] == "learned"]
    if learned and config.loss.objective != "nelbo":
        raise UserError(
            f"config.process.{learned[0]}='learned' needs the bound: config.loss.objective='nelbo', not "
            f"{config.loss.objective!r}, whose minimum is a process without noise"
        )
    if process.schedule == "learned" and config.model.pretrained:
        raise UserError(
            "config.process.schedule='learned' with config.model.pretrained: that network knows the times of its own "
            "schedule; use process.schedule='pretrained'"
        )
    if process.schedule == "learned" and process.zero_terminal_snr:
        raise UserError("config.process.zero_terminal_snr=True fixes what config.process.schedule='learned' learns")
    if config.loss.num_times and config.loss.objective != "nelbo":
        raise UserError(f"config.loss.num_times={config.loss.num_times} is for config.loss.objective='nelbo'; use 0")
    if process.variance == "learned":
        _check_sampler(config)
    elif process.variance_per_channel or config.sample.last_noise:
        raise UserError("variance_per_channel and last_noise are for config.process.variance='learned'; set it")


def _check_sampler(config: ConfigDict) -> None:
    """A learned variance is that of single steps."""
    sample, T = config.sample, config.process.num_timesteps
    if sample.sampler == "ddpm" and sample.num_steps != T:
        raise UserError(
            f"config.sample.num_steps={sample.num_steps}: config.process.variance='learned' is that of single steps; "
            f"sampler ddpm takes all {T} of them; or use ddim, heun or dpmpp_2m"
        )
    if sample.sampler == "ddim" and sample.eta > 0:
        raise UserError(
            f"config.sample.eta={sample.eta} draws with another variance than the learned one; use ddpm, or eta 0"
        )


def check_reverse(config: ConfigDict) -> None:
    """The options of a contextual process: a second head for the shift, a forward scale.

    Raises:
        UserError: as `check_process`.
    """
    adapter = config.adapter
    if not 0 <= adapter.scale < 1:
        raise UserError(
            f"config.adapter.scale={adapter.scale}: the forward scale lies within this of 1 and must not reach zero; "
            "use 0 (none) to below 1, e.g. 0.9"
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
