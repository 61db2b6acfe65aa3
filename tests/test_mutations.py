"""Every value of each `:tiny` is replaced by bad ones of its type, and left out: a UserError says so, or the programs
still trace."""

import functools

import jax
import jax.numpy as jnp
import pytest

from configs import autoencoder, clip_mini, recogniser, t2i, video_edit
from configs.common import base
from contextdiff_jax import config as config_lib
from contextdiff_jax import task as task_lib
from contextdiff_jax.errors import UserError
from contextdiff_jax.samplers import sampling
from contextdiff_jax.training import Setup
from contextdiff_jax.training.step import make_step
from tests.training.toy_task import ToyTask, toy_config

LEAVES = config_lib.leaves(t2i.get_config("tiny"))
NOT_IN_THE_PROGRAMS = ("eval.", "train.log", "train.keep", "train.checkpoint", "train.preview", "data.seed", "preset")


def bad_values(value):
    """Negative, zero, huge, NaN, infinite, empty, wrong strings and tuples."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [-1, 0, 7, 2**62]
    if isinstance(value, float):
        return [-1.0, 0.0, 1e300, float("nan"), float("inf")]
    if isinstance(value, str):
        return ["", "nonsense"]
    return [(), (-1, 99), ("nonsense",), (("(", 1.0),), (float("nan"), float("nan"))]


def trace(config, key) -> None:
    """Builds the task and traces the programs that read the key's section; nothing is allocated."""
    task = task_lib.build(config, weights=False)
    setup = Setup.of(task)
    if not key.startswith(("sample.", "eval.")):
        rows = next(setup.train_iterator())
        batch = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in rows.items()}
        step = make_step(task, setup.optimizer, setup.mesh)
        jax.eval_shape(step, setup.abstract, setup.init_guard(), task.frozen, batch)
    if not key.startswith(("optim.", "ema.", "train.", "loss.")):
        sample = functools.partial(sampling.sample, task, plan=sampling.Plan.of(task, config.sample))
        condition = jax.tree.map(jnp.asarray, task.parts.condition.empty(2))
        params, keys = setup.abstract.params, jax.random.split(jax.random.key(0), 2)
        context = jax.eval_shape(task.encode, params, task.frozen, condition)
        jax.eval_shape(sample, params, task.frozen, context, keys, sampling.Numbers.of(config.sample))


def refused(key, value, programs: bool) -> bool:
    """Whether a UserError, of one line that names the key, is what a value ends in; no other error is caught."""
    config = t2i.get_config("tiny")
    if programs and not key.startswith(("model.", "adapter.")):  # one level is quicker to trace
        config.model.multipliers = (1,)
        config.model.self_attention_levels = config.model.cross_attention_levels = (0,)
    try:
        config.update_from_flattened_dict({key: value})
    except (TypeError, ValueError):
        return True  # of another type: the command line says so in one line
    try:
        config_lib.check(config)
        if programs:
            trace(config, key)
    except UserError as error:
        assert "\n" not in str(error)
        return True
    return False


def test_bad_values_pass_the_check_or_end_in_one_line():
    outcomes = [refused(key, value, programs=False) for key, good in LEAVES.items() for value in bad_values(good)]
    assert sum(outcomes) > 200


# The smallest config of every section
TINY = {
    "t2i": t2i.get_config("tiny"),
    "clip_mini": clip_mini.get_config("tiny"),
    "recogniser": recogniser.get_config("tiny"),
    "autoencoder": autoencoder.get_config("tiny"),
    "video_edit": video_edit.get_config("fatezero+demo"),
}


def tiny(name):
    """One of them to be changed."""
    return TINY[name].copy_and_resolve_references()


def checked(config) -> str:
    """What the check says, in one line; empty if it passes. No other error is caught."""
    try:
        config_lib.check(config)
    except UserError as error:
        assert "\n" not in str(error)
        return str(error)
    return ""


def without(config, key):
    """The config with a key, or a section, left out."""
    *path, name = key.split(".")
    section = functools.reduce(lambda node, part: node[part], path, config)
    with section.unlocked():
        del section[name]
    return config


@pytest.mark.parametrize("name", TINY)
def test_bad_values_of_other_recipes_are_said_in_one_line(name):
    for key, good in config_lib.leaves(TINY[name]).items():
        for value in () if key in LEAVES else bad_values(good):
            config = tiny(name)
            with config.ignore_type():
                config.update_from_flattened_dict({key: value})
            checked(config)


@pytest.mark.parametrize(
    "name, key, value, words",
    [
        ("autoencoder", "autoencoder.norm_groups", 0, "greater than 0"),
        ("autoencoder", "autoencoder.latent_channels", 0, "greater than 0"),
        ("autoencoder", "autoencoder.num_blocks", -1, "0 or more"),
        ("autoencoder", "autoencoder.kl_weight", -1.0, "0 or more"),
        ("autoencoder", "autoencoder.channels", (8, 0), "multiples of config.autoencoder.norm_groups=4"),
        ("autoencoder", "autoencoder.channels", (), "multiples of config.autoencoder.norm_groups=4"),
        ("recogniser", "recogniser.channels", (16, 16), "three whole numbers"),
        ("recogniser", "recogniser.channels", (16, -1, 8), "three whole numbers"),
        ("recogniser", "recogniser.channels", (16, 24, 32), "three whole numbers"),
        ("recogniser", "recogniser.augment.blur", -1.0, "0 or more"),
        ("clip_mini", "clip.text_heads", 0, "greater than 0"),
        ("clip_mini", "clip.text_heads", 3, "config.clip.text_width=16 is not divisible"),
        ("clip_mini", "clip.vision_layers", -1, "0 or more"),
        ("clip_mini", "clip.max_length", 1, "no room"),
        ("clip_mini", "clip.projection_dim", 0, "greater than 0"),
        ("clip_mini", "clip.activation", "relu", "accepted: quick_gelu, gelu"),
        ("t2i", "optim.lr", "1e-3", "must be a number"),
        ("t2i", "data.batch_size", 8.0, "must be a whole number"),
        ("t2i", "sample.interval", 1.0, "must be a tuple or a list"),
        ("t2i", "train.trainable", "^adapter/", "must be a tuple or a list"),
        ("t2i", "data.source", "clip", "take configs/video_edit.py"),
        ("t2i", "model.video", "x", "no section"),
        ("t2i", "train.lora", (), "no section"),
    ],
)
def test_what_a_section_s_owner_refuses(name, key, value, words):
    config = tiny(name)
    with config.ignore_type():
        config.update_from_flattened_dict({key: value})
    assert f"config.{key}" in (said := checked(config)) and words in said


# What these configs have and do not read
_SIZES = ("channels", "multipliers", "num_blocks", "self_attention_levels", "cross_attention_levels", "head_dim")
UNREAD = {
    **dict.fromkeys(TINY, ("preset", "data.max_bad_fraction", "process.beta_start", "process.beta_end")),
    "video_edit": ("edit.prompts", "edit.after_training", *(f"model.{key}" for key in (*_SIZES, "patch_size"))),
}
UNREAD["video_edit"] += UNREAD["t2i"]


@pytest.mark.parametrize("name", TINY)
def test_what_a_config_lacks_is_named_or_is_what_earlier_versions_did(name):
    for key in config_lib.leaves(TINY[name]):
        config = without(tiny(name), key)
        if not (said := checked(config)):
            assert key in UNREAD[name] or key in config_lib.leaves(config_lib.with_later(config))
        else:
            assert f"config.{key}" in said, said
    for section in TINY[name]:
        said = checked(without(tiny(name), section))
        assert not said or section in said or section == "space"  # which an earlier version had not: pixels
        config = tiny(name)
        with config.ignore_type():
            config[section] = "nonsense"
        assert checked(config) or section in ("preset", "task")


def test_a_config_of_an_earlier_version_is_completed_and_one_of_no_task_s_is_refused():
    config = without(t2i.get_config("tiny"), "adapter.scale")
    del config.train.lora.rank
    built = task_lib.build(config, weights=False).config
    assert (built.adapter.scale, built.train.lora.rank) == (0.0, 0) and "scale" not in config.adapter
    assert config_lib.with_later(built) is built
    with pytest.raises(UserError, match="no encoder, process, model, adapter, loss, sample; start from a shipped one"):
        config_lib.check(base("diffusion"))
    with pytest.raises(UserError, match="mine.py: the config has no encoder, .*, eval; start from a shipped config's"):
        config_lib.check_sections(base("diffusion"), "mine.py")
    with pytest.raises(UserError, match="the config has no config.edit.prompts"):
        config_lib.check_sections(without(tiny("video_edit"), "edit.prompts"), "mine.py")


# Values that the check of the config alone cannot judge; the rest of them in the slow test.
SUBTLE = ("train.trainable", "mesh.fsdp", "encoder.clip", "data.preset", "data.num_frames")


@pytest.mark.parametrize("key", SUBTLE)
def test_bad_values_that_only_the_task_can_judge_are_refused(key):
    for value in bad_values(LEAVES[key]):
        assert refused(key, value, programs=True) or value in ((), 0, -1), value


@pytest.mark.parametrize("key", ("sharding.rules", "optim.lr_multipliers"))
def test_bad_rules_of_parameters_are_refused(key):
    """Of any task; of the smallest they are judged soonest."""
    for value in bad_values(LEAVES[key])[1:]:
        config = toy_config()
        config.update_from_flattened_dict({key: value})
        with pytest.raises(UserError):
            Setup.of(ToyTask(config))


@pytest.mark.slow
@pytest.mark.parametrize("key", [key for key in LEAVES if not key.startswith(NOT_IN_THE_PROGRAMS)])
def test_what_is_not_refused_traces(key):
    for value in bad_values(LEAVES[key]):
        refused(key, value, programs=True)
