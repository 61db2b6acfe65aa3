"""Captions that are encoded once: the same step as with the encoder in it, and a program without it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import t2i
from contextdiff_jax import config as config_lib
from contextdiff_jax import data
from contextdiff_jax import task as task_lib
from contextdiff_jax.errors import UserError
from contextdiff_jax.tasks.kept_texts import KeptTexts
from contextdiff_jax.training.setup import Setup


def config(kept):
    found = t2i.get_config("tiny")
    found.condition.kept_texts = kept
    found.loss.cond_drop_prob = 0.5
    return found


def two_steps(setup):
    """Metrics and parameters after two steps, and the floating-point operations of one."""
    state, guard, batches = setup.init_state(), setup.init_guard(), setup.train_iterator()
    step, batch = None, setup.put(next(batches))
    for _ in range(2):
        step = step or setup.compile(batch)
        state, guard, metrics = step(state, guard, setup.frozen, batch)
        batch = setup.put(next(batches))
    return jax.tree.map(np.asarray, (metrics, state.params)), step.cost_analysis()["flops"]


@pytest.mark.slow  # compiles two training steps: a minute; what they look up is compared below
def test_the_step_gives_the_same_numbers_without_the_encoder():
    setup = Setup.of(task_lib.build(config(72)))
    spec = setup.task.batch_spec()
    assert spec["text"].shape == (8,) and "tokens" not in spec
    assert jax.tree.map(jnp.shape, setup.frozen) == jax.tree.map(jnp.shape, setup.frozen_spec)
    (metrics, params), flops = two_steps(setup)
    (expected, expected_params), with_encoder = two_steps(Setup.of(task_lib.build(config(0))))
    assert metrics.keys() == expected.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, err_msg=name)
    # Adam divides small gradients by their own size, so that their rounding is seen.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), params, expected_params)
    assert flops < 0.9 * with_encoder


def test_the_table_holds_each_text_and_the_empty_one_first():
    task = task_lib.build(config(80))
    setup = Setup.of(task)
    batch = next(task.train_iterator(0, 1))
    source = data.source(task.config.data, "train")
    captions = [source[int(i)]["caption"] for i in batch["index"]]
    given = {name: v for name, v in batch.items() if name in task.batch_spec()}
    texts = task.parts.condition.read(captions)

    @jax.jit
    def contexts(frozen, batch, texts):
        context = task.encode({}, frozen, batch)
        null, empty = task.null_context({}, frozen, context), task.parts.condition.null(frozen["clip"], context)
        return (context, null), (task.encode({}, frozen, texts), empty)

    found, expected = contexts(setup.frozen, given, texts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)
    held_out = next(task.held_out_batches(0, 1)[1])
    assert "tokens" in held_out and "text" not in held_out  # whose captions need not be those of the training


def test_too_many_captions_and_conditions_without_text():
    with pytest.raises(UserError, match="kept_texts=2, but the training records have 3 different captions; set it to"):
        KeptTexts(["a", "b", "c", "a"], 2, lambda texts: {})
    rows = KeptTexts(["b", "a", "", "b"], 5, lambda texts: {}).fields([{"caption": c} for c in ("", "a", "b")])
    np.testing.assert_array_equal(rows["text"], [0, 1, 2])
    wrong = config(8)
    wrong.condition.kind = "none"
    with pytest.raises(UserError, match="kept_texts=8 cannot act: kind='none' reads no text"):
        config_lib.check(wrong)


def test_sources_know_their_captions():
    demo = data.OpenMojiSource("demo", "train", 16)
    assert {demo[i]["caption"] for i in range(40)} <= set(demo.captions()) and len(demo.captions()) == 72
