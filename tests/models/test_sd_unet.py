"""Stable Diffusion's U-Net in Linen against diffusers' UNet2DConditionModel."""

import dataclasses
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
from flax import traverse_util

from contextdiff_jax.errors import UserError
from contextdiff_jax.formats.pretrained import flax_axes
from contextdiff_jax.models.backbones import StableDiffusionBackbone
from contextdiff_jax.models.sd_blocks import MidStage, res_block, transformer
from contextdiff_jax.models.sd_unet import SDUNet, UNetConfig, load_sd_unet, read_sd_unet, save_sd_unet, tensor_name
from contextdiff_jax.types import Context

DOWN, UP = "DownBlock2D", "UpBlock2D"
CROSS_DOWN, CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
# Widths, depths and places of attention differ, so that nothing fits by accident.
SHAPES = {
    "as 1.x": dict(
        block_out_channels=(16, 24, 32),
        down_block_types=(CROSS_DOWN, CROSS_DOWN, DOWN),
        up_block_types=(UP, CROSS_UP, CROSS_UP),
        layers_per_block=2,
        attention_head_dim=8,
        cross_attention_dim=20,
        norm_num_groups=8,
        in_channels=4,
        out_channels=4,
    ),
    "as 2.x": dict(
        block_out_channels=(8, 24),
        down_block_types=(CROSS_DOWN, CROSS_DOWN),
        up_block_types=(CROSS_UP, CROSS_UP),
        layers_per_block=1,
        attention_head_dim=[2, 3],
        use_linear_projection=True,
        upcast_attention=True,
        cross_attention_dim=12,
        norm_num_groups=4,
        in_channels=4,
        out_channels=4,
    ),
    "rare options": dict(
        block_out_channels=(12, 6),
        down_block_types=(DOWN, CROSS_DOWN),
        up_block_types=(UP, CROSS_UP),
        layers_per_block=1,
        attention_head_dim=3,
        cross_attention_dim=10,
        transformer_layers_per_block=2,
        norm_num_groups=3,
        norm_eps=1e-3,
        flip_sin_to_cos=False,
        freq_shift=1,
        in_channels=9,
        out_channels=5,
        act_fn="swish",
    ),
}
# Quick to compile: attention in the middle alone.
SMALL = SHAPES["as 2.x"] | dict(down_block_types=(DOWN,) * 2, up_block_types=(UP,) * 2)
TIMES = np.array([0, 1, 500, 999])
FRACTIONS = np.array([0.25, 3.5, 501.75, 998.5], np.float32)


@dataclasses.dataclass
class Saved:
    """A model of diffusers, its folder, and ours as read from there."""

    model: diffusers.UNet2DConditionModel
    folder: Path

    def __post_init__(self):
        self.net, self.params = load_sd_unet(self.folder)
        self.apply = jax.jit(lambda params, *args: self.net.apply({"params": params}, *args))


@pytest.fixture(scope="module")
def all_saved(tmp_path_factory):
    def make(options: dict) -> Saved:
        model = randomised(diffusers.UNet2DConditionModel(**options))
        folder = tmp_path_factory.mktemp("unet")
        model.save_pretrained(folder)
        return Saved(model, folder)

    return {shape: make(options) for shape, options in (SHAPES | {"small": SMALL}).items()}


@pytest.fixture(params=SHAPES)
def saved(request, all_saved) -> Saved:
    return all_saved[request.param]


@pytest.fixture
def small(all_saved) -> Saved:
    """For tests that need no other."""
    return all_saved["small"]


def inputs(config: UNetConfig, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Latents [4, h, w, C], not square, and text features [4, 7, D]."""
    rng = np.random.default_rng(seed)
    xt = rng.normal(size=(4, 2 * config.factor, 3 * config.factor, config.in_channels))
    return xt.astype(np.float32), rng.normal(size=(4, 7, config.cross_attention_dim)).astype(np.float32)


def torch_output(model, xt, t, tokens, mask=None) -> np.ndarray:
    mask = None if mask is None else torch.tensor(mask)
    with torch.no_grad():
        out = model(to_torch(xt), torch.tensor(t), torch.tensor(tokens), encoder_attention_mask=mask)
    return to_numpy(out.sample)


@pytest.mark.parametrize("shape, times", [("as 1.x", TIMES), ("as 2.x", TIMES), ("rare options", FRACTIONS)])
def test_output_equals_pytorch(all_saved, shape, times):
    saved = all_saved[shape]
    xt, tokens = inputs(saved.net.config)
    theirs = torch_output(saved.model, xt, times, tokens)
    ours = saved.apply(saved.params, xt, times, tokens)
    assert ours.shape == theirs.shape and ours.dtype == jnp.float32
    for i, t in enumerate(times):
        assert relative_error(ours[i], theirs[i]) < 1e-5, t


def test_mask_equals_pytorch(small):
    xt, tokens = inputs(small.net.config)
    mask = np.arange(7) < np.array([7, 5, 2, 1])[:, None]
    ours = small.apply(small.params, xt, TIMES, tokens, mask)
    assert relative_error(ours, torch_output(small.model, xt, TIMES, tokens, mask)) < 1e-5
    everything = small.apply(small.params, xt, TIMES, tokens, np.ones_like(mask))
    assert relative_error(everything, torch_output(small.model, xt, TIMES, tokens)) < 1e-5
    assert relative_error(ours, np.asarray(everything)) > 1e-3


def test_a_layout_s_maps_are_read_back_and_its_padding_is_not_looked_at(small, tmp_path):
    xt, tokens = inputs(small.net.config)
    rng, mask = np.random.default_rng(1), np.arange(7) < np.array([7, 5, 2, 1])[:, None]
    kernel = rng.normal(size=(3, 3, 5, small.net.config.block_out_channels[0])).astype(np.float32)
    params = small.params | {"conv_spatial": {"kernel": kernel}}
    save_sd_unet(tmp_path / "unet", small.net.config, params)
    backbone = StableDiffusionBackbone(tmp_path / "unet", small.net)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    again = backbone.load(jax.tree.map(lambda _: place, params))
    jax.tree.map(np.testing.assert_array_equal, again, params)
    assert "conv_spatial" not in backbone.load(jax.tree.map(lambda _: place, small.params))
    maps = rng.normal(size=(*xt.shape[:3], 5)).astype(np.float32)
    run = jax.jit(lambda tokens: backbone(params, xt, TIMES, Context(tokens, tokens[:, 0], mask, spatial=maps)))
    ours = run(tokens)
    np.testing.assert_allclose(run(np.where(mask[..., None], tokens, 9.0)), ours, atol=1e-5)
    assert relative_error(run(np.where(mask[..., None], 9.0, tokens)), np.asarray(ours)) > 1e-3


def test_epsilons_show_in_faint_features(small):
    """Features of variance 1e-6 tell 1e-6 (the transformer's group norm) from 1e-5 (all others)."""
    _, tokens = inputs(small.net.config)
    config, middle = small.net.config, small.params["mid_block"]
    x = 1e-3 * np.random.default_rng(2).normal(size=(4, 2, 3, 24)).astype(np.float32)
    emb = np.random.default_rng(3).normal(size=(4, 32)).astype(np.float32)
    stage = MidStage(config, jnp.float32, remat=False)
    attend = transformer(stage, config.heads(-1), None)
    with torch.no_grad():
        theirs = small.model.mid_block.attentions[0](to_torch(x), torch.tensor(tokens)).sample
    ours = attend.apply({"params": middle["attentions_0"]}, x, tokens, None)
    assert relative_error(ours, to_numpy(theirs)) < 1e-5
    with torch.no_grad():
        theirs = small.model.mid_block.resnets[0](to_torch(x), torch.tensor(emb))
    ours = res_block(stage, 24, None).apply({"params": middle["resnets_0"]}, x, emb)
    assert relative_error(ours, to_numpy(theirs)) < 1e-5


def test_what_we_write_pytorch_reads_back_exactly(saved, tmp_path):
    save_sd_unet(tmp_path, saved.net.config, saved.params)
    again = assert_loads_exactly(saved.model, tmp_path)
    xt, tokens = inputs(saved.net.config)
    theirs = [torch_output(model, xt, TIMES, tokens) for model in (saved.model, again)]
    np.testing.assert_array_equal(*theirs)
    assert config_of(tmp_path) == config_of(saved.folder)


def test_gradients_through_remat_equal_pytorch(small):
    xt, tokens = inputs(small.net.config)
    out = small.model(to_torch(xt), torch.tensor(TIMES), torch.tensor(tokens)).sample
    small.model.zero_grad()
    (out**2).mean().backward()
    theirs = {name: p.grad.numpy() for name, p in small.model.named_parameters()}
    net = small.net.clone(remat=True)
    loss = lambda params: jnp.mean(net.apply({"params": params}, xt, TIMES, tokens) ** 2)
    ours = jax.jit(jax.grad(loss))(small.params)
    for path, value in traverse_util.flatten_dict(ours).items():
        name = tensor_name("/".join(path))
        expected = theirs[name].transpose(flax_axes(path, value.ndim))
        assert relative_error(value, expected) < 1e-4, name


def test_remat_saves_memory(small):
    xt, tokens = inputs(small.net.config)

    def residuals(net: SDUNet) -> int:
        apply = lambda params: net.apply({"params": params}, xt, TIMES, tokens)
        backward = jax.eval_shape(lambda params: jax.vjp(apply, params)[1], small.params)
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    assert residuals(small.net.clone(remat=True)) < 0.6 * residuals(small.net)


def test_bfloat16_stays_near_float32_and_returns_float32(small):
    net, params = load_sd_unet(small.folder, jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    xt, tokens = inputs(net.config)
    ours = jax.jit(net.apply)({"params": params}, xt, TIMES, tokens)
    assert ours.dtype == jnp.float32
    assert 0 < relative_error(ours, torch_output(small.model, xt, TIMES, tokens)) < 0.05
    assert np.mean(ours != ours.astype(jnp.bfloat16).astype(jnp.float32)) > 0.9, "not rounded at the end"


def test_parameters_from_shapes_alone(small):
    xt, tokens = inputs(small.net.config)
    abstract = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (xt, np.int32(1), tokens)]
    fresh = jax.eval_shape(lambda key: small.net.lazy_init(key, *abstract)["params"], jax.random.key(0))
    shapes = lambda tree: jax.tree.map(lambda v: (v.shape, str(v.dtype)), tree)
    assert shapes(fresh) == shapes(small.params)


def test_parameters_go_to_their_shardings(small):
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    params = read_sd_unet(small.folder, jax.tree.map(lambda _: place, small.params))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    jax.tree.map(np.testing.assert_array_equal, params, small.params)


@pytest.mark.parametrize(
    "xt, tokens, words",
    [
        ((1, 6, 5, 4), (1, 7, 12), "latents of 6 x 5.*multiples of 2"),
        ((1, 6, 4, 3), (1, 7, 12), "in_channels=4, but the latents have 3"),
        ((1, 6, 4, 4), (1, 7, 13), "cross_attention_dim=12, but these have 13"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(small, xt, tokens, words):
    with pytest.raises(UserError, match=words):
        small.net.apply({"params": small.params}, jnp.zeros(xt), jnp.zeros(1), jnp.zeros(tokens))


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(_class_name="UNet2DModel"), "describes a UNet2DModel.*class UNet2DConditionModel"),
        (dict(mid_block_type=None), "mid_block_type=None is not supported; accepted: 'UNetMidBlock2DCrossAttn'"),
        (dict(addition_embed_type="text_time"), "addition_embed_type='text_time' is not supported; accepted: None"),
        (dict(center_input_sample=True), "center_input_sample=True is not supported; accepted: False"),
        (dict(down_block_types=["AttnDownBlock2D", DOWN]), "down_block_types=.*each CrossAttnDownBlock2D or Down"),
        (dict(up_block_types=[UP]), "up_block_types=.*a list of 2"),
        (dict(block_out_channels=[8, 26]), r"block_out_channels=\(8, 26\).*multiples of norm_num_groups=4"),
        (dict(attention_head_dim=[2, 3, 4]), r"attention_head_dim=\(2, 3, 4\).*a list of 2"),
        (dict(attention_head_dim=5), r"attention_head_dim=5.*heads that divide \(8, 24\)"),
        (dict(norm_num_groups=None), "norm_num_groups=None.*a positive integer"),
        (dict(cross_attention_dim=[12, 24]), r"cross_attention_dim=\(12, 24\).*a positive integer"),
        (dict(use_linear_projection=1), "use_linear_projection=1.*true or false"),
        (dict(levels=3), "key levels=3 is unknown; known are act_fn, addition_embed_type"),
    ],
)
def test_unsupported_configs_are_named(all_saved, change, words):
    with pytest.raises(UserError, match=words) as error:
        UNetConfig.from_dict(config_of(all_saved["as 2.x"].folder) | change)
    assert "\n" not in str(error.value)


def test_configs_of_the_hub_are_read():
    """The keys that the first files had, and the sizes of 2.1; attention_head_dim is the number of heads in both."""
    first = UNetConfig.from_dict(dict(_diffusers_version="0.2.2", attention_head_dim=8, cross_attention_dim=768))
    assert (first.factor, first.heads(0), first.heads(3)) == (8, 8, 8)
    second = UNetConfig.from_dict(dict(attention_head_dim=[5, 10, 20, 20], use_linear_projection=True))
    assert [second.heads(level) for level in range(4)] == [5, 10, 20, 20]
    assert hash(second) != hash(first)


def test_wrong_weights_are_named(small, tmp_path):
    for file in small.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config_of(small.folder) | dict(use_linear_projection=False)))
    with pytest.raises(UserError, match=r"wrong shape: .*proj_in.weight expected \(1, 1, 24, 24\) found \(24, 24\)"):
        load_sd_unet(tmp_path)
