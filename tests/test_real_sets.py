"""The presets of real data sets: from the set's own files to a training and its evaluation, all of it small."""

import itertools
import json

import diffusers
import numpy as np
import pytest

from configs import cifar10_nll, class2img, layout2img
from contextdiff_jax import command_line
from contextdiff_jax import config as config_lib
from contextdiff_jax.data.fashion import CLASSES
from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate import class_judge
from contextdiff_jax.files import write_json
from tests.diffusers_helpers import VQ_SIZES, randomised
from tests.set_files import WNIDS, write_coco, write_fashion, write_imagenet

SHORT = {
    "data.batch_size": 4,
    "adapter.depth": 1,
    "adapter.width": 16,
    "adapter.num_heads": 2,
    "model.num_blocks": 1,
    "optim.warmup_steps": 1,
    "train.num_steps": 2,
    "train.preview_every": 0,
    "train.log_every": 1,
    "eval.num_samples": 4,
    "sample.num_steps": 2,
    "sample.batch_size": 4,
    "condition.width": 16,
    "condition.depth": 1,
}
LATENT = {
    "data.image_size": 16,
    "model.channels": 32,
    "model.multipliers": (1,),
    "model.cross_attention_levels": (0,),
    "model.remat": False,
    "adapter.features": "patches",  # the linear map to colours for a CLIP is tested with Stable Diffusion
    "adapter.patch_size": 4,
}

ONE_LEVEL = {
    "model.channels": 16,
    "model.head_dim": 16,
    "model.multipliers": (1,),
    "model.self_attention_levels": (0,),
    "model.cross_attention_levels": (0,),
}


def short(config, path, changes):
    config.data.path = str(path)
    config.update_from_flattened_dict(SHORT | changes)
    return config


def run(config, workdir, *modes):
    for mode in modes:
        command_line.run(mode, config, command_line.Options(workdir=str(workdir)))
    return json.loads((workdir / "eval.json").read_text())


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vq")
    randomised(diffusers.VQModel(**VQ_SIZES)).save_pretrained(folder / "vqvae")
    return folder


@pytest.mark.slow
def test_imagenet_from_class_subfolders(autoencoder, tmp_path):
    write_imagenet(tmp_path / "train")
    latent = LATENT | {"model.pretrained": str(autoencoder), "space.latents": str(tmp_path / "latents")}
    config = short(class2img.get_config("imagenet"), tmp_path / "train", latent)
    figures = run(config, tmp_path / "run", "encode", "train")  # which ends in the evaluation
    assert figures["asked_for"] == {"split": "train", "n": 4, "of": 8} and figures["step"] == 2
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert tuple(config["data"]["class_names"]) == WNIDS


@pytest.mark.slow  # layouts are trained and judged in test_class_and_layout, the files read in data/test_coco
def test_coco_from_its_annotations(autoencoder, tmp_path):
    write_coco(tmp_path, whole=(7, 10, 11, 12))
    latent = LATENT | {"model.pretrained": str(autoencoder), "space.latents": str(tmp_path / "latents")}
    # The adapter under layouts is tested on embedded pairs
    changes = latent | {"condition.token_grid": 4, "condition.map_channels": 4, "adapter.enabled": False}
    config = short(layout2img.get_config("coco"), tmp_path, changes)
    figures = run(config, tmp_path / "run", "encode", "train")
    assert figures["asked_for"] == {"split": "val", "n": 4, "of": 4} and figures["step"] == 2
    assert (tmp_path / "run" / "report.png").is_file()


@pytest.mark.slow  # classes are trained and judged in test_class_and_layout, the classifier below
def test_fashion_mnist_is_judged_by_a_classifier_of_its_own(tmp_path, monkeypatch, capsys):
    write_fashion(tmp_path, monkeypatch)
    config = short(class2img.get_config("fashion"), tmp_path, ONE_LEVEL | {"eval.judge_steps": 2})
    rows = run(config, tmp_path / "run", "train")["alignment"]
    assert rows["classes, adapter on"]["n"] == rows["classes, adapter off"]["n"] == 4
    assert rows["ceiling: real images"].items() >= {"n": 4, "split": "test"}.items() and rows["chance"]["object"] == 0.1
    assert "training the judge" in capsys.readouterr().out
    class_judge.judge_of(config, tmp_path / "run" / "judge")
    assert "training the judge" not in capsys.readouterr().out  # it is kept
    config.eval.recogniser = str(tmp_path)
    with pytest.raises(UserError, match="holds no judge; give the folder"):
        class_judge.judge_of(config, tmp_path / "run" / "judge")


@pytest.mark.slow
def test_fashion_mnist_has_bits_per_dimension(tmp_path, monkeypatch):
    write_fashion(tmp_path, monkeypatch)
    changes = ONE_LEVEL | {"eval.judge_steps": 0, "process.num_timesteps": 2, "adapter.enabled": True}  # 2 steps drawn
    config = short(cifar10_nll.get_config("fashion_short"), tmp_path, changes)
    bits = run(config, tmp_path / "run", "train")["bits_per_dim"]
    assert bits["adapter on"]["images"] == 4 and np.isfinite(bits["adapter off"]["mean"])


def test_the_classifier_learns_is_kept_and_refuses_other_images(tmp_path):
    config = cifar10_nll.get_config("digits")
    config.eval.judge_steps = 60
    judge = class_judge.judge_of(config, tmp_path / "judge")
    source = class_judge.data.source(config.data, "test")
    images = np.stack([source[i]["image"] for i in range(len(source))])
    labels = [source[i]["label"] for i in range(len(source))]
    right = judge.predict(class_judge.as_float(images, source.levels)) == labels
    assert right.mean() > 0.8
    again = class_judge.read(tmp_path / "judge")
    np.testing.assert_array_equal(again.predict(images[:5]), judge.predict(images[:5]))
    about = tmp_path / "judge" / "config.json"
    saved = json.loads(about.read_text())
    assert saved["steps"] == 60 and saved["data"] == class_judge.data.source(config.data, "train").identity
    config.eval.update(judge_steps=70, recogniser=str(tmp_path / "judge"))
    with pytest.raises(UserError, match="had 60 steps on .*judge_steps and config.data ask for 70"):
        class_judge.judge_of(config, tmp_path / "none")
    config.eval.update(judge_steps=2, recogniser="")
    assert class_judge.judge_of(config, tmp_path / "judge").trained["steps"] == 2, "trained anew"
    for key, value in itertools.product(saved, (None, -1, "", [[]], {}, [3])):
        about.write_text(json.dumps(saved | {key: value}))
        if (key, value) != ("data", ""):
            with pytest.raises(UserError, match="judge"):
                class_judge.read(tmp_path / "judge")
    write_json({key: saved[key] for key in ("classes", "shape")}, about)
    assert not class_judge.judge_of(config, tmp_path / "judge").trained  # of an older version
    class_judge.write(class_judge.ClassJudge(CLASSES, judge.shape, judge.params), tmp_path / "other")
    with pytest.raises(UserError, match="of other classes or images"):
        class_judge.judge_of(config, tmp_path / "other")
    (tmp_path / "judge" / "model.safetensors").write_bytes(b"?")
    with pytest.raises(UserError, match="cannot be read .*; delete it"):
        class_judge.judge_of(config, tmp_path / "judge")


@pytest.mark.parametrize(
    "make, preset",
    [(class2img, "fashion"), (class2img, "imagenet"), (class2img, "folder"), (layout2img, "coco")]
    + [(cifar10_nll, "fashion"), (cifar10_nll, "fashion_short")],
)
def test_presets_pass_the_checks_at_full_size(make, preset):
    config = make.get_config(preset)
    if config.space.kind == "latents":
        config.model.pretrained = "autoencoder"
    config_lib.check(config)
    assert config_lib.leaves(config).keys() == config_lib.leaves(make.get_config()).keys()
