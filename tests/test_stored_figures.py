"""Step, sampling and bound of the small model give the figures that earlier versions gave."""

import json
import zlib
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import contextdiff_jax as cdx
from contextdiff_jax import task as task_lib
from contextdiff_jax.trees import names
from tests import small_models

STORED = Path(__file__).parent / "stored" / "small_model.json"
PROMPTS = ["a frog on a blue background", "a star on a red background", "a bear on a white background"]
SAMPLING = {
    "as configured": {},
    "dpmpp_2m": dict(sampler="dpmpp_2m", steps=5, guidance=5.0, threshold="dynamic"),
    "img2img": dict(image=np.linspace(-1, 1, 16 * 16 * 3, dtype=np.float32).reshape(16, 16, 3), strength=0.5),
}


def shaken(task):
    """Parameters off their start, at which the output is zero."""
    order = []
    with jax.disable_jit():  # as they are made, which the stored figures' noise follows; compiling sorts them
        jax.eval_shape(lambda key: order.extend(names(task.init(key))), jax.random.key(0))
    noise = lambda name, p: p + 0.1 * np.random.default_rng(zlib.crc32(name.encode())).normal(size=p.shape)
    leaves, tree = jax.tree.flatten(jax.jit(task.init)(jax.random.key(0)))
    return tree.unflatten([jnp.asarray(noise(n, p), p.dtype) for n, p in zip(order, leaves, strict=True)])


def summary(array):
    """Mean, spread and three entries."""
    flat = np.asarray(array, np.float64).ravel()
    return [flat.mean(), flat.std(), *flat[[0, flat.size // 2, -1]]]


@pytest.fixture(scope="module")
def pipe():
    task = task_lib.build(small_models.text_to_image())
    return cdx.Pipeline(task, shaken(task), 0)


def step_figures(pipe):
    task = pipe.task
    batch = {k: jnp.asarray(v) for k, v in next(task.train_iterator(0, 1)).items()}
    batch = task.draw(batch, jax.random.key(1))

    @partial(jax.grad, has_aux=True)
    def gradient(params):
        value = task.loss(params, pipe.frozen, batch, jax.random.key(2))[0]
        return value.sum(), value

    found, value = jax.jit(gradient)(pipe.params)
    norms = jax.tree.map(lambda g: np.linalg.norm(np.asarray(g, np.float64)), found)
    return {"loss": value.tolist(), "gradient": float(sum(jax.tree.leaves(norms)))}


def bound_figures(pipe):
    task = pipe.task
    batch = {k: jnp.asarray(v) for k, v in next(task.train_iterator(0, 1)).items()}

    @jax.jit
    def bound(params, frozen):
        context = task.encode(params, frozen, batch)
        f, b = partial(task.denoise, params, context=context), task.shift(params, frozen, context)
        key = jax.random.key(3)
        return cdx.evaluate.bits_per_dim(f, b, task.schedule, batch["image"], key, num_t=4, bins=task.parts.levels)

    result = bound(pipe.params, pipe.frozen)
    return {name: float(getattr(result, name)) for name in ("prior", "reconstruction", "diffusion")}


def figures(pipe):
    """Everything that is stored."""
    drawn = {name: summary(pipe.sample_arrays(PROMPTS, key=5, **how)) for name, how in SAMPLING.items()}
    return {"step": step_figures(pipe), "bound": bound_figures(pipe), "sampling": drawn}


def test_step_sampling_and_bound_are_those_of_earlier_versions(pipe):
    stored, now = json.loads(STORED.read_text()), figures(pipe)
    same = partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-4)
    assert stored.keys() == now.keys() and stored["sampling"].keys() == now["sampling"].keys()
    jax.tree.map(lambda a, b: same(b, a), stored, now)
