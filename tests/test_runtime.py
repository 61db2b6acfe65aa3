"""What is traced for is what is asked: kernels, types and meshes follow the runtime in use, not this machine."""

import jax
import jax.numpy as jnp
import pytest

from configs import t2i
from contextdiff_jax import attention, runtime
from contextdiff_jax import task as task_lib
from contextdiff_jax.errors import UserError
from contextdiff_jax.tasks.parts import Parts
from contextdiff_jax.training import Setup


class Card:
    """A GPU by its name."""

    def __init__(self, kind: str, capability: str):
        self.device_kind, self.compute_capability = kind, capability


def gpu(kind: str, capability: str) -> runtime.Runtime:
    return runtime.Runtime("gpu", runtime._capability(Card(kind, capability)), (Card(kind, capability),))


@pytest.mark.parametrize(
    "card, head_dim, dtype, fused",
    [
        (("Tesla T4 NVIDIA", "7.5"), 64, jnp.bfloat16, False),
        (("NVIDIA A100-SXM4-40GB", "8.0"), 64, jnp.bfloat16, True),
        (("NVIDIA A100-SXM4-40GB", "8.0"), 256, jnp.bfloat16, False),
        (("NVIDIA H100 80GB HBM3", "9.0"), 256, jnp.bfloat16, True),
        (("NVIDIA H100 80GB HBM3", "9.0"), 64, jnp.float32, False),
        (("AMD Instinct MI250X", "gfx90a"), 64, jnp.bfloat16, False),
    ],
)
def test_the_fused_kernel_is_for_cards_that_have_it(card, head_dim, dtype, fused):
    q = jax.ShapeDtypeStruct((2, 16, 4, head_dim), dtype)
    with runtime.in_use(gpu(*card)):
        assert attention._fused_kernel_fits(q, None) == fused
    assert not attention._fused_kernel_fits(q, None), "this machine has no card, or is asked in float32"


def test_here_is_this_machine_and_made_once():
    here = runtime.here()
    assert here is runtime.here() is runtime.current()
    assert here.devices == tuple(jax.devices()) and here.platform == jax.default_backend()


def test_shapes_without_weights_are_those_with_them_and_types_follow_the_runtime():
    config = t2i.get_config("tiny")
    read, shapes = Parts.of(config), Parts.of(config, gpu("NVIDIA H100", "9.0"), weights=False)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(shapes.params))
    of = lambda tree: jax.tree.map(lambda x: (x.shape, str(x.dtype)), tree)
    assert of(read.clip.params) == of(shapes.clip.params)
    assert shapes.dtype == shapes.clip.dtype == jnp.bfloat16
    assert jax.tree.map(jnp.shape, read.params) == jax.tree.map(lambda x: x.shape, shapes.params)
    assert {x.dtype for x in jax.tree.leaves(shapes.params)} == {jnp.dtype(jnp.bfloat16)}


def test_frozen_encoders_are_read_in_the_type_that_they_compute_in():
    config = t2i.get_config("tiny")
    whole = Parts.of(config).params["clip"]
    config.model.dtype = "bfloat16"
    parts = Parts.of(config)
    assert {x.dtype for x in jax.tree.leaves(parts.clip.params)} == {jnp.dtype(jnp.bfloat16)}
    assert all(a is b for a, b in zip(*map(jax.tree.leaves, (parts.clip.params, parts.params["clip"])), strict=True))
    fields, encode = parts.condition.read(["a frog on a blue background"]), jax.jit(parts.condition.encode)
    half, full = encode(parts.params["clip"], fields).tokens, encode(whole, fields).tokens
    assert jnp.abs(half - full).max() < 0.02 * jnp.abs(full).max()


def test_lower_needs_no_arrays():
    setup = Setup.of(task_lib.build(t2i.get_config("tiny"), weights=False))
    batch = {name: jax.ShapeDtypeStruct(v.shape, v.dtype) for name, v in next(setup.train_iterator()).items()}
    text = setup.lower(batch, setup.frozen_spec).as_text()
    assert "stablehlo.convolution" in text and "tf.aliasing_output" in text, "the state is donated"


@pytest.mark.parametrize("name", ["", "v5e", "here", "v5e:2by2"])
def test_what_is_no_topology_is_refused(name):
    with pytest.raises(UserError, match="give a generation and its chips"):
        runtime.described(name)


def test_without_the_tpu_compiler_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(runtime, "_has_libtpu", lambda: False)
    with pytest.raises(UserError, match="pip install libtpu"):
        runtime.described("v5e:2x2")
