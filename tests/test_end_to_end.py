"""The whole path on the smallest model: train, resume, sample, evaluate, bench, load in Python."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import contextdiff_jax as cdx
from contextdiff_jax import command_line, data
from contextdiff_jax import task as task_lib
from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate import distances
from contextdiff_jax.evaluate.picture_sets import PictureSet
from tests import small_models


def smallest(num_steps=4):
    """The shared model, for a few steps."""
    config = small_models.text_to_image()
    config.train.num_steps = num_steps
    config.train.checkpoint_every = 2
    config.optim.schedule = "constant"
    config.eval.bpd_always = True
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained tiny run: its config and its workdir."""
    workdir = tmp_path_factory.mktemp("run")
    config = smallest()
    config.train.preview_every = 4
    command_line.run("train", config, command_line.Options(workdir=str(workdir)))
    return config, workdir


@pytest.fixture(autouse=True)
def few_renders(monkeypatch):
    monkeypatch.setattr(distances, "REFERENCE", 40)


@pytest.fixture(scope="module")
def loaded(run):
    return cdx.Pipeline.load(run[1])


def test_training_leaves_checkpoints_metrics_config_and_a_preview(run):
    config, workdir = run
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == config.train.num_steps and np.isfinite(lines[-1]["loss"])
    assert json.loads((workdir / "config.json").read_text())["preset"] == "tiny"
    assert (workdir / "checkpoints" / "4").is_dir()
    assert Image.open(next((workdir / "previews").glob("*.png"))).width > 100


def test_the_same_command_again_has_nothing_left_to_do(run, capsys):
    config, workdir = run
    command_line.run("train", config, command_line.Options(workdir=str(workdir)))
    assert "continuing from the checkpoint of step 4" in capsys.readouterr().err


def test_another_config_in_the_workdir_is_refused(run):
    _, workdir = run
    other = smallest()
    other.optim.lr = 0.5
    with pytest.raises(UserError, match=r"optim\.lr: saved 0\.001, now 0\.5"):
        command_line.run("train", other, command_line.Options(workdir=str(workdir)))


def test_sample_writes_every_picture_and_a_captioned_grid(run, tmp_path, capsys):
    config, workdir = run
    prompts = ("a frog on a blue background", "a star on a red background", "etwas völlig anderes 🐻")
    options = command_line.Options(workdir=str(workdir), prompts=prompts, out=str(tmp_path / "out"))
    command_line.run("sample", config, options)
    drawn = ["0000.png", "0001.png", "0002.png", "grid.png", "metadata.jsonl", "sample.json"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == drawn
    assert PictureSet(tmp_path / "out", captions=tmp_path / "out").captions == list(prompts)
    how = json.loads((tmp_path / "out" / "sample.json").read_text())
    sampled = config.sample.to_dict() | {"interval": [0, 1]}
    assert how == {"model": str(workdir), "step": 4, "seed": 0, "sample": sampled}
    assert Image.open(tmp_path / "out" / "0000.png").size == (16, 16)
    assert str(tmp_path / "out" / "grid.png") in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--out=.* holds 0000.png of an earlier call, which stays"):
        command_line.run("sample", config, options)


def test_eval_writes_figures_and_report(run, capsys):
    _, workdir = run
    command_line.run("eval", None, command_line.Options(workdir=str(workdir)))  # its own config will do
    figures = json.loads((workdir / "eval.json").read_text())
    rows = figures["alignment"]
    assert {"seen combinations, adapter on", "unseen combinations, adapter off", "chance"} <= set(rows)
    assert rows["ceiling: real renders, unseen"]["both"] > 0.9
    assert rows["chance"]["both"] == pytest.approx(1 / 72)
    on, off = figures["bits_per_dim"]["adapter on"], figures["bits_per_dim"]["adapter off"]
    assert on["mean"] == pytest.approx(on["prior"] + on["reconstruction"] + on["diffusion"], rel=1e-4)
    assert 0 < off["mean"] < np.inf and on["stderr"] > 0
    assert Image.open(workdir / "report.png").width >= 1000
    assert "chance" in capsys.readouterr().out


def test_pipeline_in_python(loaded):
    pipe = loaded
    images = pipe.sample("a bear on a white background", key=3, steps=2, guidance=1.5, sampler="dpmpp_2m")
    assert [image.size for image in images] == [(16, 16)]
    prompts = [f"a {name} on a red background" for name in ("bear", "fish", "star", "frog", "mushroom")]
    together = pipe.sample_arrays(prompts, key=jax.random.key(7), steps=3)
    alone = pipe.sample_arrays(prompts[:1], key=7, steps=3)
    np.testing.assert_allclose(together[:1], alone, atol=1e-4)
    assert np.abs(together).max() <= 1


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(prompts=[]), "no prompt"),
        (dict(prompts=["a cat", "  "]), "prompt 2 of 2 is empty"),
        (dict(prompts="a cat", steps=51), "at most config.process.num_timesteps=50"),
        (dict(prompts="a cat", sampler="euler"), "euler"),
        (dict(prompts="a cat", colour="red"), "colour"),
        (dict(prompts="a cat", eta="much"), "eta"),
    ],
)
def test_pipeline_refuses_what_cannot_work(loaded, options, words):
    with pytest.raises(UserError, match=words):
        loaded.sample(**options)


def test_loading_what_is_not_there(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        cdx.Pipeline.load(tmp_path / "nowhere")


def test_training_starts_exactly_at_plain_diffusion():
    """Zero-initialised adapter: same loss, same gradient of the denoiser, to the bit, as with no adapter at all."""
    config = smallest()
    config.adapter.features = "patches"
    plain_config = config.copy_and_resolve_references()
    plain_config.adapter.enabled = False
    task, plain = task_lib.build(config), task_lib.build(plain_config)
    params = jax.jit(task.init)(jax.random.key(0))
    # The U-Net's own output starts at zero too; off zero, x0_hat depends on x_t and so on the shift.
    params["denoiser"] = jax.tree.map(lambda p: p + 0.02, params["denoiser"])
    batch = next(task.train_iterator(0, 1))
    batch = task.draw({k: jax.numpy.asarray(v) for k, v in batch.items()}, jax.random.key(1))
    denoiser = {"denoiser": params["denoiser"]}

    def value(task, params):
        loss = lambda p: task.loss(p, task.frozen, batch, jax.random.key(2))[0].mean()
        return jax.jit(jax.value_and_grad(loss))(params)

    loss, grads = value(task, params)
    plain_loss, plain_grads = value(plain, denoiser)
    np.testing.assert_allclose(loss, plain_loss, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), grads["denoiser"], plain_grads["denoiser"]
    )
    moved = jax.tree.reduce(max, jax.tree.map(lambda g: float(abs(g).max()), grads["adapter"]))
    assert moved > 0, "the adapter must receive a gradient from the first step on"


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["posterior", "nelbo"])
def test_other_objectives_train(objective, tmp_path):
    config = smallest(2)
    config.loss.objective = objective
    config.adapter.track_lipschitz = True
    command_line.run("train", config, command_line.Options(workdir=str(tmp_path)))
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert np.isfinite(last["loss"])
    assert 0 <= last["lipschitz_max"] < np.inf
    if objective == "nelbo":
        assert last["prior"] + last["reconstruction"] + last["diffusion"] == pytest.approx(last["loss"], rel=1e-4)


@pytest.mark.slow
def test_a_folder_of_captioned_images_trains_and_samples(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    source = data.OpenMojiSource("demo", "train", 24)
    for i in range(40):
        Image.fromarray(source[i]["image"]).save(folder / f"{i:03d}.png")
        (folder / f"{i:03d}.txt").write_text(source[i]["caption"])
    config = smallest(2)
    config.data.source, config.data.path, config.data.preset = "folder", str(folder), ""
    config.eval.bpd_images = 0
    options = command_line.Options(workdir=str(tmp_path / "run"))
    command_line.run("train", config, options)
    command_line.run("eval", config, options)
    assert (tmp_path / "run" / "report.png").exists()


@pytest.mark.slow
def test_bench_compares_with_and_without_adapter(tmp_path):
    command_line.run("bench", smallest(), command_line.Options(workdir=str(tmp_path)))
    figures = json.loads((tmp_path / "bench.json").read_text())
    assert figures["ratio_step_time"] > 0.5
    assert figures["with adapter"]["gigaflops_per_step"] > figures["without adapter"]["gigaflops_per_step"]
