"""Stable Diffusion in one file, against diffusers' own converters and against the same pipeline as a folder."""

import diffusers
import jax
import numpy as np
import pytest
import torch
import transformers
from diffusers.loaders import single_file_utils as theirs

import contextdiff_jax as cdx
from contextdiff_jax import encoders
from contextdiff_jax.errors import UserError
from contextdiff_jax.formats import single_file
from tests import stable_diffusion_helpers as helpers
from tests.diffusers_helpers import randomised
from tests.formats import original_layout

WIDTHS = (32, 64)
UNET = helpers.UNET | dict(block_out_channels=WIDTHS, norm_num_groups=32, attention_head_dim=8, cross_attention_dim=64)
VAE = helpers.VAE | dict(block_out_channels=(32, 64), norm_num_groups=32)
TEXT = helpers.TEXT | dict(hidden_size=64, num_attention_heads=1)
UNUSED = ("text_projection", "logit_scale")  # of a file that OpenCLIP itself writes


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(pipeline, its folder, its file in the original layout with the tokenizer beside it)."""
    root = tmp_path_factory.mktemp("single")
    pipeline = helpers.save_pipeline(root / "folder", UNET, VAE, TEXT)
    (root / "tokenizer").symlink_to(root / "folder" / "tokenizer")
    parts = {
        "model.diffusion_model.": original_layout.unet(pipeline.unet.state_dict(), 1, (False, True)),
        "first_stage_model.": original_layout.vae(pipeline.vae.state_dict(), 2),
        # As in files that were merged from a whole CLIP: with what the text encoder does not use.
        "cond_stage_model.transformer.": pipeline.text_encoder.state_dict() | {"text_projection.weight": torch.eye(64)},
        "cond_stage_model.": {"logit_scale": torch.ones([])},
    }
    return pipeline, root / "folder", original_layout.save(root / "v1.safetensors", parts), parts


def test_the_file_of_these_tests_is_what_diffusers_converts(saved):
    pipeline, _, _, parts = saved
    file = {f"{prefix}{name}": value for prefix, part in parts.items() for name, value in part.items()}
    unet = theirs.convert_ldm_unet_checkpoint(file, dict(pipeline.unet.config))
    vae = theirs.convert_ldm_vae_checkpoint(file, dict(pipeline.vae.config))
    for converted, model in (unet, pipeline.unet), (vae, pipeline.vae):
        assert converted.keys() == model.state_dict().keys()
        assert all(torch.equal(converted[name], value) for name, value in model.state_dict().items())


def test_one_file_is_the_model_of_the_folder(saved):
    _, folder, file, _ = saved
    with pytest.raises(UserError, match="ema=False: .*leave the ema out"):
        cdx.Pipeline.load(file, ema=False)
    ours, expected = cdx.Pipeline.load(file), cdx.Pipeline.load(folder)
    jax.tree.map(np.testing.assert_array_equal, ours.params, expected.params)
    jax.tree.map(np.testing.assert_array_equal, ours.frozen, expected.frozen)
    np.testing.assert_array_equal(ours.task.schedule.alpha_bar, expected.task.schedule.alpha_bar)
    assert ours.task.parts.prediction == "eps" and ours.task.sample_shape == (64, 64, 4)
    assert ours.task.parts.condition.read(["a frog"]).keys() == expected.task.parts.condition.read(["a frog"]).keys()
    moves = [cdx.samplers.from_scheduler_config(p.task.parts.scheduler, "ddim").moves(7) for p in (ours, expected)]
    np.testing.assert_array_equal(*moves)
    for key in ("block_out_channels", "attention_head_dim", "layers_per_block", "down_block_types", "up_block_types"):
        assert getattr(ours.task.backbone.module.config, key) == getattr(expected.task.backbone.module.config, key), key


def test_open_clip_of_2_x_and_what_its_unet_predicts(saved, tmp_path):
    pipeline, folder, _, parts = saved
    linear = randomised(diffusers.UNet2DConditionModel(**UNET | dict(use_linear_projection=True, attention_head_dim=1)))
    text = randomised(
        transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT | dict(vocab_size=600, hidden_act="gelu"))), 5
    )
    text.save_pretrained(tmp_path / "text")
    second = parts | {
        "model.diffusion_model.": original_layout.unet(linear.state_dict(), 1, (False, True)),
        "cond_stage_model.model.": original_layout.open_clip(text.state_dict(), 2),
    }
    del second["cond_stage_model.transformer."], second["cond_stage_model."]
    file = original_layout.save(tmp_path / "model.safetensors", second)
    assert single_file.version(file) == 2
    read = encoders.load_text_encoder(file / "text_encoder", tokenizer_dir=folder / "tokenizer")
    expected = encoders.load_text_encoder(tmp_path / "text", tokenizer_dir=folder / "tokenizer")
    jax.tree.map(np.testing.assert_array_equal, read.params, expected.params)
    assert read.config.tower == expected.config.tower
    # As diffusers converts one back: the layers that are used and no other, and numbers of the positions.
    back = original_layout.open_clip(text.state_dict(), 2)
    back = {name: value for name, value in back.items() if ".resblocks.2." not in name and name not in UNUSED}
    positions = {"transformer.text_model.embeddings.position_ids": torch.arange(8)[None]}
    second_text = {"cond_stage_model.model.": back | positions}
    converted = original_layout.save(tmp_path / "back.safetensors", second | second_text)
    read = encoders.load_text_encoder(converted / "text_encoder", tokenizer_dir=folder / "tokenizer")
    jax.tree.map(np.testing.assert_array_equal, read.params, expected.params)
    for prefix, name in (("cond_stage_model.model.", "logit_bias"), ("model.diffusion_model.", "stray.weight")):
        other = second | {prefix: second[prefix] | {name: torch.zeros(2)}}
        with pytest.raises(UserError, match=f"unknown tensor '{name}'"):
            original_layout.save(tmp_path / "other.safetensors", other)
            part = "unet" if "diffusion" in prefix else "text_encoder"
            single_file.read_config(tmp_path / "other.safetensors" / part)
    with pytest.raises(UserError, match="nothing says whether it predicts eps.*model.yaml"):
        cdx.Pipeline.load(file)
    (tmp_path / "model.yaml").write_text('params:\n  parameterization: "v"\n')
    assert single_file.scheduler(file)["prediction_type"] == "v_prediction"
    named = original_layout.save(tmp_path / "v2-1_512-ema.safetensors", second)
    assert single_file.scheduler(named)["prediction_type"] == "epsilon"
    merged = original_layout.save(tmp_path / "mybase-768-v.safetensors", second)
    assert single_file.scheduler(merged)["prediction_type"] == "v_prediction"
    told = original_layout.save(tmp_path / "told.safetensors", second, {"modelspec.prediction_type": "v"})
    assert single_file.scheduler(told)["prediction_type"] == "v_prediction"
    with pytest.raises(UserError, match="holds no tokenizer.*hf download"):
        single_file.tokenizer_folder(told)


def test_other_single_files_are_named(tmp_path):
    lora = original_layout.save(tmp_path / "lora.safetensors", {"unet.": {"x.lora_A.weight": torch.zeros(1)}})
    sdxl = original_layout.save(tmp_path / "xl.safetensors", {"conditioner.": {"x.weight": torch.zeros(1)}})
    vae = original_layout.save(tmp_path / "vae.safetensors", {"first_stage_model.": {"x.weight": torch.zeros(1)}})
    (tmp_path / "model.ckpt").write_bytes(b"x")
    for file, words in {
        lora: "holds a LoRA.*load_lora",
        sdxl: "SDXL",
        vae: "no whole Stable Diffusion.*no unet, text_encoder",
        tmp_path / "model.ckpt": "kind .ckpt.*runs code",
    }.items():
        with pytest.raises(UserError, match=words):
            cdx.Pipeline.load(file)
