"""A pipeline that was loaded for one sampler draws with another by that one's own rules."""

import json

import diffusers
import numpy as np
import pytest

import contextdiff_jax as cdx
from tests import stable_diffusion_helpers as helpers


@pytest.mark.parametrize(
    "sampler, scheduler", [("ddim", diffusers.DDIMScheduler), ("dpmpp_2m", diffusers.DPMSolverMultistepScheduler)]
)
def test_zero_terminal_snr_is_each_samplers_own(sampler, scheduler, folder):
    """DDIM starts from pure noise; DPM-Solver++, which divides by the signal, keeps 2^-24 of it."""
    task = cdx.Pipeline.load(folder).task.under(sampler)
    theirs = scheduler.from_pretrained(folder, subfolder="scheduler").alphas_cumprod.numpy()
    np.testing.assert_allclose(task.schedule.alpha_bar[1:], theirs, rtol=1e-4, atol=1e-9)
    assert (task.schedule.alpha_bar[-1] == 0) == (sampler == "ddim")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zero") / "sd"
    helpers.save_pipeline(folder)
    file = folder / "scheduler" / "scheduler_config.json"
    changes = dict(rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing")
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder
