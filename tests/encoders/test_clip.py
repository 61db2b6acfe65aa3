"""CLIP in Linen against transformers' CLIPModel."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import torch
from encoder_helpers import SHAPES, relative_error, saved_clip, texts, torch_outputs
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from contextdiff_jax.encoders import Clip, clip, load_clip
from contextdiff_jax.errors import UserError


def outputs(model: Clip, tokens: np.ndarray, pixels: np.ndarray) -> dict[str, jax.Array]:
    """Ours, in the names of `torch_outputs`."""

    @jax.jit
    def run(params, tokens, pixels):
        context = model.encode_text(params, tokens, jnp.ones(tokens.shape, bool))
        hidden, pooled = model.module.apply({"params": params}, pixels, method="encode_image")
        return dict(
            text_tokens=context.tokens, text_pooled=context.pooled, image_tokens=hidden, image_pooled=pooled
        )

    return run(model.params, tokens, pixels)


def pixels_for(shape: str, batch: int = 3) -> np.ndarray:
    size = SHAPES[shape]["image"][0]
    return np.random.default_rng(1).normal(size=(batch, size, size, 3)).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
def test_both_towers_equal_pytorch(tmp_path, shape):
    theirs = torch_outputs(saved_clip(tmp_path, shape), texts(shape), pixels_for(shape))
    ours = outputs(load_clip(tmp_path), texts(shape), pixels_for(shape))
    for name, value in theirs.items():
        chex.assert_shape(ours[name], value.shape)
        assert relative_error(ours[name], value) < 1e-5, name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_equal_pytorch_after_widening(tmp_path, dtype):
    model = saved_clip(tmp_path, dtype=dtype).float()
    theirs = torch_outputs(model, texts("quick_gelu"), pixels_for("quick_gelu"))
    read = load_clip(tmp_path)
    assert {leaf.dtype for leaf in jax.tree.leaves(read.params)} == {np.dtype(np.float32)}
    for name, value in outputs(read, texts("quick_gelu"), pixels_for("quick_gelu")).items():
        assert relative_error(value, theirs[name]) < 1e-5, name


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_computation_stays_near_float32(tmp_path, dtype):
    if dtype == jnp.float16 and jax.default_backend() == "cpu":
        pytest.skip("XLA's CPU has no float16 attention; float16 files are tested above, computed in float32")
    theirs = torch_outputs(saved_clip(tmp_path), texts("quick_gelu"), pixels_for("quick_gelu"))
    ours = outputs(load_clip(tmp_path, dtype), texts("quick_gelu"), pixels_for("quick_gelu"))
    for name, value in ours.items():
        assert value.dtype == dtype
        assert relative_error(value, theirs[name]) < 8 * float(jnp.finfo(dtype).eps), name


def test_layer_norm_is_exact_for_features_far_from_zero():
    """E[x^2] - E[x]^2 in float32 would lose all digits here."""
    x = 3e3 + np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    norm = clip.layer_norm(clip.TowerConfig(64, 64, 1, 1), jnp.float32, None)
    ours = norm.apply(norm.init(jax.random.key(0), x), x)
    theirs = torch.nn.functional.layer_norm(torch.tensor(x, dtype=torch.float64), (64,)).numpy()
    assert relative_error(ours, theirs) < 1e-3


def test_encode_image_gives_patches_without_the_class_token(tmp_path):
    model = saved_clip(tmp_path)
    read = load_clip(tmp_path)
    images = np.random.default_rng(2).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    features = jax.jit(read.encode_image)(read.params, images)
    normalised = ((images + 1) / 2 - np.array(read.mean, np.float32)) / np.array(read.std, np.float32)
    theirs = torch_outputs(model, texts("quick_gelu"), normalised)
    assert features.grid == (4, 4) and features.tokens.shape == (2, 16, 40)
    assert relative_error(features.tokens, theirs["image_tokens"][:, 1:]) < 1e-5
    assert relative_error(features.pooled, theirs["image_pooled"]) < 1e-5


@pytest.mark.parametrize("size", [8, 16, 40])
def test_preprocess_is_pytorchs_antialiased_bicubic(size):
    vision = dict(image_size=16, patch_size=4)
    config = clip.CLIPConfig.from_dict(dict(model_type="clip", vision_config=vision))
    images = np.random.default_rng(3).uniform(-1, 1, (2, size, size, 3)).astype(np.float32)
    ours = clip.preprocess(images, config, jnp.zeros(3), jnp.ones(3))
    theirs = torch.nn.functional.interpolate(
        torch.tensor((images + 1) / 2).permute(0, 3, 1, 2), (16, 16), mode="bicubic", antialias=True
    )
    theirs = theirs.permute(0, 2, 3, 1).numpy()
    # At borders PyTorch repeats the edge when it enlarges, and both renormalise the kernel when they shrink.
    inner = slice(None) if size >= 16 else slice(4, -4)
    np.testing.assert_allclose(ours[:, inner, inner], theirs[:, inner, inner], atol=2e-5)


@pytest.mark.parametrize("height, width", [(47, 90), (33, 47), (91, 60), (20, 30), (32, 32), (47, 93)])
def test_cropped_pictures_are_those_of_the_published_pipeline(height, width):
    images = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    images[0, : height // 2, : width // 2] = 255 * (images[0, : height // 2, : width // 2] > 127)  # overshoots
    ours = np.asarray(clip.cropped(images, 32))
    picture = PIL.Image.fromarray(images[0])
    new = (32, int(32 * height / width)) if width <= height else (int(32 * width / height), 32)
    left, top = (round((side - 32) / 2) for side in new)
    theirs = np.asarray(picture.resize(new, PIL.Image.Resampling.BICUBIC))[top : top + 32, left : left + 32]
    difference = np.abs(ours[0] - theirs)
    assert difference.max() <= 1 and np.mean(difference > 0) < 1e-3  # Pillow's weights have 22 bits
    if width != 93:  # transformers rounds half a pixel down, torchvision to even
        processor = CLIPImageProcessorPil(size=32, crop_size=32, do_normalize=False, do_rescale=False)
        pixels = processor(picture, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        np.testing.assert_array_equal(pixels, theirs)
    squashed = jax.image.resize(images.astype(np.float32), ours.shape, "cubic")
    assert (height, width) == (32, 32) or np.abs(squashed[0] - theirs).max() > 20  # what CMMD is taken of


def test_gradients_reach_the_image(tmp_path):
    saved_clip(tmp_path)
    read = load_clip(tmp_path)
    total = lambda x: read.encode_image(read.params, x).pooled.sum()
    gradient = jax.jit(jax.grad(total))(jnp.zeros((1, 20, 20, 3)))
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def test_text_is_causal(tmp_path):
    saved_clip(tmp_path)
    read = load_clip(tmp_path)
    tokens = texts("quick_gelu")
    changed = tokens.copy()
    changed[:, 8:] = 11
    encode = jax.jit(read.encode_text)
    features = [encode(read.params, t, t > 0).tokens for t in (tokens, changed)]
    np.testing.assert_allclose(features[0][:, :8], features[1][:, :8], atol=1e-6)
    assert np.abs(features[0][:, 8:] - features[1][:, 8:]).max() > 0.1


def test_fresh_model_has_openais_initialisation():
    tower = lambda layers: clip.TowerConfig(64, 256, layers, 4)
    config = clip.CLIPConfig(tower(1), tower(2), 32, 600, 8, 1, 16, 4)
    params = Clip.create(config, jax.random.key(0), "unused").params
    layer = params["vision_model"]["layers_0"]
    stds = {
        "q_proj": (layer["self_attn"]["q_proj"]["kernel"], 64**-0.5),
        "out_proj": (layer["self_attn"]["out_proj"]["kernel"], (64 * 4) ** -0.5),
        "fc1": (layer["mlp"]["fc1"]["kernel"], 128**-0.5),
        "fc2": (layer["mlp"]["fc2"]["kernel"], (64 * 4) ** -0.5),
        "token_embedding": (params["text_model"]["token_embedding"]["embedding"], 0.02),
        "visual_projection": (params["visual_projection"]["kernel"], 64**-0.5),
    }
    for name, (value, std) in stds.items():
        assert value.std() == pytest.approx(std, rel=0.06), name
    assert np.exp(params["logit_scale"]) == pytest.approx(1 / 0.07, rel=1e-3)


def test_old_config_sections_win_and_defaults_are_transformers():
    old = dict(text_config=dict(hidden_size=64), text_config_dict=dict(hidden_size=768))
    read = clip.CLIPConfig.from_dict(dict(model_type="clip") | old | dict(vision_config=None))
    assert read.text.hidden_size == 768
    assert (read.vision.hidden_size, read.patch_size, read.vocab_size) == (768, 32, 49408)
    assert clip.CLIPConfig.from_dict(read.to_dict()) == read


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(model_type="siglip"), "model_type='siglip'"),
        (dict(text_config=dict(hidden_act="relu")), "hidden_act='relu'"),
        (dict(vision_config=dict(hidden_size=50, num_attention_heads=3)), "not divisible by its 3 heads"),
        (dict(vision_config=dict(image_size=30, patch_size=4)), "image_size=30"),
        (dict(text_config=["hidden_size"]), r"text_config=\['hidden_size'\] .*an object"),
        (dict(text_config=dict(eos_token_id=None)), "eos_token_id=None .*the number of a token"),
        (dict(text_config=dict(architectures=5)), "architectures=5 .*a list of names"),
    ],
)
def test_impossible_configs_are_named(change, words):
    with pytest.raises(UserError, match=words):
        clip.CLIPConfig.from_dict(dict(model_type="clip") | change)
