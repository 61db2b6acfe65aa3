"""The likelihood recipes: both networks trace at full size, and the tiny one trains, is measured and draws."""

import dataclasses
import json
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from configs import cifar10_nll, t2i
from contextdiff_jax import command_line, files
from contextdiff_jax import config as config_lib
from contextdiff_jax import task as task_lib
from contextdiff_jax.errors import UserError
from contextdiff_jax.pipeline import Pipeline
from contextdiff_jax.process import schedule
from contextdiff_jax.process.learned import Process
from contextdiff_jax.tasks import objective, warm_start
from contextdiff_jax.training import Setup, loop
from contextdiff_jax.training.step import make_step

PRESETS = ("digits", "fast", "emoji16", "ddpm", "vdm", "cifar10", "tiny")


def embedded(preset):
    """The preset, on embedded data where CIFAR-10 would be a download."""
    config = cifar10_nll.get_config(preset)
    if config.data.source == "cifar10":
        config.data.source = "openmoji"
    return config


def size(preset):
    params = Setup.of(task_lib.build(embedded(preset))).abstract.params
    return sum(v.size for v in jax.tree.leaves(params["denoiser"]))


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_have_the_keys_of_every_diffusion_config_and_pass_its_checks(preset):
    config = cifar10_nll.get_config(preset)
    config_lib.check(config)
    assert config_lib.leaves(config).keys() == config_lib.leaves(t2i.get_config()).keys()


def test_few_steps_take_x0_hat_as_it_is_and_the_adapter_where_it_is_asked_for():
    for preset in ("fast", "fashion_short"):
        config = cifar10_nll.get_config(preset)
        assert not config.adapter.enabled and config.sample.threshold == "none"
        config.adapter.enabled = True
        config_lib.check(config)


def test_the_digits_are_the_default():
    default, digits = cifar10_nll.get_config(), cifar10_nll.get_config("digits")
    assert config_lib.leaves(default) == config_lib.leaves(digits)


@pytest.mark.slow
@pytest.mark.parametrize("preset, kind", [("ddpm", "none"), ("vdm", "class")])
def test_the_training_step_traces(preset, kind):
    config = embedded(preset)
    config.condition.kind = kind
    config.data.batch_size = 8
    setup = Setup.of(task_lib.build(config))
    rows = next(setup.train_iterator())
    batch = {key: jax.ShapeDtypeStruct(value.shape, value.dtype) for key, value in rows.items()}
    step = make_step(setup.task, setup.optimizer, setup.mesh)
    state, _, _ = jax.eval_shape(step, setup.abstract, setup.init_guard(), setup.task.frozen, batch)
    assert jax.tree.map(lambda v: v.shape, state.params) == jax.tree.map(lambda v: v.shape, setup.abstract.params)


@pytest.mark.slow
def test_the_cost_that_the_recipe_states_is_that_of_its_step():
    stated = re.search(r"digits +([\d.]+) M +([\d.]+) +([\d,]+) ", cifar10_nll.__doc__).groups()
    config = cifar10_nll.get_config("digits")
    setup = Setup.of(task_lib.build(config))
    batch = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), next(setup.train_iterator()))
    step = jax.jit(make_step(setup.task, setup.optimizer, setup.mesh))
    lowered = step.lower(setup.abstract, setup.init_guard(), setup.task.frozen, batch)
    count = sum(v.size for v in jax.tree.leaves(setup.abstract.params))
    assert count == pytest.approx(1e6 * float(stated[0]), rel=0.02)
    assert lowered.cost_analysis()["flops"] == pytest.approx(1e12 * float(stated[1]), rel=0.05)
    assert config.train.num_steps == int(stated[2].replace(",", ""))


@pytest.mark.slow
def test_sizes_are_those_of_the_papers():
    """Ho et al. 2020 give 35.7 million; the other network has 67 blocks of 128 channels, 33 of them on 256 inputs."""
    assert 30e6 < size("ddpm") < 45e6
    convolutions = 9 * 128 * 128 * (2 * 34 + 3 * 33)
    assert convolutions < size("cifar10") < 1.5 * convolutions


@pytest.mark.parametrize("T", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_learned_process_of_one_or_two_steps_trains_is_measured_and_drawn(tmp_path, T):
    """The bound of T = 1 is measured in tests/evaluate/test_bpd.py."""
    config = cifar10_nll.get_config("tiny")
    changes = {
        "model.multipliers": (1,),  # quick to compile
        "model.self_attention_levels": (0,),
        "model.cross_attention_levels": (0,),
        "process.num_timesteps": T,
        "process.schedule": "learned",
        "process.variance": "learned",
        "process.variance_per_channel": True,
        "adapter.enabled": T > 1,
        "eval.after_training": T > 1,
        "loss.num_times": 2,
        "optim.weight_decay": 0.5,
        "train.num_steps": 2,
        "train.trainable": ("^process/", "/out/"),  # the process, and what begins as zero: half as much to compile
        "sample.sampler": "ddpm",
        "sample.num_steps": T,
    }
    config.update_from_flattened_dict(changes)
    command_line.run("train", config, command_line.Options(workdir=str(tmp_path)))
    for row in ("adapter on", "adapter off") if T > 1 else ():
        bits = json.loads((tmp_path / "eval.json").read_text())["bits_per_dim"][row]
        assert bits["images"] == 16 and np.isfinite([bits["mean"], bits["stderr"]]).all()
    pipeline = Pipeline.load(tmp_path)
    task, learned = pipeline.task, pipeline.params["process"]
    steps = {"steps": (1,)} if T > 1 else {}
    assert {name: v.shape for name, v in learned.items()} == {"gamma_1": (), "log_ratio": (T, 1)} | steps
    started = task.parts.process.init()
    assert all(np.all(learned[name] != started[name]) for name in learned)  # every one of them has moved
    drawn = pipeline.sample_arrays(["the digit 3", "5"], batch_size=8)
    assert drawn.shape == (2, 8, 8, 1) and np.isfinite(drawn).all() and np.any(drawn[0] != drawn[1])
    # Other samplers are named only where they would take as many.
    with pytest.raises(UserError, match=f"all {T} of them" + ("$" if T == 1 else "; or use ddim")):
        pipeline.sample_arrays(["3"], steps=3 - T)


def test_a_process_that_cannot_be_right_is_not_begun_or_warned_of_and_not_saved(caplog):
    task = task_lib.build(cifar10_nll.get_config("tiny"))
    task.parts = dataclasses.replace(task.parts, process=Process(schedule.cosine(50), learned=True))
    params = {"process": task.parts.process.init() | {"gamma_1": np.float32(np.nan)}}
    with pytest.raises(UserError, match="does not fall at t=1"):
        task.check_params(params)
    # A part of it that alone is trained is looked at together with the part that stays.
    trained = {"process": {"steps": params["process"].pop("steps").at[3].set(-200.0)}}
    params["process"]["gamma_1"] = task.parts.process.init()["gamma_1"]
    setup = SimpleNamespace(task=task, frozen={"fixed": params})
    with pytest.raises(UserError, match="does not fall at t=5"):
        loop._save(setup, None, SimpleNamespace(params=trained, ema=trained), None, None)
    task.config.process.schedule = "learned"
    task.check_start()
    assert not caplog.text
    task.config.loss.cond_drop_prob = 0.1
    task.check_start()
    assert "cond_drop_prob=0.1 trains config.process.schedule='learned'" in caplog.text
    task.config.train.trainable = ("^denoiser/",)
    with pytest.raises(UserError, match="trainable=.'.denoiser/',. leaves config.process.schedule='learned' as it"):
        task.check_start()
    task.config.model.init_from = "a run"  # that has learned it
    objective.check_process(task.config, ["process/steps"])


def test_a_schedule_learned_between_fixed_ends_is_not_taken_between_others(tmp_path):
    then, now = (cifar10_nll.get_config("fast") for _ in range(2))
    then.process.ends = now.process.ends = "fixed"
    files.write_json(then.to_dict(), tmp_path / "config.json")
    warm_start.check_schedule(str(tmp_path), now.process)
    now.process.log_snr = (5.0, -3.0)
    with pytest.raises(UserError, match=r"other fixed ends \(alpha_bar 0.9975 to 0.0003.*\(alpha_bar 0.9933 to 0.047"):
        warm_start.check_schedule(str(tmp_path), now.process)
    now.process.ends = "free"  # whose parameters say all
    warm_start.check_schedule(str(tmp_path), now.process)


def test_schedules_that_networks_start_from_and_learn_differ_with_a_word(monkeypatch, caplog, tmp_path):
    learned = {"denoiser": {"w": np.zeros(2)}, "process": {"gamma_1": np.zeros(()), "steps": np.zeros(3)}}
    plain = {"denoiser": learned["denoiser"]}
    variance = plain | {"process": {"log_ratio": np.zeros(4)}}

    def read(source, model):
        monkeypatch.setattr(warm_start, "read_all", lambda _: source)
        return warm_start.read("a", model)

    run, exported = (tmp_path / name for name in ("run", "export"))
    config = cifar10_nll.get_config("fast").to_dict()
    files.write_json(config, run / "config.json")
    files.write_json({"config": config}, exported / "contextdiff.json")
    fixed, own = (cifar10_nll.get_config(name).process for name in ("digits", "fast"))
    for folder in (run, exported):
        with pytest.raises(UserError, match="init_from='.*' learned its noise schedule.*schedule='learned'"):
            warm_start.check_schedule(str(folder), fixed)
        warm_start.check_schedule(str(folder), own)
        warm_start.check_schedule(str(tmp_path), fixed)
    # A run that has begun so can be read.
    assert read(learned, plain).keys() == plain.keys()
    assert [record.getMessage()[:35] for record in caplog.records] == ["a learned its noise schedule, whose"]
    caplog.clear()
    for source, model in ((variance, plain), (plain, variance), (learned, learned)):
        assert read(source, model).keys() == source.keys() & model.keys()
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert read(plain, learned).keys() == plain.keys()
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "a has a fixed noise schedule" in line and "config.process.init" in line
