"""Files of diffusers' schedulers, read by them and by us."""

import inspect
import json
from functools import cache

import diffusers
import numpy as np
import pytest

from contextdiff_jax import samplers
from contextdiff_jax.errors import UserError
from contextdiff_jax.samplers import from_scheduler_config, scheduler_config

CLASSES = tuple(scheduler_config._DEFAULTS)
SD = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
RESCALED = dict(SD, rescale_betas_zero_snr=True)


@cache
def theirs(name, keys):
    return getattr(diffusers, name).from_config(json.loads(keys))


@pytest.mark.parametrize("name", CLASSES)
def test_defaults_are_those_of_diffusers_classes(name):
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    for key, value in scheduler_config._DEFAULTS[name].items():
        assert parameters[key].default == value, key
    # What the class knows and the table lacks has no influence on what is read here.
    unread = set(parameters) - set(scheduler_config._DEFAULTS[name]) - {"self"}
    assert unread <= {
        "dynamic_thresholding_ratio",  # acts above sample_max_value=1 only, which is refused
        "skip_prk_steps",  # PNDM's own
        "flow_shift",  # the other use_* flags
        "use_dynamic_shifting",
        "time_shift_type",
    }


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(
    "keys",
    [
        {},
        SD,
        dict(beta_schedule="squaredcos_cap_v2", num_train_timesteps=100),
        dict(num_train_timesteps=4, trained_betas=[0.1, 0.3, 0.2, 0.6]),
        RESCALED,
    ],
)
def test_tables_are_diffusers(name, keys):
    s = from_scheduler_config({"_class_name": name} | keys).schedule
    expected = theirs(name, json.dumps(keys)).alphas_cumprod.numpy()
    # Theirs is a float32 product over up to 1000 steps.
    np.testing.assert_allclose(s.alpha_bar[1:], expected, rtol=2e-5, atol=1e-9)
    assert s.alpha_bar[0] == 1.0 and s.num_timesteps == len(expected)
    if keys is RESCALED and name != "PNDMScheduler":  # which ignores the key
        assert s.alpha_bar[-1] == expected[-1] < 1e-7


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("name", CLASSES)
def test_times_are_diffusers_for_every_number_of_steps(name, spacing):
    keys = SD | dict(timestep_spacing=spacing, steps_offset=1, skip_prk_steps=True)
    scheduler = theirs(name, json.dumps(keys))
    config = from_scheduler_config({"_class_name": name} | keys)
    for num_steps in (2, 3, 7, 20, 27, 48, 50, 61, 333, 900):
        scheduler.set_timesteps(num_steps)
        expected = np.asarray(scheduler.timesteps)
        if name == "PNDMScheduler":
            expected = np.delete(expected, 1)  # it asks twice at the second time
        if len(expected) > num_steps:  # arange's rounding: one step too many, to their t = -1
            assert np.rint(expected[-1]) == -1 and spacing == "trailing"
        t, s = config.moves(num_steps).T
        # Euler's linspace is not rounded in diffusers
        fraction = 0.501 if (name, spacing) == ("EulerDiscreteScheduler", "linspace") else 0
        np.testing.assert_allclose(t, expected[:num_steps] + 1, atol=fraction, rtol=0)
        if name in ("DDIMScheduler", "PNDMScheduler"):
            before = expected[:num_steps] - 1000 // num_steps  # as their step has it
            np.testing.assert_array_equal(s, np.where(before >= 0, before + 1, config.final))
        else:
            np.testing.assert_array_equal(s, np.append(t[1:], config.final))


SD_1_5 = SD | dict(
    _class_name="PNDMScheduler",
    _diffusers_version="0.6.0",
    num_train_timesteps=1000,
    set_alpha_to_one=False,
    skip_prk_steps=True,
    steps_offset=1,
    trained_betas=None,
    clip_sample=False,
)
SD_2_1 = SD_1_5 | dict(_class_name="DDIMScheduler", prediction_type="v_prediction")
SD_TURBO = SD_1_5 | dict(
    _class_name="EulerDiscreteScheduler",
    interpolation_type="linear",
    prediction_type="epsilon",
    sample_max_value=1.0,
    timestep_spacing="trailing",
    use_karras_sigmas=False,
)


@pytest.mark.parametrize(
    "file, sampler, expected",
    [
        (SD_1_5, None, ("eps", None, "leading", 1, 1, None)),
        (SD_1_5, "ddim", ("eps", "ddim", "leading", 1, 1, None)),
        (SD_1_5, "heun", ("eps", "heun", "leading", 1, 1, None)),
        (SD_1_5, "ddpm", ("eps", "ddpm", "leading", 1, 0, None)),
        # Their class's own default spacing, since the file has none
        (SD_1_5, "dpmpp_2m", ("eps", "dpmpp_2m", "uniform", 1, 0, None)),
        (SD_2_1, None, ("v", "ddim", "leading", 1, 1, None)),
        (SD_TURBO, None, ("eps", "ddim", "trailing", 1, 0, None)),
        ({"_class_name": "DDPMScheduler"}, None, ("eps", "ddpm", "leading", 0, 0, "static")),
        ({"_class_name": "LMSDiscreteScheduler"}, "ddim", ("eps", "ddim", "leading", 0, 0, "static")),
    ],
)
def test_files_of_real_repositories(file, sampler, expected):
    config = from_scheduler_config(file, sampler)
    got = config.prediction, config.sampler, config.spacing, config.steps_offset, config.final, config.threshold
    assert got == expected


def test_where_stable_diffusion_1_5_ends():
    moves = from_scheduler_config(SD_1_5, "ddim").moves(50)
    np.testing.assert_array_equal(moves[[0, 1, -1]], [[982, 962], [962, 942], [2, 1]])
    moves = from_scheduler_config(SD_1_5, "dpmpp_2m").moves(20)
    np.testing.assert_array_equal(moves[[0, 1, -1]], [[1000, 950], [950, 900], [51, 0]])


@pytest.mark.parametrize(
    "keys, words",
    [
        (dict(_class_name="UniPCMultistepScheduler"), "_class_name='UniPCMultistepScheduler'.*DDIMScheduler.*ddim"),
        (dict(_class_name=None), "_class_name=None"),
        (dict(beta_schedule="sigmoid"), "beta_schedule='sigmoid'.*linear, scaled_linear, squaredcos_cap_v2"),
        (dict(prediction_type="flow_prediction"), "prediction_type='flow_prediction'.*epsilon, v_prediction, sample"),
        (dict(timestep_spacing="karras"), "timestep_spacing='karras'.*leading, trailing, linspace"),
        (dict(clip_sample="yes"), "clip_sample='yes'.*True, False"),
        (dict(clip_sample=True, clip_sample_range=2.0), "clip_sample_range=2.0.*1.0"),
        (dict(thresholding=True, sample_max_value=1.5), "sample_max_value=1.5.*1.0"),
        (dict(num_train_timesteps=1000.0), "num_train_timesteps=1000.0"),
        (dict(num_train_timesteps=0), "T=0"),
        (dict(steps_offset=-1), "steps_offset=-1"),
        (dict(beta_start="0.1"), "beta_start='0.1'"),
        (dict(beta_start=0.5, beta_end=0.1), "beta_start=0.5"),
        (dict(trained_betas=[0.1, 0.2]), "trained_betas holds 2 values.*num_train_timesteps=1000"),
        (dict(trained_betas=[0.1, 1.2], num_train_timesteps=2), "betas"),
        (dict(trained_betas=["a"]), "trained_betas=.*a list of numbers"),
        (dict(trained_betas={}), "trained_betas=.*a list of numbers"),
        (dict(_class_name=["DDIMScheduler"]), "_class_name="),
        (dict(_class_name="DDPMScheduler", variance_type="learned_range"), "variance_type.*fixed_small"),
        (dict(_class_name="PNDMScheduler", prediction_type="sample"), "prediction_type='sample'.*epsilon, v_pred"),
        (dict(_class_name="DPMSolverMultistepScheduler", solver_order=3), "solver_order=3.*2"),
        (dict(_class_name="DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++"), "algorithm_type.*dpm"),
        (dict(_class_name="DPMSolverMultistepScheduler", solver_type="heun"), "solver_type='heun'.*midpoint"),
        (dict(_class_name="DPMSolverMultistepScheduler", use_karras_sigmas=True), "use_karras_sigmas=True.*False"),
        (dict(_class_name="DPMSolverMultistepScheduler", lambda_min_clipped=-2.0), "lambda_min_clipped=-2.0.*-5.059"),
        (dict(_class_name="EulerDiscreteScheduler", interpolation_type="log_linear"), "interpolation_type.*linear"),
        (dict(_class_name="EulerDiscreteScheduler", sigma_max=80.0), "sigma_max=80.0.*None"),
    ],
)
def test_unsupported_values_name_key_value_and_what_is_accepted(keys, words):
    with pytest.raises(UserError, match=words) as error:
        from_scheduler_config({"_class_name": "DDIMScheduler"} | keys)
    assert "\n" not in str(error.value)


def test_what_the_class_does_not_know_does_not_matter():
    base = from_scheduler_config(SD_1_5, "ddim")
    other = from_scheduler_config(SD_1_5 | dict(use_karras_sigmas=True, solver_order=3, note="x"), "ddim")
    np.testing.assert_array_equal(base.moves(20), other.moves(20))
    # A limit below the schedule's range clips nothing.
    keys = SD_1_5 | dict(lambda_min_clipped=-5.1)
    assert from_scheduler_config(keys, "dpmpp_2m").moves(20)[0, 0] == 1000


def test_bad_numbers_of_steps_and_times_are_user_errors():
    config = from_scheduler_config(SD_1_5, "dpmpp_2m")
    for num_steps, words in [(1000, "most 999"), (1001, "steps=1001"), (0, "num_steps=0"), ("5", "num_steps='5'")]:
        with pytest.raises(UserError, match=words):
            config.moves(num_steps)
    with pytest.raises(UserError, match="sampler 'euler' is unknown; accepted: ddim"):
        from_scheduler_config(SD_1_5, "euler")
    for times, words in [
        (np.array([9.0, 5.0, 0.0]), "float64"),
        (np.array([9, 5]), r"shape \(2,\)"),
        (np.array([5, 9, 0]), "out of order"),
        (np.array([11, 5, 0]), "1..10"),
        (np.array([[9, 9], [5, 6]]), "out of order"),
    ]:
        with pytest.raises(UserError, match=words):
            samplers.moves(10, 2, times)
    rows = [[9, 4], [5, 0]]
    np.testing.assert_array_equal(samplers.moves(10, 2, np.array(rows)), rows)
    np.testing.assert_array_equal(samplers.moves(10, 2, [9, 5, 1]), [[9, 5], [5, 1]])
