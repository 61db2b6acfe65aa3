"""Every value of `:tiny` is replaced by bad ones of its type: a UserError says so, or the programs still trace."""

import functools

import jax
import jax.numpy as jnp
import pytest

from configs import t2i
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
