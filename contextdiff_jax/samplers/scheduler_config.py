"""diffusers' `scheduler/scheduler_config.json` as a schedule and as the steps of a sampler.

The file mixes two things: the process that the model was trained on (betas, prediction) and how one of diffusers'
samplers walks through it. Each of its sampler classes reads the file of any other: it takes the keys that it knows and
its own defaults for what is absent, and ignores the rest. So it is here: Stable Diffusion 1.5 ships a PNDM file, and
what its users get with DDIM or DPM-Solver++ is that file read by those classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from contextdiff_jax.errors import UserError
from contextdiff_jax.formats.kinds import check
from contextdiff_jax.process import schedule
from contextdiff_jax.process.schedule import Schedule
from contextdiff_jax.samplers.loop import check_num_steps, most_steps, timesteps

PRETRAINED = "pretrained"  # as a value of the config: what the pretrained folder says

# The class whose rules hold for each of our samplers. diffusers has no Heun in this form; it gets DDIM's times.
_CLASSES = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "heun": "DDIMScheduler",
}
# Ours for each class: the same computation, but for PNDM, which has no counterpart.
_SAMPLERS = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "EulerDiscreteScheduler": "ddim",
    "PNDMScheduler": None,
}
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
SPACINGS = {"leading": "leading", "trailing": "trailing", "linspace": "uniform"}
_TINY_TERMINAL = 2.0**-24  # alpha_bar_T where zero would be an infinite sigma

# Defaults of the keys that matter, as the classes themselves have them.
_COMMON = dict(
    num_train_timesteps=1000,
    beta_start=1e-4,
    beta_end=0.02,
    beta_schedule="linear",
    trained_betas=None,
    prediction_type="epsilon",
    timestep_spacing="leading",
    steps_offset=0,
)
_THRESHOLD = dict(thresholding=False, sample_max_value=1.0)
_CLIP = dict(clip_sample=True, clip_sample_range=1.0)
_DEFAULTS = {
    "DDIMScheduler": _COMMON | _THRESHOLD | _CLIP | dict(set_alpha_to_one=True, rescale_betas_zero_snr=False),
    "DDPMScheduler": _COMMON | _THRESHOLD | _CLIP | dict(variance_type="fixed_small", rescale_betas_zero_snr=False),
    "PNDMScheduler": _COMMON | dict(set_alpha_to_one=False),
    "DPMSolverMultistepScheduler": _COMMON
    | _THRESHOLD
    | dict(
        timestep_spacing="linspace",
        rescale_betas_zero_snr=False,
        solver_order=2,
        algorithm_type="dpmsolver++",
        solver_type="midpoint",
        lower_order_final=True,
        euler_at_final=False,
        use_karras_sigmas=False,
        use_exponential_sigmas=False,
        use_beta_sigmas=False,
        use_lu_lambdas=False,
        use_flow_sigmas=False,
        final_sigmas_type="zero",
        lambda_min_clipped=-float("inf"),
        variance_type=None,
    ),
    "EulerDiscreteScheduler": _COMMON
    | dict(
        timestep_spacing="linspace",
        rescale_betas_zero_snr=False,
        interpolation_type="linear",
        use_karras_sigmas=False,
        use_exponential_sigmas=False,
        use_beta_sigmas=False,
        sigma_min=None,
        sigma_max=None,
        timestep_type="discrete",
        final_sigmas_type="zero",
    ),
}
# What is supported, where that is a choice.
_ACCEPTED = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": tuple(PREDICTIONS),
    "timestep_spacing": tuple(SPACINGS),
    "final_sigmas_type": ("zero", "sigma_min"),
    "algorithm_type": ("dpmsolver++",),
    "solver_order": (2,),
    "solver_type": ("midpoint",),
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
    "sigma_min": (None,),
    "sigma_max": (None,),
    **{f"use_{kind}": (False, None) for kind in ("karras_sigmas", "exponential_sigmas", "beta_sigmas")},
    **{f"use_{kind}": (False, None) for kind in ("lu_lambdas", "flow_sigmas")},
}
_VARIANCES = {"DDPMScheduler": ("fixed_small", "fixed_small_log"), "DPMSolverMultistepScheduler": (None,)}
_FLAGS = (
    "clip_sample",
    "thresholding",
    "set_alpha_to_one",
    "rescale_betas_zero_snr",
    "lower_order_final",
    "euler_at_final",
)


@dataclass(frozen=True)
class SchedulerConfig:
    """A scheduler's file, read.

        config = from_scheduler_config(json.load(file), sampler="ddim")
        x0 = samplers.ddim(chart, config.schedule, key, x_T, num_steps, **config.options(num_steps))

    Attributes:
        schedule: the process; its t is diffusers' plus 1.
        prediction: what the network predicts, x0, eps or v.
        sampler: the sampler it was read for: the one asked for, else the one that computes what the file's class does
            (Euler's step is DDIM's in other coordinates, its start is x_T times sqrt(1 - alpha_bar_T)); None for PNDM.
        spacing: uniform, trailing or leading, see `samplers.timesteps`.
        steps_offset: of leading spacing.
        final: where the last step ends: 0 is clean data, 1 the least noisy time that the model was trained on, where
            Stable Diffusion's DDIM ends (`set_alpha_to_one=False`, or `final_sigmas_type="sigma_min"`).
        threshold: None, or "static": x0_hat is clipped to [-1, 1]. DDIM keeps the noise of the unclipped one (`clip`
            among its `options`); the others take both from the clipped one.
        scheduler: diffusers' class whose rules hold.
        first_order_last: below how many steps DPM-Solver++ ends in a step of first order.
    """

    schedule: Schedule
    prediction: str
    sampler: str | None
    spacing: str
    steps_offset: int
    final: int
    threshold: str | None
    scheduler: str
    first_order_last: float

    def moves(self, num_steps: int) -> np.ndarray:
        """Rows (t, s), int32 [num_steps, 2], the steps that diffusers' class takes.

        DDIM steps by T // num_steps, wherever the next time is: where T / num_steps is no integer, trailing and uniform
        steps end beside the time at which the network is asked next. Euler's linspace times are fractions in
        diffusers; here they are rounded.

        Raises:
            UserError: num_steps out of range.
        """
        T = self.schedule.num_timesteps
        check_num_steps(T, num_steps)
        if self.scheduler == "DPMSolverMultistepScheduler" and self.spacing != "trailing":
            # One time more than there are steps, of which the last, near 0, is left out
            if (most := most_steps(T, num_steps + 1, self.spacing, self.steps_offset) - 1) < num_steps:
                raise UserError(f"num_steps={num_steps} is too many for DPM-Solver++'s grid; at most {most}")
            t = timesteps(T, num_steps + 1, self.spacing, steps_offset=self.steps_offset)[:num_steps]
        else:
            t = timesteps(T, num_steps, self.spacing, steps_offset=self.steps_offset)[:num_steps]
        if self.scheduler in ("DDIMScheduler", "PNDMScheduler"):
            s = t - T // num_steps
            s = np.where(s >= 1, s, np.minimum(self.final, t))
        else:
            s = np.append(t[1:], self.final)
        return np.stack([t, s], axis=1).astype(np.int32)

    def options(self, num_steps: int) -> dict[str, Any]:
        """The sampler's keyword arguments."""
        options = {"spacing": self.moves(num_steps)}
        if self.sampler == "dpmpp_2m":
            options["first_order_last"] = num_steps < self.first_order_last
        if self.sampler == "ddim":
            options["clip"] = self.threshold == "static"
        return options


def values_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """All that is read of a file, with the defaults of each class for what it lacks: {"class.key": value}."""
    classes = {name: _DEFAULTS[name] for name in _CLASSES.values()}
    return {f"{name}.{key}": config.get(key, value) for name, keys in classes.items() for key, value in keys.items()}


def with_zero_terminal_snr(config: Mapping[str, Any]) -> dict[str, Any]:
    """The file under `process.zero_terminal_snr`: each class rescales the betas in its own way."""
    return {**config, "rescale_betas_zero_snr": True}


def as_stable_diffusion(config: Mapping[str, Any]) -> dict[str, Any]:
    """The file as diffusers' StableDiffusionPipeline takes it: whatever it says, offset 1 and x0_hat never clipped.

    Early files have the classes' own 0 and true; the pipeline corrects them with a warning, and so the pictures that
    people know of those models are made.
    """
    return {**config, "steps_offset": 1, "clip_sample": False}


def from_scheduler_config(config: Mapping[str, Any], sampler: str | None = None) -> SchedulerConfig:
    """Reads the contents of a `scheduler_config.json`.

    Args:
        config: the parsed file.
        sampler: ddpm, ddim, heun or dpmpp_2m, to read it as diffusers' class of that name would (their
            `Class.from_config(pipe.scheduler.config)`); None reads it as the class it names.

    Raises:
        UserError: a value that is not supported, or a class that is not and no sampler given.
    """
    if sampler is not None and sampler not in _CLASSES:
        raise UserError(f"sampler {sampler!r} is unknown; accepted: {', '.join(_CLASSES)}")
    name = config.get("_class_name") if sampler is None else _CLASSES[sampler]
    if not isinstance(name, str) or name not in _DEFAULTS:
        raise UserError(
            f"scheduler config: _class_name={name!r} is not supported; accepted: {', '.join(_DEFAULTS)}; or name one "
            f"of the samplers {', '.join(_CLASSES)} to read the file for that"
        )
    values = {key: config.get(key, default) for key, default in _DEFAULTS[name].items()}
    _check(name, values)
    s = _schedule(name, values)
    _check_clipped_lambda(values, s)
    at_noise = not values.get("set_alpha_to_one", True) or values.get("final_sigmas_type") == "sigma_min"
    lower_order = 15 if values.get("lower_order_final") else 0
    return SchedulerConfig(
        schedule=s,
        prediction=PREDICTIONS[values["prediction_type"]],
        sampler=_SAMPLERS[name] if sampler is None else sampler,
        spacing=SPACINGS[values["timestep_spacing"]],
        steps_offset=values["steps_offset"],
        final=int(at_noise),
        threshold="static" if values.get("thresholding") or values.get("clip_sample") else None,
        scheduler=name,
        first_order_last=float("inf") if values.get("euler_at_final") else lower_order,
    )


def _schedule(name: str, values: dict[str, Any]) -> Schedule:
    T, start, end = (values[key] for key in ("num_train_timesteps", "beta_start", "beta_end"))
    if values["trained_betas"] is not None:
        s = schedule.from_betas(values["trained_betas"])
        if s.num_timesteps != T:
            raise UserError(
                f"scheduler config: trained_betas holds {s.num_timesteps} values and num_train_timesteps={T}; "
                "they must agree"
            )
    else:
        s = {
            "linear": lambda: schedule.linear(T, start, end),
            "scaled_linear": lambda: schedule.scaled_linear(T, start, end),
            "squaredcos_cap_v2": lambda: schedule.cosine(T),
        }[values["beta_schedule"]]()
    if values.get("rescale_betas_zero_snr"):
        by_sigma = name in ("DPMSolverMultistepScheduler", "EulerDiscreteScheduler")
        s = schedule.zero_terminal_snr(s, _TINY_TERMINAL if by_sigma else 0.0)
    return s


def _check(name: str, values: dict[str, Any]) -> None:
    """Refuses what the class knows and we do not."""
    accepted = _ACCEPTED | {flag: (True, False) for flag in _FLAGS}
    if name in _VARIANCES:
        accepted["variance_type"] = _VARIANCES[name]
    if name == "PNDMScheduler":
        accepted["prediction_type"] = ("epsilon", "v_prediction")
    if values.get("thresholding"):
        accepted["sample_max_value"] = (1.0,)
    elif values.get("clip_sample"):
        accepted["clip_sample_range"] = (1.0,)
    for key, value in values.items():
        if key in accepted and not any(value is a or (type(value) is not bool and value == a) for a in accepted[key]):
            _refuse(key, value, ", ".join(str(a) for a in accepted[key]))
    if values["trained_betas"] is not None:
        check("scheduler config:", values, dict(trained_betas=tuple[float, ...]))
    for key in ("num_train_timesteps", "steps_offset"):
        if type(values[key]) is not int or values[key] < 0:
            _refuse(key, values[key], "whole numbers from 0")
    for key in ("beta_start", "beta_end", "lambda_min_clipped"):
        if type(values.get(key, 0.0)) not in (int, float):
            _refuse(key, values[key], "numbers")


def _check_clipped_lambda(values: dict[str, Any], s: Schedule) -> None:
    """DPM-Solver's clip of log(alpha / sigma) is supported as far as it clips nothing."""
    limit = values.get("lambda_min_clipped", -float("inf"))
    ab_T = float(s.alpha_bar[-1])
    least = 0.5 * np.log(ab_T / (1.0 - ab_T)) if ab_T > 0 else -float("inf")
    if limit > least:
        _refuse("lambda_min_clipped", limit, f"-inf to {least:.4g} (the schedule's least; nothing is clipped)")


def _refuse(key: str, value: Any, accepted: str) -> None:
    raise UserError(f"scheduler config: {key}={value!r} is not supported; accepted: {accepted}")
