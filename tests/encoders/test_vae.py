"""The autoencoder in Linen against diffusers' AutoencoderKL."""

import copy
import dataclasses
import functools
import json
from pathlib import Path

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers_helpers import (
    assert_loads_exactly,
    config_of,
    randomised,
    relative_error,
    to_numpy,
    to_torch,
)
from safetensors.torch import load_file, save_file

from contextdiff_jax.encoders.vae import MidBlock, Vae, VAEConfig, load_vae
from contextdiff_jax.errors import UserError

WEIGHTS = "diffusion_pytorch_model.safetensors"
SHAPES = {
    "three levels": dict(
        block_out_channels=(8, 16, 24), layers_per_block=2, norm_num_groups=4, latent_channels=4, scaling_factor=0.18215
    ),
    "two levels": dict(
        block_out_channels=(12, 6), layers_per_block=1, norm_num_groups=3, latent_channels=5, scaling_factor=0.5
    ),
}


def torch_vae(shape: str) -> diffusers.AutoencoderKL:
    levels = len(SHAPES[shape]["block_out_channels"])
    blocks = dict(down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels)
    return randomised(diffusers.AutoencoderKL(**SHAPES[shape], **blocks))


@dataclasses.dataclass
class Saved:
    """A model of diffusers, its folder, ours as read from there, and its compiled functions."""

    model: diffusers.AutoencoderKL
    folder: Path
    vae: Vae

    def __post_init__(self):
        self.moments = functools.partial(jax.jit(self.vae.moments), self.vae.params)
        self.decode = functools.partial(jax.jit(self.vae.decode), self.vae.params)


@pytest.fixture(scope="module")
def all_saved(tmp_path_factory):
    def make(shape: str) -> Saved:
        model, folder = torch_vae(shape), tmp_path_factory.mktemp("vae")
        model.save_pretrained(folder)
        return Saved(model, folder, load_vae(folder))

    return {shape: make(shape) for shape in SHAPES}


@pytest.fixture(params=SHAPES)
def saved(request, all_saved) -> Saved:
    return all_saved[request.param]


@pytest.fixture
def small(all_saved) -> Saved:
    """One of them, for tests that need no other."""
    return all_saved["two levels"]


def images_for(vae, seed=0) -> np.ndarray:
    """[2, H, W, 3], not square."""
    height, width = 4 * vae.downscale, 6 * vae.downscale
    return np.random.default_rng(seed).uniform(-1, 1, (2, height, width, 3)).astype(np.float32)


def test_encoding_equals_pytorch(saved):
    vae, factor = saved.vae, saved.model.config.scaling_factor
    images = images_for(vae)
    with torch.no_grad():
        theirs = saved.model.encode(to_torch(images)).latent_dist
    mean, std = saved.moments(images)
    assert mean.shape == (2, 4, 6, vae.latent_channels)
    assert relative_error(mean, factor * to_numpy(theirs.mean)) < 1e-5
    assert relative_error(std, factor * to_numpy(theirs.std)) < 1e-5


def test_decoding_equals_pytorch(saved):
    vae = saved.vae
    latents = np.random.default_rng(1).normal(size=(2, 4, 6, vae.latent_channels)).astype(np.float32)
    with torch.no_grad():
        theirs = to_numpy(saved.model.decode(to_torch(latents) / saved.model.config.scaling_factor).sample)
    ours = saved.decode(latents)
    assert ours.shape == (2, 4 * vae.downscale, 6 * vae.downscale, 3)
    assert relative_error(ours, theirs) < 1e-5


def test_epsilons_show_in_faint_features(small):
    """Features of variance 1e-6 tell an epsilon of 1e-6 from 1e-5; zeroed convolutions carry them from norm to norm."""
    block = copy.deepcopy(small.model.encoder.mid_block)
    params = copy.deepcopy(small.vae.params["encoder"]["mid_block"])
    x = 1e-3 * np.random.default_rng(2).normal(size=(2, 4, 3, 6)).astype(np.float32)
    for theirs, ours in (
        (block.resnets[0].conv2, params["resnets_0"]["conv_2"]),
        (block.attentions[0].to_out[0], params["attentions_0"]["out"]),
    ):
        with torch.no_grad():
            expected = to_numpy(block(to_torch(x)))
            found = MidBlock(small.vae.config, jnp.float32).apply({"params": params}, x)
            assert relative_error(found, expected) < 1e-5
            theirs.weight.zero_()
            theirs.bias.zero_()
        ours["kernel"][:], ours["bias"][:] = 0, 0


def test_what_we_write_pytorch_reads_back_exactly(saved, tmp_path):
    model, folder, vae = saved.model, saved.folder, saved.vae
    vae.save(tmp_path, vae.params)
    again = assert_loads_exactly(model, tmp_path)
    images = to_torch(images_for(vae))
    with torch.no_grad():
        assert torch.equal(model(images).sample, again(images).sample)
    assert config_of(tmp_path) == config_of(folder)


def test_half_precision_export(small, tmp_path):
    model, vae = small.model, small.vae
    vae.save(tmp_path, vae.params, np.float16)
    again = diffusers.AutoencoderKL.from_pretrained(tmp_path, torch_dtype=torch.float16)
    for name, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[name].half()), name


@pytest.mark.parametrize("as_convolutions", [False, True])
def test_old_attention_names_are_read(small, tmp_path, as_convolutions):
    """As Stable Diffusion 1.x has them on the hub; in still older files as 1x1 convolutions."""
    folder, vae = small.folder, small.vae
    tensors = {}
    for name, value in load_file(folder / WEIGHTS).items():
        for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            name = name.replace(f"attentions.0.{new}", f"attentions.0.{old}")
        is_kernel = value.ndim == 2 and as_convolutions
        tensors[name] = (value[:, :, None, None] if is_kernel else value).contiguous()
    assert sum("proj_attn.weight" in name for name in tensors) == 2
    save_file(tensors, tmp_path / WEIGHTS)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    jax.tree.map(np.testing.assert_array_equal, load_vae(tmp_path).params, vae.params)


def test_samples_follow_the_posterior(small):
    vae, images = small.vae, images_for(small.vae)
    mean, std = small.moments(images)
    encode = jax.jit(vae.encode)
    np.testing.assert_allclose(encode(vae.params, images), mean, atol=1e-6)
    draws = np.stack([encode(vae.params, images, jax.random.key(seed)) for seed in range(50)])
    standard = (draws - np.asarray(mean)) / np.asarray(std)
    assert abs(standard.mean()) < 4 / standard.size**0.5
    assert standard.std() == pytest.approx(1, abs=0.02)


def test_log_variance_is_clipped(small):
    vae, (bias, half) = small.vae, (np.copy(small.vae.params["quant_conv"]["bias"]), small.vae.latent_channels)
    bias[half:] = [-99, 99, -99, 99, -99]
    params = vae.params | {"quant_conv": vae.params["quant_conv"] | {"bias": bias}}
    _, std = small.moments.func(params, images_for(vae))
    logvar = 2 * np.log(std / vae.config.scaling_factor)
    assert (logvar.min(), logvar.max()) == pytest.approx((-30, 20), abs=1e-4)


def test_bfloat16_stays_near_float32_and_returns_float32(small):
    half, images = load_vae(small.folder, jnp.bfloat16), images_for(small.vae)
    mean, std = jax.jit(half.moments)(half.params, images)
    decoded = jax.jit(half.decode)(half.params, mean)
    assert mean.dtype == std.dtype == decoded.dtype == jnp.float32
    full = small.moments(images)[0]
    assert 0 < relative_error(mean, np.asarray(full)) < 0.05
    assert 0 < relative_error(decoded, np.asarray(small.decode(full))) < 0.05


@pytest.mark.parametrize("shape", [(1, 9, 8, 3), (1, 8, 8, 4)])
def test_images_that_do_not_fit_are_refused(small, shape):
    vae = small.vae
    with pytest.raises(UserError, match=f"{shape[1]} x {shape[2]} x {shape[3]}; give sides divisible by 2 and 3"):
        vae.encode(vae.params, jnp.zeros(shape))
    with pytest.raises(UserError, match="cannot decode 4 channels; give latents of 5"):
        vae.decode(vae.params, jnp.zeros((1, 4, 4, 4)))


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(_class_name="AutoencoderTiny"), "describes a AutoencoderTiny.*class AutoencoderKL"),
        (dict(act_fn="relu"), "act_fn='relu' is not supported; accepted: 'silu' or 'swish'"),
        (dict(use_quant_conv=False), "use_quant_conv=False is not supported; accepted: True"),
        (dict(block_out_channels=[8, 10]), r"block_out_channels=\(8, 10\).*multiples of norm_num_groups=4"),
        (dict(block_out_channels="8"), "block_out_channels='8'.*a list of positive integers"),
        (dict(layers_per_block=0), "layers_per_block=0.*a positive integer"),
        (dict(scaling_factor=None), "scaling_factor=None.*a number"),
        (dict(up_block_types=["AttnUpDecoderBlock2D"] * 2), "up_block_types=.*2 times 'UpDecoderBlock2D'"),
        (dict(depth=3), "key depth=3 is unknown; known are act_fn, block_out_channels"),
    ],
)
def test_unsupported_configs_are_named(change, words):
    base = dict(
        _class_name="AutoencoderKL",
        block_out_channels=[8, 16],
        norm_num_groups=4,
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
    )
    VAEConfig.from_dict(base)
    with pytest.raises(UserError, match=words):
        VAEConfig.from_dict(base | change)


def test_weights_of_another_shape_are_named(small, tmp_path):
    folder = small.folder
    (tmp_path / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config_of(folder) | dict(latent_channels=4)))
    with pytest.raises(UserError, match=r"decoder.conv_in.weight expected \(3, 3, 4, 6\) found \(3, 3, 5, 6\)"):
        load_vae(tmp_path)
