"""Every shipped config and preset builds a task whose whole training step traces, with nothing allocated."""

import jax
import pytest

from configs import class2img, clip_mini, layout2img, recogniser, t2i
from contextdiff_jax import task as task_lib
from contextdiff_jax.training import Setup
from contextdiff_jax.training.step import make_step

CONFIGS = {
    "t2i": lambda: t2i.get_config(),
    "t2i:tiny": lambda: t2i.get_config("tiny"),
    "t2i:small": lambda: t2i.get_config("small"),
    "class2img:tiny": lambda: class2img.get_config("tiny"),
    "layout2img:tiny": lambda: layout2img.get_config("tiny"),
    "clip_mini:tiny": lambda: clip_mini.get_config("tiny"),
    "recogniser:tiny": lambda: recogniser.get_config("tiny"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_training_step_traces(name, tmp_path, monkeypatch):
    config = CONFIGS[name]()
    config.data.batch_size = 8
    if "clip" in config:
        config.clip.tokenizer_dir = str(tmp_path / "tokenizer")
    setup = Setup.of(task_lib.build(config))
    rows = next(setup.train_iterator())
    batch = {key: jax.ShapeDtypeStruct(value.shape, value.dtype) for key, value in rows.items()}
    step = make_step(setup.task, setup.optimizer, setup.mesh)
    state, _, metrics = jax.eval_shape(step, setup.abstract, setup.init_guard(), setup.task.frozen, batch)
    assert jax.tree.structure(state) == jax.tree.structure(setup.abstract)
    assert jax.tree.map(lambda v: v.shape, state.params) == jax.tree.map(lambda v: v.shape, setup.abstract.params)
    assert metrics["loss"].shape == ()


def test_small_has_the_size_its_docstring_promises():
    """An hour on one GPU: about a hundred million parameters, not a billion."""
    params = Setup.of(task_lib.build(t2i.get_config("small"))).abstract.params
    count = sum(v.size for v in jax.tree.leaves(params))
    assert 50e6 < count < 200e6
