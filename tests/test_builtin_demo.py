"""What launch/builtin_demo.sh does, in miniature: autoencoder, latents, a U-Net from random weights, export, load."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import contextdiff_jax as cdx
from configs import autoencoder, t2i
from contextdiff_jax import command_line, data
from contextdiff_jax import task as task_lib
from contextdiff_jax.encoders.vae import load_vae
from contextdiff_jax.errors import UserError
from contextdiff_jax.training.state import stream

STARTS = Path(__file__).parents[1] / "configs" / "builtin_demo"


def run(mode, config, workdir, **options):
    command_line.run(mode, config, command_line.Options(workdir=str(workdir), **options))


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """What the U-Net starts from: an autoencoder as it starts, a config without weights, a scheduler."""
    root = tmp_path_factory.mktemp("builtin")
    folder = shutil.copytree(STARTS, root / "start")
    unet = json.loads((folder / "unet" / "config.json").read_text())
    small = dict(block_out_channels=[16], attention_head_dim=1, norm_num_groups=8)
    small |= dict(down_block_types=["DownBlock2D"], up_block_types=["CrossAttnUpBlock2D"])
    (folder / "unet" / "config.json").write_text(json.dumps(unet | small))
    task = task_lib.build(autoencoder.get_config("tiny"))
    task.export(jax.jit(task.init)(jax.random.key(0)), folder / "vae")
    return root


def config_of(root):
    config = t2i.get_config("builtin")
    config.model.pretrained, config.space.latents = str(root / "start"), str(root / "latents")
    config.space.max_latents = 16
    config.data.image_size, config.data.batch_size = 16, 8
    config.adapter.depth, config.adapter.width, config.adapter.num_heads = 1, 16, 2
    config.train.update(num_steps=2, checkpoint_every=2, log_every=1, preview_every=0)
    config.optim.warmup_steps = 1
    config.sample.num_steps, config.sample.batch_size = 2, 2
    return config


@pytest.fixture(scope="module")
def trained(start):
    config = config_of(start)
    run("encode", config, start / "run")
    run("train", config, start / "run")
    run("export", config, start / "run", out=str(start / "export"), half=True)
    return config


def test_the_autoencoders_loss_is_squared_error_and_divergence():
    config = autoencoder.get_config("tiny")
    task = task_lib.build(config)
    params = jax.jit(task.init)(jax.random.key(0))
    images = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    batch = task.draw({"image": images}, jax.random.key(1))
    loss, metrics = task.loss(params, {}, batch, jax.random.key(2))
    mean, std = (np.asarray(x, np.float64) for x in task.vae.moments(params, images))
    decoded = np.asarray(task.vae.decode(params, mean + std * batch["z_eps"]), np.float64)
    error = ((decoded - images) ** 2).mean((1, 2, 3))
    divergence = (0.5 * (mean**2 + std**2 - 1 - np.log(std**2))).mean((1, 2, 3))
    np.testing.assert_allclose(loss, error + config.autoencoder.kl_weight * divergence, rtol=1e-4)
    np.testing.assert_allclose(metrics["psnr"], -10 * np.log10(error / 4), rtol=1e-4)


def test_the_exported_scale_gives_latents_of_unit_variance(start):
    vae = load_vae(start / "start" / "vae")
    source = data.OpenMojiSource("demo", "test", 16)
    images = np.stack([source[i]["image"] for i in range(256)]).astype(np.float32) / 127.5 - 1
    assert np.asarray(vae.encode(vae.params, images)).std() == pytest.approx(1.0, rel=0.02)


def test_the_autoencoder_refuses_a_size_that_it_cannot_halve():
    config = autoencoder.get_config("tiny")
    config.data.image_size = 17
    with pytest.raises(UserError, match="17 is not divisible by 2"):
        task_lib.build(config)


@pytest.mark.slow
def test_only_so_many_latents_are_encoded(start, trained):
    contents = json.loads((start / "latents" / "latents.json").read_text())
    assert contents["splits"] == {"train": 16, "test": 16}


@pytest.mark.slow
def test_a_random_start_reads_no_weights_and_an_export_of_it_does(start, trained):
    """The folder has none to read; what was exported is what was trained, in half precision."""
    assert not list((start / "start" / "unet").glob("*.safetensors"))
    task = task_lib.build(trained)
    fresh = task.init(stream(trained.seed, "init"))["denoiser"]
    ran = cdx.Pipeline.load(start / "run").params["denoiser"]
    read = cdx.Pipeline.load(start / "export")
    moved = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()), fresh, ran)
    assert 1e-4 < max(jax.tree.leaves(moved)) < 0.1  # two steps away from where this seed starts
    for a, b in zip(*map(jax.tree.leaves, (ran, read.params["denoiser"])), strict=True):
        np.testing.assert_array_equal(np.asarray(a).astype(np.float16), np.asarray(b).astype(np.float16))
    assert not (start / "export" / "orbax").exists() and not read.config.model.random_start
    picture = read.sample("a frog on a red background")
    assert picture[0].size == (16, 16)
    trajectory = read.invert(picture, "a frog on a red background", steps=2)  # on the schedule of the folder
    assert trajectory.shape == (3, 1, *read.task.sample_shape) and np.isfinite(trajectory).all()


@pytest.mark.slow
def test_without_a_config_a_models_own_counts(start, trained, tmp_path, capsys):
    out = tmp_path / "out"
    run("sample", None, start / "export", prompts=("a frog on a red background",), out=str(out))
    assert (out / "0000.png").is_file() and "1 pictures" in capsys.readouterr().out


def test_a_model_that_does_not_ship_is_named():
    with pytest.raises(UserError, match="'builtin:nothing' does not ship; shipped: builtin:demo$"):
        cdx.Pipeline.load("builtin:nothing")
