"""Every shipped config and preset builds a task whose whole training step traces, with nothing allocated."""

import jax
import jax.numpy as jnp
import pytest

from configs import autoencoder, cifar10_nll, class2img, layout2img, recogniser, t2i, video_edit
from contextdiff_jax import task as task_lib
from contextdiff_jax.errors import UserError
from contextdiff_jax.models import backbones
from contextdiff_jax.models.adapter import Adapter
from contextdiff_jax.training import Setup
from contextdiff_jax.training.optimizer import make_optimizer
from contextdiff_jax.training.step import make_step
from contextdiff_jax.types import Context
from tests.set_files import write_fashion

CONFIGS = {
    "t2i": lambda: t2i.get_config(),
    "t2i:tiny": lambda: t2i.get_config("tiny"),
    "t2i:small": lambda: t2i.get_config("small"),
    "autoencoder:tiny": lambda: autoencoder.get_config("tiny"),
    "recogniser:tiny": lambda: recogniser.get_config("tiny"),
    "video_edit:tiny": lambda: video_edit.get_config("tiny"),
}


FULL_SIZE = {"t2i:small": pytest.mark.slow}


@pytest.mark.parametrize("name", [pytest.param(name, marks=FULL_SIZE.get(name, ())) for name in CONFIGS])
def test_the_training_step_traces(name, tmp_path, monkeypatch):
    config = CONFIGS[name]()
    config.data.batch_size = 8
    if "clip" in config:
        config.clip.tokenizer_dir = str(tmp_path / "tokenizer")
    setup = Setup.of(task_lib.build(config))
    rows = next(setup.train_iterator())
    batch = {key: jax.ShapeDtypeStruct(value.shape, value.dtype) for key, value in rows.items()}
    step = make_step(setup.task, setup.optimizer, setup.mesh)
    state, _, metrics = jax.eval_shape(step, setup.abstract, setup.init_guard(), setup.frozen_spec, batch)
    assert jax.tree.structure(state) == jax.tree.structure(setup.abstract)
    assert jax.tree.map(lambda v: v.shape, state.params) == jax.tree.map(lambda v: v.shape, setup.abstract.params)
    assert metrics["loss"].shape == ()


def test_small_has_the_size_its_docstring_promises():
    """An hour on one GPU: about a hundred million parameters, not a billion."""
    params = Setup.of(task_lib.build(t2i.get_config("small"))).abstract.params
    count = sum(v.size for v in jax.tree.leaves(params))
    assert 50e6 < count < 200e6


def test_the_paper_s_sizes():
    """Table 7: the base model has 2.0 B parameters, its adapter 188 M; Adam with b2 = 0.999 and no decay."""
    config = t2i.get_config("paper")
    optim = config.optim
    assert (optim.b1, optim.b2, optim.weight_decay, config.data.batch_size) == (0.9, 0.999, 0.0, 1024)
    keys = ("depth", "num_heads", "width", "patch_size", "bound", "spectral_norm", "self_attention")
    adapter = Adapter(**{k: config.adapter[k] for k in keys}, num_timesteps=1000, dtype=jnp.float32)
    shape = lambda *sides: jax.ShapeDtypeStruct(sides, jnp.float32)
    # CLIP ViT-B/32: 512 wide texts, 7 x 7 image tokens of width 768.
    context = Context(tokens=shape(1, 77, 512), pooled=shape(1, 512), mask=jax.ShapeDtypeStruct((1, 77), bool))
    t, x = jax.ShapeDtypeStruct((1,), jnp.int32), (64, 64, 3)
    init = lambda tokens, t, context: adapter.init(jax.random.key(0), tokens, (7, 7), t, context, x)
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    assert 0.98 < count(jax.eval_shape(init, shape(1, 49, 768), t, context)) / 188e6 < 1.02
    unet = backbones.build(config, jnp.float32)
    assert 0.95 < count(jax.eval_shape(unet.init, jax.random.key(0), shape(1, *x), t, context)) / 2.0e9 < 1.05


@pytest.mark.parametrize(
    "recipe, left_out",
    [(recipe, {"adapter.enabled": False}) for recipe in (t2i, class2img, layout2img)]
    + [(cifar10_nll, {"adapter.enabled": False, "process.schedule": "cosine", "process.variance": "beta"})],
)
def test_a_recipe_trains_without_what_may_be_left_out(recipe, left_out):
    """Its rates speak of the adapter or the process; where it is there, a rule that finds nothing is an error."""
    config = recipe.get_config("fast" if recipe is cifar10_nll else None)
    assert config.optim.lr_multipliers
    config.update_from_flattened_dict(left_out)
    params = {"denoiser": {"down_0": {"kernel": jnp.zeros((2, 2))}}}
    make_optimizer(config, params)
    config.optim.lr_multipliers = (("^adapter/quer", 0.5),)
    make_optimizer(config, params)
    with pytest.raises(UserError, match="adapter/quer' matches no parameter"):
        make_optimizer(config, params | {"adapter": {"out": {"kernel": jnp.zeros((2, 2))}}})


def test_a_recipe_trains_the_adapter_alone():
    config = t2i.get_config()
    assert config.optim.muon
    make_optimizer(config, {"adapter": {"out": {"kernel": jnp.zeros((2, 2))}}})


def test_an_image_that_a_smaller_patch_would_divide_is_told_so(tmp_path, monkeypatch):
    write_fashion(tmp_path, monkeypatch)
    config = cifar10_nll.get_config("fashion_short")
    config.data.path, config.data.image_size = str(tmp_path), 14
    with pytest.raises(UserError, match="=14 is not divisible by the U-Net's .* try 12, or model.patch_size=1$"):
        task_lib.build(config, weights=False)
    config.model.patch_size = 1
    assert task_lib.build(config, weights=False).config.data.image_size == 14
