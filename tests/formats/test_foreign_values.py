"""Values in other libraries' files: read with their meaning, ignored where they have none here, or refused."""

import json

import pytest

import contextdiff_jax as cdx
from contextdiff_jax.encoders import ASSETS, load_clip
from contextdiff_jax.encoders.clip_config import CLIPTextConfig
from contextdiff_jax.encoders.t5 import T5Config
from contextdiff_jax.errors import UserError
from contextdiff_jax.formats import hub, tensor_files
from contextdiff_jax.formats.pretrained import read_config, stored_tensors
from contextdiff_jax.formats.tokenizers import load_tokenizer, trained_length
from contextdiff_jax.models.sd_config import UNetConfig, sample_side
from contextdiff_jax.pipeline.loading import stable_diffusion_config
from contextdiff_jax.samplers import from_scheduler_config
from contextdiff_jax.samplers.scheduler_config import as_stable_diffusion

MINI = ASSETS / "clip_mini"


@pytest.mark.parametrize(
    "config, side",
    [
        (dict(sample_size=96, _diffusers_version="0.10.0"), 96),
        (dict(sample_size=32, _diffusers_version="0.6.0"), 64),
        (dict(sample_size=32), 32),
        (dict(sample_size=32, _diffusers_version="0.9.0"), 32),
        (dict(sample_size=32, _diffusers_version="0.35.0.dev0"), 32),
        (dict(sample_size=[48, 48], _diffusers_version="0.6.0"), 48),
    ],
)
def test_sides_of_the_latents_as_the_pipeline_takes_them(config, side):
    assert sample_side(config) == side


@pytest.mark.parametrize("size", [None, [8, 16], "64", 0, True, [], 6.5])
def test_a_size_that_is_no_side_of_a_square_is_named(size):
    with pytest.raises(UserError, match="sample_size="):
        sample_side(dict(sample_size=size))


def test_a_value_for_each_level_where_all_are_the_same():
    config = UNetConfig.from_dict(
        dict(layers_per_block=[2] * 4, cross_attention_dim=[768] * 4, only_cross_attention=[False] * 4, dropout=0.1)
    )
    assert (config.layers_per_block, config.cross_attention_dim) == (2, 768)
    for change in dict(layers_per_block=[1, 2, 2, 2]), dict(only_cross_attention=[True] * 4):
        with pytest.raises(UserError, match=next(iter(change))):
            UNetConfig.from_dict(change)


@pytest.mark.parametrize(
    "read, change",
    [
        (T5Config.from_dict, dict(d_model=None)),
        (T5Config.from_dict, dict(num_layers="6")),
        (T5Config.from_dict, dict(layer_norm_epsilon=[1e-6])),
        (T5Config.from_dict, dict(feed_forward_proj=["relu"])),
        (CLIPTextConfig.from_dict, dict(hidden_size=None)),
        (CLIPTextConfig.from_dict, dict(num_attention_heads=0)),
        (CLIPTextConfig.from_dict, dict(vocab_size="many")),
        (CLIPTextConfig.from_dict, dict(hidden_act=1)),
    ],
)
def test_sizes_of_the_wrong_kind_are_one_line(read, change):
    key = next(iter(change))
    with pytest.raises(UserError, match=f"{key}=.*accepted") as error:
        read(dict(model_type="t5") | change)
    assert "\n" not in str(error.value)


def test_the_pipeline_s_own_rules_for_a_scheduler_s_file():
    file = {"_class_name": "DDIMScheduler", "steps_offset": 0, "clip_sample": True, "clip_sample_range": 4.0}
    with pytest.raises(UserError, match="clip_sample_range"):
        from_scheduler_config(file)
    read = from_scheduler_config(as_stable_diffusion(file))
    assert (read.steps_offset, read.threshold, read.options(5)["clip"]) == (1, None, False)
    clipped = from_scheduler_config(as_stable_diffusion(file | {"thresholding": True}))
    assert clipped.options(5)["clip"] and clipped.threshold == "static"


def test_image_normalisation_of_another_kind(tmp_path):
    for file in MINI.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(dict(do_normalize=False, image_mean=[1, 1, 1], size=9, crop_size=None)))
    clip = load_clip(tmp_path)
    assert (clip.mean, clip.std) == ((0.0,) * 3, (1.0,) * 3)
    values = dict(rescale_factor=1.0), dict(image_std=[1, 0, 1]), dict(image_mean="grey"), dict(do_rescale=None), [1]
    for wrong in values:
        path.write_text(json.dumps(wrong))
        with pytest.raises(UserError, match="preprocessor_config.json"):
            load_clip(tmp_path)


def test_the_side_on_which_a_tokenizer_pads_and_cuts(tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((MINI / name).read_bytes())
    right = load_tokenizer(tmp_path, 8)(["a frog"])
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | dict(padding_side="left")))
    left = load_tokenizer(tmp_path, 8)(["a frog"])
    count = int(right["token_mask"].sum())
    assert (left["tokens"][0, -count:] == right["tokens"][0, :count]).all() and not left["token_mask"][0, 0]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | dict(padding_side="both")))
    with pytest.raises(UserError, match="padding_side='both'.*left or right"):
        load_tokenizer(tmp_path, 8)


@pytest.mark.parametrize("said, tokens", [(12, 12), (77, 32), (int(1e30), 32), (1e30, 32), (None, 32)])
def test_a_clip_s_texts_are_as_long_as_its_tokenizer_says_and_no_longer_than_it_has_positions(tmp_path, said, tokens):
    config = json.loads((MINI / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer.json").write_bytes((MINI / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | dict(model_max_length=said)))
    clip = load_clip("builtin:clip_mini", tokenizer_dir=tmp_path, weights=False)
    assert clip.tokenize(["a frog on a red background and " * 20])["tokens"].shape == (1, tokens)


@pytest.mark.parametrize("said", ["77", 0, [77]])
def test_a_length_of_another_kind_is_one_line(tmp_path, said):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(dict(model_max_length=said)))
    with pytest.raises(UserError, match="model_max_length=.*a positive integer or null"):
        trained_length(tmp_path)


@pytest.mark.parametrize("said", [5, {}, {"content": 3}, ["<pad>"]])
def test_a_padding_token_of_another_kind_is_one_line(tmp_path, said):
    (tmp_path / "tokenizer.json").write_bytes((MINI / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(dict(pad_token=said)))
    with pytest.raises(UserError, match="pad_token=.*accepted: a token"):
        load_tokenizer(tmp_path, 8)


@pytest.mark.parametrize("widths", [128, None, ["a"]])
def test_widths_of_an_autoencoder_of_another_kind_are_one_line(tmp_path, widths):
    for part, config in dict(unet=dict(sample_size=8), vae=dict(block_out_channels=widths)).items():
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="block_out_channels=.*a list of positive integers"):
        stable_diffusion_config(tmp_path)


def test_weights_that_may_not_be_read_are_one_line(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes((MINI / "model.safetensors").read_bytes())

    def refuse(file, *mode):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tensor_files, "open", refuse, raising=False)
    with pytest.raises(UserError, match="model.safetensors cannot be read .Permission denied.; make it a readable"):
        stored_tensors(tmp_path)


def test_hub_names_are_found_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    with pytest.raises(UserError, match="hf download openai/clip-mini"):
        load_clip("openai/clip-mini")
    model = tmp_path / "home" / "hub" / "models--openai--clip-mini"
    for state in ("aa", "bb"):
        (model / "snapshots" / state).mkdir(parents=True)
    with pytest.raises(UserError, match="2 states of 'openai/clip-mini'"):
        hub.local("openai/clip-mini")
    for file in MINI.iterdir():
        (model / "snapshots" / "bb" / file.name).symlink_to(file)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("bb")
    assert load_clip("openai/clip-mini").tokenizer_dir == model / "snapshots" / "bb"
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match=f"cache .{tmp_path / 'elsewhere'}.*hf download openai/clip-mini"):
        cdx.Pipeline.load("openai/clip-mini")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.local("~/home") == tmp_path / "home"


def test_what_a_cached_model_lacks_is_named_with_the_command_that_gets_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    state = tmp_path / "models--me--model" / "snapshots" / "aa"
    state.mkdir(parents=True)
    folder = hub.local("me/model")
    get, shard = "download it: hf download me/model", "model-00001-of-00001.safetensors"
    with pytest.raises(UserError, match=f"has no config.json; {get}"):
        read_config(folder)
    (state / "config.json").write_text("{}")
    (state / "model.safetensors").symlink_to(tmp_path / "blobs" / "gone")
    assert read_config(folder) == {}, "enough for a plan"
    with pytest.raises(UserError, match=f"has no model.safetensors .*; {get}"):
        stored_tensors(folder)
    (state / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(UserError, match=f"lacks {shard}, named in model.safetensors.index.json; {get}"):
        stored_tensors(folder)
    (state / "unet").mkdir()
    (state / "config.json").unlink()
    with pytest.raises(UserError, match=f"vae' does not exist; {get}"):
        read_config(folder / "vae")
    with pytest.raises(UserError, match=f"has unet but no model_index.json, as a pipeline has; {get}"):
        cdx.Pipeline.load("me/model")


def test_what_is_no_pipeline_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = tmp_path / "sd"
    (whole / "unet").mkdir(parents=True)
    (whole / "unet" / "config.json").write_text(json.dumps(dict(_class_name="UNet2DConditionModel")))
    index = dict(_class_name="StableDiffusionXLPipeline", unet=[], vae=[], text_encoder=[])
    untrained = "there is no run at runs/demo; train it first, .* --workdir=runs/demo .* builtin:demo"
    cases = {"runs/demo": untrained, tmp_path / "nowhere": "there is nothing at", whole: "unet but no model_index.json"}
    for path, words in cases.items():
        with pytest.raises(UserError, match=words):
            cdx.Pipeline.load(path)
    (whole / "model_index.json").write_text(json.dumps(index))
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    cases = {
        whole: "class StableDiffusionXLPipeline",
        whole / "unet": rf"one component of a pipeline \(UNet2DConditionModel\); give the whole: {whole}",
        MINI: r"one model \(clip\)",
        tmp_path / "lora": "holds a LoRA.*load_lora",
        tmp_path / "old": "holds a pickle, model.ckpt, which runs code",
        tmp_path / "run" / "checkpoints": f"is a part of the run {tmp_path / 'run'}; give that",
        tmp_path / "run" / "checkpoints" / "4": f"is a part of the run {tmp_path / 'run'}; give that",
        tmp_path / "notes": "holds notes.txt, and no model; give a run's workdir",
    }
    (tmp_path / "run" / "checkpoints" / "4").mkdir(parents=True)
    for file in ("old/model.ckpt", "run/config.json", "notes/notes.txt"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("{}")
    for path, words in cases.items():
        with pytest.raises(UserError, match=words):
            cdx.Pipeline.load(path)
