"""A pipeline that was loaded for one sampler draws with another by that one's own rules."""

import json
import shutil

import diffusers
import numpy as np
import pytest

import contextdiff_jax as cdx
from contextdiff_jax import losses
from contextdiff_jax.errors import UserError
from contextdiff_jax.pipeline import loading
from contextdiff_jax.samplers.scheduler_config import from_scheduler_config
from contextdiff_jax.tasks import objective
from contextdiff_jax.tasks.diffusion import DiffusionTask
from contextdiff_jax.tasks.parts import Parts
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


@pytest.mark.parametrize("file_has_it", [True, False])
def test_the_config_s_zero_terminal_snr_is_sampled_as_it_was_trained(file_has_it, folder, tmp_path):
    """Of the file or of the config, the schedule under a sampler is the same."""
    given = shutil.copytree(folder, tmp_path / "sd")
    file = given / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rescale_betas_zero_snr": file_has_it}))
    config = loading.stable_diffusion_config(given)
    config.process.zero_terminal_snr = not file_has_it
    parts = Parts.of(config, weights=False)
    assert parts.schedule.alpha_bar[-1] == 0
    for sampler, least in (("ddim", 0.0), ("dpmpp_2m", 2.0**-24)):
        assert from_scheduler_config(parts.scheduler, sampler).schedule.alpha_bar[-1] == least
    config.model.prediction = "eps"
    with pytest.raises(UserError, match="zero terminal SNR .* cannot work with a network that predicts eps"):
        Parts.of(config, weights=False)


def test_steps_that_the_file_does_not_have_are_refused_before_the_training(folder):
    config = loading.stable_diffusion_config(folder)
    config.sample.num_steps, config.sample.sampler = config.process.num_timesteps, "dpmpp_2m"
    file = folder / "scheduler" / "scheduler_config.json"
    before = file.read_text()
    file.write_text(json.dumps(json.loads(before) | {"timestep_spacing": "leading"}))
    try:
        with pytest.raises(UserError, match="is too many for DPM-Solver"):
            DiffusionTask(config, weights=False).check()
    finally:
        file.write_text(before)


@pytest.mark.parametrize("of_the_file", [True, False])
def test_a_weighting_that_is_0_at_T_begins_no_training(of_the_file, folder):
    config = loading.stable_diffusion_config(folder)
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["rescale_betas_zero_snr"] and config.process.schedule == "pretrained"
    if not of_the_file:
        config.process.schedule, config.process.zero_terminal_snr, scheduler = "cosine", True, {}
    for weighting in ("prediction", "constant", "snr_plus_1", "vlb"):
        config.loss.weighting = weighting
        objective.check_weighting(config, scheduler)
    for weighting in losses.WITHOUT_THE_END:
        config.loss.weighting = weighting
        with pytest.raises(UserError, match=f"weighting='{weighting}' under zero terminal SNR .* 'snr_plus_1'"):
            objective.check_weighting(config, scheduler)
    task = DiffusionTask(loading.stable_diffusion_config(folder), weights=False)  # which loads, as an old run must
    task.config.loss.weighting = "min_snr"
    with pytest.raises(UserError, match="weighting='min_snr' under zero terminal SNR"):
        task.check_start()
    config.process.schedule, config.process.zero_terminal_snr = "cosine", False
    objective.check_weighting(config, {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zero") / "sd"
    helpers.save_pipeline(folder)
    file = folder / "scheduler" / "scheduler_config.json"
    changes = dict(rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing")
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder
