"""DINOv2 against transformers', with random weights saved and read back."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch
import transformers
from encoder_helpers import randomised, relative_error
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

from contextdiff_jax.encoders import dinov2
from contextdiff_jax.errors import UserError

SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, patch_size=14)


def saved(folder, **sizes):
    model = randomised(transformers.Dinov2Model, transformers.Dinov2Config(**SIZES | sizes))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("trained", [224, 322])  # the second has its positions interpolated, as the released ones (518)
def test_class_token_is_transformers(tmp_path, trained):
    model = saved(tmp_path, image_size=trained)
    ours = dinov2.load_dinov2(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    pixels = (images / 255.0 - np.array(dinov2.MEAN)) / np.array(dinov2.STD)
    with torch.no_grad():
        theirs = model(torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32)).last_hidden_state[:, 0]
    assert relative_error(jax.jit(ours.encode_image)(ours.params, images), theirs.numpy()) < 1e-5


def test_pictures_are_squashed_as_the_image_processor_does(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (1, 90, 61, 3), dtype=np.uint8)
    seen = []
    net = lambda config: SimpleNamespace(apply=lambda variables, pixels: seen.append(pixels) or pixels)
    monkeypatch.setattr(dinov2, "Dinov2Net", net)
    dinov2.Dinov2(dinov2.Dinov2Config(), {}).encode_image({}, images)
    size = {"height": dinov2.SIZE, "width": dinov2.SIZE}
    processor = BitImageProcessorPil(
        size=size, do_center_crop=False, resample=3, image_mean=dinov2.MEAN, image_std=dinov2.STD, do_convert_rgb=False
    )
    theirs = processor(images[0], return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    assert np.abs((np.asarray(seen[0]) - theirs) * np.array(dinov2.STD)).max() < 1.1 / 255  # a level


def test_large_model_has_the_released_shape():
    config = dinov2.Dinov2Config(1024, 24, 16, image_size=518)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    shapes = jax.eval_shape(dinov2.Dinov2Net(config).init, jax.random.key(0), image)["params"]
    # Dinov2Model of facebook/dinov2-large has 304,368,640 parameters, 1,024 of them the mask token that is not read.
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 304_368_640 - 1024


def test_names_are_also_the_hubs():
    assert dinov2.tensor_names("layer_3/query/kernel") == (
        "encoder.layer.3.attention.attention.query.weight",
        "encoder.layer.3.attention.q_proj.weight",
    )
    assert dinov2.tensor_names("layer_3/out/bias")[0] == "encoder.layer.3.attention.output.dense.bias"
    assert dinov2.tensor_names("layer_0/scale1") == ("encoder.layer.0.layer_scale1.lambda1",)


@pytest.mark.parametrize(
    "config, words",
    [
        (dict(model_type="vit"), "model_type='vit'"),
        (dict(model_type="dinov2", use_swiglu_ffn=True), "giant"),
        (dict(model_type="dinov2", num_attention_heads=0), "num_attention_heads=0 .*positive integer"),
        (dict(model_type="dinov2", hidden_size="768"), "hidden_size='768' .*positive integer"),
        (dict(model_type="dinov2", num_attention_heads=5), "hidden_size=768 .*multiple of num_attention_heads=5"),
    ],
)
def test_other_models_are_refused(config, words):
    with pytest.raises(UserError, match=words):
        dinov2.Dinov2Config.from_dict(config)
