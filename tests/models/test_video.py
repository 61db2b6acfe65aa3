"""The U-Net of clips: identity at the start, key frames, convolution and attention over time, edits of attention."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import parameter_helpers
import pytest
from ml_collections import ConfigDict

from contextdiff_jax import parameters, trees
from contextdiff_jax.errors import UserError
from contextdiff_jax.formats import pretrained
from contextdiff_jax.models.adapter import Adapter
from contextdiff_jax.models.sd_blocks import TransformerBlock
from contextdiff_jax.models.sd_config import UNetConfig
from contextdiff_jax.models.sd_unet import SDUNet
from contextdiff_jax.models.video import FrameConv, Frames, VideoConfig, with_branches_over_time
from contextdiff_jax.tasks.readers import read_adapter
from contextdiff_jax.types import Context

F = 4
CONFIG = UNetConfig(
    block_out_channels=(8, 16),
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    layers_per_block=1,
    attention_head_dim=2,
    cross_attention_dim=6,
    norm_num_groups=4,
)
EVERYTHING = VideoConfig(temporal_conv_rank=3, temporal_attention="after", key_frames=(-1, "first"))


@pytest.fixture(scope="module")
def given():
    keys = jax.random.split(jax.random.key(0), 3)
    xt = jax.random.normal(keys[0], (2 * F, 4, 4, 4))
    tokens = jnp.repeat(jax.random.normal(keys[1], (2, 5, 6)), F, axis=0)
    return xt, jnp.full(2 * F, 7), tokens


def random_params(net: SDUNet, given, **how):
    """Parameters without a zero among them: a layer that starts as identity shows what it does."""
    shapes = jax.eval_shape(partial(net.init, **how), jax.random.key(0), *given)["params"]
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(tree, [jnp.asarray(rng.normal(0, 0.2, x.shape), jnp.float32) for x in leaves])


def apply(net, params, given, **how):
    return jax.jit(partial(net.apply, **how))({"params": params}, *given)


def zero_where(params, *words):
    """Parameters with those whose path has one of the words set to zero."""
    named = lambda path: any(word in jax.tree_util.keystr(path) for word in words)
    return jax.tree_util.tree_map_with_path(lambda path, x: jnp.zeros_like(x) if named(path) else x, params)


@pytest.fixture(scope="module")
def image_net(given):
    net = SDUNet(CONFIG)
    return net, random_params(net, given)


@pytest.mark.parametrize("over_time", ["after", "parallel"])
def test_identity_layers_leave_the_image_network_frame_by_frame(given, over_time):
    video = VideoConfig(temporal_conv_rank=3, temporal_attention=over_time)
    net = SDUNet(CONFIG, video=video)
    joined = {"temporal_up", "temporal_out"} if over_time == "parallel" else {"temporal_up", "over_time']['out"}
    params = zero_where(random_params(net, given, num_frames=F), *joined)
    clip = apply(net, params, given, num_frames=F)
    shapes = jax.eval_shape(SDUNet(CONFIG).init, jax.random.key(0), *given)["params"]
    keep = {jax.tree_util.keystr(k) for k, _ in jax.tree_util.tree_leaves_with_path(shapes)}
    flat = {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(params)}
    image = jax.tree_util.tree_map_with_path(lambda k, _: flat[jax.tree_util.keystr(k)], shapes)
    assert keep < set(flat)
    frame_by_frame = apply(SDUNet(CONFIG), image, given)
    np.testing.assert_allclose(clip, frame_by_frame, atol=1e-5)


@pytest.mark.parametrize("over_time, joined", [("after", "over_time']['out"), ("parallel", "temporal_out")])
def test_attention_over_time_starts_as_zero(over_time, joined):
    block = TransformerBlock(2, jnp.float32, Frames(VideoConfig(temporal_attention=over_time), F))
    x, tokens = jnp.ones((F, 4, 8)), jnp.ones((F, 3, 6))
    params = jax.jit(lambda key: block.init(key, x, tokens, None, (2, 2)))(jax.random.key(0))["params"]
    chex.assert_trees_all_equal(params, zero_where(params, joined))
    assert np.any(params["attn_temporal"]["over_time"]["query"]["kernel"])


def test_one_frame_is_the_image_network_bit_by_bit(given, image_net):
    net, params = image_net
    video = dataclasses.replace(net, video=VideoConfig(key_frames=(-1, "first")))
    np.testing.assert_array_equal(apply(video, params, given), apply(net, params, given))
    program = lambda n: jax.jit(n.apply).lower({"params": params}, *given).as_text()
    assert program(video) == program(net)


def test_frames_are_joined_within_their_clip_only(given):
    net = SDUNet(CONFIG, video=EVERYTHING)
    params = random_params(net, given, num_frames=F)
    xt, t, tokens = given
    before = apply(net, params, given, num_frames=F)
    after = apply(net, params, (xt.at[1].add(1.0), t, tokens), num_frames=F)
    moved = np.abs(np.asarray(after - before)).reshape(2, F, -1).max(-1)
    assert (moved[0] > 1e-3).all()  # the other frames of the first clip
    np.testing.assert_array_equal(moved[1], 0)


def test_key_frames_are_what_self_attention_looks_at():
    seen = VideoConfig(key_frames=(-1, 0, 2, "first", "mid", "last")).frames_seen(5, 8)
    np.testing.assert_array_equal(seen[0], [0, 0, 2, 0, 2, 4])
    np.testing.assert_array_equal(seen[4], [3, 4, 4, 0, 2, 4])
    np.testing.assert_array_equal(VideoConfig(key_frames=("mid",)).frames_seen(8, 8), np.full((8, 1), 3))
    narrow = VideoConfig(key_frames=("mid",), key_frames_min_channels=16)
    assert narrow.frames_seen(5, 8) is None and narrow.frames_seen(5, 16) is not None


def test_self_attention_over_key_frames_by_hand(given):
    """The weights of a layer over (previous, first), and what the layer makes of them, in numpy."""
    net = SDUNet(CONFIG, video=VideoConfig(key_frames=(-1, "first")))
    params = random_params(net, given, num_frames=F)
    name, maps = "down_blocks_0/attentions_0/transformer_blocks_0/attn1", {}

    def keep(weights, site):
        maps[site.name] = weights
        return weights

    def run(params, *args):
        out, state = net.apply(
            {"params": params},
            *args,
            num_frames=F,
            edit=keep,
            capture_intermediates=lambda module, _: module.name in ("norm1", "attn1"),
        )
        block = state["intermediates"]["down_blocks_0"]["attentions_0"]["transformer_blocks_0"]
        return out, maps[name], block["norm1"]["__call__"][0], block["attn1"]["__call__"][0]

    out, weights, x, result = map(np.asarray, jax.jit(run)(params, *given))
    np.testing.assert_allclose(out, apply(net, params, given, num_frames=F), atol=1e-4)
    p = params["down_blocks_0"]["attentions_0"]["transformer_blocks_0"]["attn1"]
    heads = lambda h: h.reshape(-1, 2, 4).swapaxes(0, 1)
    for frame in range(2 * F):
        clip, i = divmod(frame, F)
        keys = np.concatenate([x[clip * F + max(i - 1, 0)], x[clip * F]])
        q, k, v = (heads(h @ p[n]["kernel"]) for n, h in (("query", x[frame]), ("key", keys), ("value", keys)))
        logits = q @ k.swapaxes(1, 2) / 2.0
        w = np.exp(logits - logits.max(-1, keepdims=True))
        w /= w.sum(-1, keepdims=True)
        np.testing.assert_allclose(weights[frame], w, atol=1e-5)
        by_hand = (w @ v).swapaxes(0, 1).reshape(16, 8) @ p["out"]["kernel"] + p["out"]["bias"]
        np.testing.assert_allclose(result[frame], by_hand, atol=1e-5)


def test_convolution_over_time_by_hand(x64):
    x = jax.random.normal(jax.random.key(0), (2 * F, 3, 3, 4), jnp.float64)
    layer = FrameConv(6, (3, 3), num_frames=F, rank=5, dtype=jnp.float64, param_dtype=jnp.float64)
    params = layer.init(jax.random.key(1), x)["params"]
    assert params["temporal_down"]["kernel"].shape == (3, 6, 3)  # at most half of the channels
    assert not np.any(params["temporal_up"]["kernel"])
    params["temporal_up"]["kernel"] = jax.random.normal(jax.random.key(2), (3, 3, 6))
    spatial = {name: params[name] for name in ("kernel", "bias")}
    h = np.asarray(FrameConv(6, (3, 3), dtype=jnp.float64).apply({"params": spatial}, x)).reshape(2, F, 3, 3, 6)

    def over_time(h, kernel):
        padded = np.pad(h, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
        return sum(padded[:, i : i + F] @ np.asarray(kernel[i]) for i in range(3))

    joined = over_time(over_time(h, params["temporal_down"]["kernel"]), params["temporal_up"]["kernel"])
    chex.assert_trees_all_close(layer.apply({"params": params}, x), (h + joined).reshape(2 * F, 3, 3, 6), atol=1e-10)


def test_edits_are_asked_at_every_site_and_obeyed(given, image_net):
    net, params = image_net
    sites = []

    def look(weights, site):
        sites.append((site, weights.shape))
        return weights

    same = apply(net, params, given, edit=look)
    np.testing.assert_allclose(same, apply(net, params, given), atol=1e-5)
    kinds = {(site.kind, site.height, shape[-1]) for site, shape in sites}
    assert kinds == {("self", 4, 16), ("cross", 4, 5), ("self", 2, 4), ("cross", 2, 5)}
    assert len({site.name for site, _ in sites}) == len(sites)
    # Under uniform weights the order of the text does not matter; under its own it does.
    uniform = lambda weights, site: jnp.full_like(weights, 1 / 5) if site.kind == "cross" else weights
    xt, t, tokens = given
    run = jax.jit(partial(net.apply, edit=uniform))
    edited, shuffled = (run({"params": params}, xt, t, order) for order in (tokens, tokens[:, ::-1]))
    np.testing.assert_allclose(shuffled, edited, atol=1e-5)
    assert np.abs(edited - same).max() > 1e-4


def test_branches_over_time_begin_as_the_self_attention_beside_them(given):
    net = SDUNet(CONFIG, video=VideoConfig(temporal_attention="parallel"))
    everything = jax.eval_shape(partial(net.init, num_frames=F), jax.random.key(0), *given)["params"]
    plain = random_params(SDUNet(CONFIG), given)
    params = with_branches_over_time(plain, everything)
    block = params["up_blocks_1"]["attentions_0"]["transformer_blocks_0"]
    chex.assert_trees_all_equal(block["attn_temporal"]["over_time"], block["attn1"])
    tuned = random_params(net, given, num_frames=F)  # in which none is a copy any more
    chex.assert_trees_all_equal(with_branches_over_time(tuned, everything), tuned)
    assert "attn_temporal" not in params["mid_block"]["attentions_0"]["transformer_blocks_0"]
    chex.assert_trees_all_equal_shapes(
        block["attn_temporal"], everything["up_blocks_1"]["attentions_0"]["transformer_blocks_0"]["attn_temporal"]
    )


def test_control_is_added_to_skips_and_middle(given, image_net):
    net, params = image_net
    shapes = [(8, 4, 4, 8), (8, 4, 4, 8), (8, 2, 2, 8), (8, 2, 2, 16), (8, 2, 2, 16)]
    nothing = tuple(jnp.zeros(s) for s in shapes)
    run = jax.jit(lambda control: net.apply({"params": params}, *given, control=control))
    plain = apply(net, params, given)
    np.testing.assert_allclose(run(nothing), plain, atol=1e-6)
    for i in range(len(shapes)):
        assert np.abs(run(tuple(c + (j == i) for j, c in enumerate(nothing))) - plain).max() > 1e-3
    with pytest.raises(UserError, match="adds 4 feature maps, but this U-Net takes 5"):
        jax.eval_shape(run, nothing[1:])
    with pytest.raises(UserError, match="a feature map of 2 x 2 x 8 where this U-Net has one of 2 x 2 x 16"):
        jax.eval_shape(run, (*nothing[:3], nothing[2], nothing[4]))


def test_the_adapter_of_clips_starts_as_the_one_of_images_and_looks_back_only(tmp_path):
    """That of images may have no attention among its patches either."""
    keys = jax.random.split(jax.random.key(0), 3)
    tokens, text = jax.random.normal(keys[0], (2 * F, 4, 6)), jax.random.normal(keys[1], (2 * F, 3, 5))
    context = Context(text, text[:, 0], jnp.ones((2 * F, 3), bool))
    t, shape = jnp.full(2 * F, 5), (4, 4, 2)
    image = Adapter(1, 2, 8, 2, 1.0, 10)
    clip = dataclasses.replace(image, self_attention=True, num_frames=F, frames_back=3)
    run = lambda net, params, tokens: jax.jit(lambda p, x: net.apply({"params": p}, x, (2, 2), t, context, shape))(
        params, tokens
    )
    drawn = parameter_helpers.randomised(parameters.shapes(image, tokens, (2, 2), t, context, shape), 0.3)
    pretrained.write_params(tmp_path / "adapter", drawn, lambda path: path.replace("/", "."), {})
    fresh = parameters.init(clip, keys[2], tokens, (2, 2), t, context, shape)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    params = trees.merge(fresh, read_adapter(tmp_path, fresh, jax.tree.map(lambda _: place, fresh)))
    np.testing.assert_allclose(run(clip, params, tokens), run(image, drawn, tokens), atol=1e-6)
    out = params["block_0"]["temporal"]["over_time"]["out"]
    out["kernel"] = jax.random.normal(keys[2], out["kernel"].shape)
    before, after = run(clip, params, tokens), run(clip, params, tokens.at[F].add(1.0))
    moved = np.abs(np.asarray(after - before)).reshape(2, F, -1).max(-1)
    np.testing.assert_array_equal(moved > 1e-6, [[False] * 4, [True, True, True, False]])


def test_bad_settings_are_refused(given):
    section = ConfigDict(
        dict(temporal_conv_rank=0, temporal_attention="none", key_frames=(), key_frames_min_channels=0)
    )
    assert VideoConfig.from_config(section) == VideoConfig()
    with pytest.raises(UserError, match="key_frames.*'middle' is no frame"):
        VideoConfig(key_frames=("middle",))
    with pytest.raises(UserError, match="temporal_attention='before' is unknown"):
        VideoConfig(temporal_attention="before")
    with pytest.raises(UserError, match="temporal_conv_rank=-1"):
        VideoConfig(temporal_conv_rank=-1)
    with pytest.raises(UserError, match="8 pictures is no whole number of clips of 3 frames"):
        jax.eval_shape(partial(SDUNet(CONFIG).init, num_frames=3), jax.random.key(0), *given)
