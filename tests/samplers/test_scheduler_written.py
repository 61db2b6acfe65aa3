"""The scheduler's file of a process of one's own, against what diffusers' DDIMScheduler makes of it."""

import diffusers
import numpy as np
import pytest
from stable_diffusion_helpers import SCHEDULER

from configs import t2i
from contextdiff_jax.process import schedule
from contextdiff_jax.samplers.scheduler_config import from_scheduler_config
from contextdiff_jax.samplers.scheduler_written import written


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("name", ["cosine", "linear", "scaled_linear", "log_snr"])
def test_diffusers_has_the_process_that_was_trained_on(name, zero):
    process = t2i.get_config("tiny").process
    process.schedule, process.num_timesteps, process.zero_terminal_snr = name, 100, zero
    s = schedule.from_config(process)
    for found in ({}, SCHEDULER | {"trained_betas": [0.1] * 1000, "rescale_betas_zero_snr": not zero}):
        file = written(found, process, "trailing", s, "v")
        theirs = diffusers.DDIMScheduler.from_config(file)
        np.testing.assert_allclose(theirs.alphas_cumprod, s.alpha_bar[1:], atol=2e-6)
        assert theirs.config.prediction_type == "v_prediction" and not theirs.config.clip_sample
        theirs.set_timesteps(10)
        np.testing.assert_array_equal(theirs.timesteps + 1, np.arange(100, 0, -10))
        ours = from_scheduler_config(file, "ddim")  # and it says the same to us
        np.testing.assert_allclose(ours.schedule.alpha_bar, s.alpha_bar, atol=2e-6)
        assert written(file, process, "pretrained", s, "v") == file, "which is not written anew"
        assert written(file, process, "pretrained", s, "x0")["prediction_type"] == "sample"


def test_a_file_that_says_it_all_stays_as_it_is():
    found = SCHEDULER | {"_class_name": "PNDMScheduler", "skip_prk_steps": True}
    process = t2i.get_config("sd").process
    s = from_scheduler_config(found, "ddim").schedule
    assert written(found, process, "pretrained", s, "eps") == found
    process.schedule = "learned"
    assert written(found, process, "trailing", s, "eps") == found
