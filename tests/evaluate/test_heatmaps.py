"""Heatmaps of words: weights against numpy, the same pictures as without, shares of heat, one colour scale."""

import json
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import parameter_helpers
import pytest
from flax import struct
from matplotlib import colormaps
from ml_collections import ConfigDict
from PIL import Image

import contextdiff_jax as cdx
from configs import t2i
from contextdiff_jax import command_line
from contextdiff_jax import task as task_lib
from contextdiff_jax.data.clips import Clip
from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate import heat_pictures, heatmaps
from contextdiff_jax.layers import Attention
from contextdiff_jax.models.video import Site
from contextdiff_jax.process.chart import TwoHeaded


class Net(nn.Module):
    """Cross-attention at two resolutions, and a layer of another name that is not to be looked at."""

    @nn.compact
    def __call__(self, x, text):
        x = x + Attention(2, jnp.float32, name="cross")(x, text)
        y = nn.remat(Attention)(2, jnp.float32, name="attn2")(x[:, ::4], text)
        return x + Attention(2, jnp.float32, name="self")(x) + y.sum(axis=1, keepdims=True)


def weights(params, x, text):
    """softmax(q k / sqrt(d)) of two heads, in float64."""
    x, text = np.asarray(x, np.float64), np.asarray(text, np.float64)
    split = lambda h: h.reshape(*h.shape[:2], 2, -1)
    q, k = (split(h @ np.asarray(params[n]["kernel"], np.float64)) for h, n in ((x, "query"), (text, "key")))
    logits = np.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return (e / e.sum(axis=-1, keepdims=True)).mean(axis=1)


@pytest.mark.parametrize("guided", (False, True))
def test_maps_are_the_mean_weights_of_the_nearest_resolution(guided):
    rng = np.random.default_rng(0)
    text = jnp.asarray(rng.normal(size=(4, 3, 6)), jnp.float32)
    xs = [jnp.asarray(rng.normal(size=(4, 8, 4, 8)), jnp.float32) for _ in range(2)]
    net = Net()
    params = net.init(jax.random.key(0), xs[0].reshape(4, 32, 8), text)["params"]
    apply = lambda p, x, t, text: net.apply({"params": p}, x.reshape(4, 32, 8), text).reshape(x.shape)
    recorder = heatmaps.Recorder()
    reporting = recorder.denoise(SimpleNamespace(denoise=apply), guided)
    for x in xs:  # two steps
        out = jax.jit(reporting)(params, x, jnp.zeros(4, jnp.int32), text)
        np.testing.assert_allclose(out, apply(params, x, 0, text), atol=1e-5)
    expected = np.mean([weights(params["cross"], x.reshape(4, 32, 8), text) for x in xs], axis=0)
    expected = expected.reshape(4, 8, 4, 3)[:: 2 if guided else 1]
    np.testing.assert_allclose(recorder.maps(), expected, atol=1e-5)
    with pytest.raises(UserError, match="no cross-attention"):
        recorder.maps()
    if not guided:  # nor is a second head
        two = TwoHeaded(lambda x, t: (apply(params, x, t, text), -x))
        model = SimpleNamespace(denoise=None, denoiser=lambda params, context: two)
        both = jax.jit(heatmaps._Reporting(model, recorder, guided).denoiser(params, None).with_shift)
        for x in xs:
            assert (both(x, jnp.zeros(4))[1] == -x).all()
        np.testing.assert_allclose(recorder.maps(), expected, atol=1e-5)


@pytest.fixture(scope="module")
def pipe():
    config = t2i.get_config("tiny")
    config.sample.num_steps, config.sample.batch_size = 2, 4
    task = task_lib.build(config)
    return cdx.Pipeline(task, parameter_helpers.randomised(jax.eval_shape(task.init, jax.random.key(0)), 0.1), 0)


PROMPTS = ("a frog on a red background", "a soccer ball on a blue background")  # as many as renders: fewer programs


def test_pictures_are_those_of_the_pipeline(pipe):
    seed = 3_000_000_000  # beyond what 32 bits with a sign hold
    found = heatmaps.of_samples(pipe, PROMPTS, key=seed)
    np.testing.assert_allclose(found.images, pipe.sample_arrays(list(PROMPTS), key=seed), atol=2e-4)
    with pytest.raises(UserError, match="seed 4294967296 is outside"):
        heatmaps.of_samples(pipe, PROMPTS, key=2**32)
    assert found.maps.shape[:3] == (2, 4, 4)  # 16 pixels, patches of 2, the second level
    np.testing.assert_allclose(found.maps.sum(axis=-1), 1.0, atol=1e-5)
    with pytest.raises(UserError, match="texts"):
        other = SimpleNamespace(config=ConfigDict(dict(condition=dict(kind="class"), data=dict(num_frames=1))))
        heatmaps.of_samples(other, ["x"])
    for unknown in dict(step=5), dict(guidance="much"):
        with pytest.raises(UserError, match=f"{next(iter(unknown))}=.*(unknown|wrong type)"):
            heatmaps.of_samples(pipe, PROMPTS, **unknown)


def test_a_words_heat_is_that_of_its_tokens(pipe):
    read = pipe.task.parts.condition.read
    prompt = heatmaps.Prompt.read("a soccer ball on a blue background", read)
    maps = np.random.default_rng(0).random((4, 4, len(prompt.ids)))
    both = heatmaps.heat(maps, prompt, "soccer ball")
    np.testing.assert_allclose(both, heatmaps.heat(maps, prompt, "soccer") + heatmaps.heat(maps, prompt, "ball"))
    assert heatmaps.words_of("a soccer ball on a blue, blue background.") == ["soccer", "ball", "blue", "background"]
    with pytest.raises(UserError, match="'fox' is not in the prompt"):
        heatmaps.heat(maps, prompt, "fox")


def test_heat_inside_a_mask_is_a_share():
    masks = np.zeros((2, 8, 8), bool)
    masks[:, :4, :4] = True
    heats = np.ones((2, 2, 2))
    heats[1] = [[9, 1], [1, 1]]
    inside, spread = heatmaps.share_inside(heats, masks)
    np.testing.assert_allclose(inside, [0.25, 0.75])
    np.testing.assert_allclose(spread, 0.25)
    # Cells that divide no mask: a third of the heat in each column, of which the mask's first quarter is 3/4 of one.
    quarter = np.arange(4)[None, None] < np.ones((1, 4, 1))
    np.testing.assert_allclose(heatmaps.share_inside(np.ones((1, 3, 3)), quarter), [[0.25], [0.25]])
    left = np.array([[[1.0, 0.0, 0.0]] * 3])
    np.testing.assert_allclose(heatmaps.share_inside(left, quarter)[0], 0.75)


def test_one_colour_stands_for_one_heat():
    image, heat = np.zeros((8, 8, 3), np.uint8), np.full((2, 2), 0.3)
    over = heat_pictures.overlay(image, heat, 0.6)
    expected = heat_pictures.OPACITY * np.array(colormaps[heat_pictures.COLOURS](0.5)[:3]) * 255
    np.testing.assert_allclose(over, np.broadcast_to(expected, over.shape), atol=1.01)
    assert (heat_pictures.overlay(image, 2 * heat, 0.6).mean() > over.mean()).all()


def test_prompts_without_a_word_are_refused_before_they_are_drawn(tmp_path):
    config = ConfigDict(dict(data=dict(source="openmoji")))
    with pytest.raises(UserError, match="prompt '...' has no word to show"):
        heat_pictures.write_heatmaps(
            SimpleNamespace(config=config, task=SimpleNamespace(adapter=None)), ["a frog", "..."], tmp_path
        )


def test_shares_that_cannot_be_had_are_left_out(tmp_path, monkeypatch, capsys):
    config = t2i.get_config("tiny")
    pipeline, settings = SimpleNamespace(config=config), {"adapter on": {}, "adapter off": {"adapter": False}}
    config.data.preset = "demo_pairs"
    assert heat_pictures.shares(pipeline, settings) == {}
    assert "all captions of data.preset='demo_pairs' name two objects" in capsys.readouterr().out
    config.data.preset, config.adapter.reverse, asked = "demo", "head", []

    def of_pictures(pipeline, images, captions, **how):
        asked.append(how)
        raise KeyboardInterrupt

    monkeypatch.setattr(heatmaps, "of_pictures", of_pictures)
    monkeypatch.setattr(heat_pictures, "RENDERS", 2)
    monkeypatch.setattr(heat_pictures, "_of_prompts", lambda *args: [{"file": "0000.png"}])
    monkeypatch.setattr(heat_pictures, "settings_of", lambda pipeline: settings)
    pipeline.step = 7
    with pytest.raises(KeyboardInterrupt):
        heat_pictures.write_heatmaps(pipeline, ["a frog"], tmp_path)
    assert asked == [{"adapter": False}]
    assert "shares of heat are left out of adapter on: config.adapter.reverse='head'" in capsys.readouterr().out
    about = json.loads((tmp_path / "heatmaps.json").read_text())  # what stops the shares loses no picture
    assert about == {"step": 7, "seed": 0, "pictures": [{"file": "0000.png"}], "shares": {}}


def test_dollars_of_a_prompt_are_no_formulas(tmp_path):
    rows = {r"o$\n$": (np.zeros((8, 8, 3), np.uint8), {r"$\x$": np.ones((2, 2))})}
    assert heat_pictures.draw(rows, r"a $\x$ sign", tmp_path / "x.png") == 1.0
    assert Image.open(tmp_path / "x.png").width > 200


def test_heatmaps_on_command(pipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(heat_pictures, "RENDERS", 2)
    monkeypatch.setattr(command_line.shared, "pipeline_of", lambda config, options: pipe)
    options = command_line.Options("", prompts=PROMPTS, out=str(tmp_path))
    command_line.run("heatmaps", None, options)
    about = json.loads((tmp_path / "heatmaps.json").read_text())
    picture = about["pictures"][0]
    assert picture["words"] == ["frog", "red", "background"] and 0 < picture["last_colour"] < 1
    assert Image.open(tmp_path / picture["file"]).width > 400
    rows = about["shares"]
    assert set(rows) == {f"the {w}'s words, adapter {s}" for w in ("object", "background") for s in ("on", "off")}
    for row in rows.values():
        assert row["n"] == 2 and 0 < row["heat_in_mask"] < 1 and 0.1 < row["mask_of_picture"] < 0.7
    assert "of the heat on the object" in capsys.readouterr().out


class Clips:
    """A model of clips whose cross-attention depends on the time alone: token 1 gets t / 50 of it."""

    edges, schedule = None, cdx.schedule.cosine(50)
    parts = SimpleNamespace(
        condition=SimpleNamespace(read=lambda texts: {"tokens": np.zeros((1, 2), np.int32)}),
        space=SimpleNamespace(encode=lambda frozen, batch: batch["image"][..., :1]),
    )

    def shape_of(self, size):
        return (4, 4, 1)

    def schedule_of(self, params):
        return self.schedule

    def shift(self, params, frozen, context):
        return None

    def encode(self, params, frozen, fields):
        return SimpleContext(jnp.zeros((1, 2, 3)))

    def denoise(self, params, x, t, context, edit):
        share = jnp.broadcast_to(t / 50, x.shape[:1])[:, None, None, None]
        weights = jnp.broadcast_to(jnp.concatenate([1 - share, share], -1), (len(x), 2, 16, 2))
        edit(weights, Site("layer", "cross", 4, 4))
        return 0.5 * x


@struct.dataclass
class SimpleContext:
    tokens: jax.Array


def test_a_clips_maps_are_those_of_its_inversion():
    config = ConfigDict(
        dict(
            sample=t2i.get_config("tiny").sample.to_dict() | dict(num_steps=5, threshold="none"),
            data=dict(num_frames=3, overlap=1),
            edit=dict(alignment="none", self_replace_steps=0.0, self_blend=False, latent_blend=(), mask="clip")
            | dict(mask_scale="maximum", mask_resolution=4, max_tokens=64, equalizer=(), equalize_added=1.0)
            | dict(inversion_prompt="empty"),
        )
    )
    clip = Clip(np.zeros((5, 4, 4, 3), np.uint8), caption="a frog", masks=np.ones((5, 4, 4), bool))
    maps = heatmaps.of_clip(Clips(), {}, {"space": None}, clip, config, adapter=True)
    times = np.array([10, 20, 30, 40, 50])  # every step of the way up sees the time that it goes to
    assert maps.shape == (5, 4, 4, 2)
    np.testing.assert_allclose(maps[..., 1], (times / 50).mean(), atol=1e-5)
    np.testing.assert_allclose(maps.sum(axis=-1), 1.0, atol=1e-5)
