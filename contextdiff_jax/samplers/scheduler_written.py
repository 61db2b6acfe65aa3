"""diffusers' `scheduler_config.json` of a model that was trained on a process of its own."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from contextdiff_jax.errors import UserError
from contextdiff_jax.process import schedule
from contextdiff_jax.process.schedule import Schedule
from contextdiff_jax.samplers.scheduler_config import PREDICTIONS, PRETRAINED, SPACINGS, from_scheduler_config

CLASS = "DDIMScheduler"  # knows every key that is written here; not all of diffusers' classes do
_BETAS = {"cosine": "squaredcos_cap_v2", "linear": "linear", "scaled_linear": "scaled_linear"}


def written(
    found: Mapping[str, Any], process: ConfigDict, spacing: str, s: Schedule, prediction: str
) -> dict[str, Any]:
    """The file with which diffusers' schedulers walk through the process that a model was trained on.

    Args:
        found: the pretrained folder's file, {} where it has none.
        process: the config's section; a learned schedule has no such file, and `found` comes back.
        spacing: of the config's section `sample`.
        s: the schedule that was trained on.
        prediction: what the network predicts, x0, eps or v.

    Returns:
        `found` as it is where it says all that; else the same for a DDIMScheduler.
    """
    if process.schedule == "learned" or (spacing == PRETRAINED and _says(found, s, prediction)):
        return dict(found)
    names = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    rescaled = found.get("rescale_betas_zero_snr", False) if process.schedule == PRETRAINED else False
    own = dict(
        _class_name=CLASS,
        num_train_timesteps=s.num_timesteps,
        prediction_type=names[prediction],
        rescale_betas_zero_snr=bool(process.zero_terminal_snr or rescaled),
        clip_sample=False,
    )
    return {**found, **own, **_betas(process), **_steps(spacing)}


def _says(found: Mapping[str, Any], s: Schedule, prediction: str) -> bool:
    """Whether a file has this schedule and this prediction."""
    try:
        read = from_scheduler_config(found, "ddim")
    except UserError:
        return False
    same = read.prediction == prediction and read.schedule.num_timesteps == s.num_timesteps
    return same and bool(np.allclose(read.schedule.alpha_bar, s.alpha_bar, rtol=0.0, atol=1e-6))


def _betas(process: ConfigDict) -> dict[str, Any]:
    """The keys of the betas before they are rescaled to zero terminal SNR; {} where they are those of the file."""
    if process.schedule == PRETRAINED:
        return {}
    if process.schedule in _BETAS:
        ends = {} if process.schedule == "cosine" else dict(beta_start=process.beta_start, beta_end=process.beta_end)
        return dict(beta_schedule=_BETAS[process.schedule], trained_betas=None, **ends)
    before = process.copy_and_resolve_references()
    before.zero_terminal_snr = False
    alpha_bar = np.asarray(schedule.from_config(before).alpha_bar, np.float64)
    return dict(trained_betas=(1.0 - alpha_bar[1:] / alpha_bar[:-1]).tolist())


def _steps(spacing: str) -> dict[str, Any]:
    """The keys of how one samples; {} where they are those of the file.

    The offset acts on leading times alone; 1 elsewhere is what Stable Diffusion's pipeline asks for.
    """
    if spacing == PRETRAINED:
        return {}
    names = {ours: theirs for theirs, ours in SPACINGS.items()}
    return dict(
        timestep_spacing=names[spacing],
        steps_offset=int(spacing != "leading"),
        set_alpha_to_one=True,
        thresholding=False,
    )
