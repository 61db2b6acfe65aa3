"""VQModel against diffusers on random weights."""

import dataclasses

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from contextdiff_jax.conditions.spaces import Latents
from contextdiff_jax.encoders import vq
from contextdiff_jax.errors import UserError
from tests.diffusers_helpers import (
    VQ_SIZES,
    assert_loads_exactly,
    config_of,
    randomised,
    relative_error,
    to_numpy,
    to_torch,
)

SIZES = VQ_SIZES | dict(scaling_factor=0.5)


@pytest.fixture(scope="module", params=[None, 5])
def saved(request, tmp_path_factory):
    """(diffusers' model, its folder); with codes as wide as the latents, and wider."""
    model = randomised(diffusers.VQModel(**SIZES, vq_embed_dim=request.param))
    with torch.no_grad():
        model.quantize.embedding.weight.mul_(8.0)  # wider apart, so that more than one code is nearest somewhere
    folder = tmp_path_factory.mktemp("vq") / "vqvae"
    model.save_pretrained(folder)
    return model, folder


def test_parity_and_round_trip(saved, tmp_path):
    theirs, folder = saved
    ours = vq.load(folder.parent)
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (2, 16, 12, 3)).astype(np.float32)
    with torch.no_grad():
        latents = theirs.encode(to_torch(images)).latents
        decoded = theirs.decode(latents).sample
        codes = theirs.quantize(latents)[2][2]
    assert len(torch.unique(codes)) > 1
    got = ours.encode(ours.params, images)
    assert relative_error(got, to_numpy(latents) * 0.5) < 1e-4
    assert relative_error(ours.decode(ours.params, got), to_numpy(decoded)) < 1e-4
    # Parameters of numpy may be closed over.
    nearest = lambda z: ours.module.apply({"params": ours.params}, z, method="nearest")
    assert str(jax.make_jaxpr(nearest)(got)).count("Precision.HIGHEST") == 2  # of both operands
    ours.save(tmp_path / "again", ours.params)
    again = assert_loads_exactly(theirs, tmp_path / "again")
    assert again.config.vq_embed_dim == theirs.config.vq_embed_dim == config_of(tmp_path / "again")["vq_embed_dim"]


def test_as_the_space_of_diffusion(saved):
    _, folder = saved
    ours = vq.load_vq(folder)
    space = Latents(ours, 16, "decode", None)
    assert space.shape == (8, 8, ours.config.code_width)
    images = np.random.default_rng(1).uniform(-1, 1, (1, 16, 16, 3)).astype(np.float32)
    mean, std = jnp.split(jax.jit(space.moments)(space.params, images), 2, axis=-1)
    assert not np.asarray(std).any()
    encoded = jax.jit(space.encode)(space.params, {"image": images, "z_eps": jnp.ones_like(mean)})
    np.testing.assert_array_equal(encoded, mean)
    other = jax.tree.map(np.array, ours.params)
    other["quantize"]["embedding"][0, 0] += 1.0
    assert Latents(dataclasses.replace(ours, params=other), 16, "decode", None).digest != space.digest

    # A small change of the latents that does not change the nearest codes leaves the picture as it is, while gradients
    # pass through.
    @jax.jit
    def decode(params, z):
        pictures, pull = jax.vjp(lambda z: ours.decode(params, z), z)
        return pictures, *pull(2.0 * pictures)

    pictures, slope = decode(ours.params, mean)
    np.testing.assert_allclose(decode(ours.params, mean + 1e-6)[0], pictures, atol=1e-5)
    assert np.abs(slope).max() > 0


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(norm_type="spatial"), "norm_type='spatial'.*'group'"),
        (dict(lookup_from_codebook=True), "lookup_from_codebook"),
        (dict(vq_embed_dim=0), "vq_embed_dim=0"),
        (dict(_class_name="AutoencoderKL"), "describes a AutoencoderKL"),
    ],
)
def test_unsupported_configs_are_named(change, words):
    with pytest.raises(UserError, match=words):
        vq.VQConfig.from_dict(SIZES | {"down_block_types": ["DownEncoderBlock2D"] * 2} | change)
