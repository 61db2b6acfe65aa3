"""The T5 encoder in Linen against transformers' T5EncoderModel."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from encoder_helpers import T5_SHAPES, relative_error, t5_tokens, torch_t5, torch_t5_tokens
from safetensors.torch import load_file, save_file
from transformers.models.t5.modeling_t5 import T5Attention

from contextdiff_jax.encoders import load_text_encoder, t5
from contextdiff_jax.errors import UserError

WEIGHTS = "model.safetensors"


def encoded(folder, **how):
    """Our Context of `t5_tokens`."""
    model = load_text_encoder(folder, **how)
    return jax.jit(model.encode_text)(model.params, *t5_tokens())


@pytest.mark.parametrize("shape", T5_SHAPES)
def test_encoder_equals_pytorch_and_its_export_too(tmp_path, shape):
    original = torch_t5(shape)
    original.save_pretrained(tmp_path / "theirs")
    theirs = torch_t5_tokens(original, *t5_tokens())
    read = load_text_encoder(tmp_path / "theirs")
    ours = jax.jit(read.encode_text)(read.params, *t5_tokens())
    chex.assert_shape(ours.tokens, theirs.shape)
    assert relative_error(ours.tokens, theirs) < 1e-5
    mask = t5_tokens()[1]
    assert relative_error(ours.pooled[1], theirs[1, mask[1]].mean(0)) < 1e-5

    read.save(tmp_path / "ours", read.params)
    again, report = transformers.T5EncoderModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    np.testing.assert_array_equal(torch_t5_tokens(again.eval(), *t5_tokens()), theirs)
    configs = [m.config.to_dict() for m in (original, again)]
    for config in configs:  # of the decoder, or without a meaning for the values of a layer
        for key in ("decoder_start_token_id", "num_decoder_layers", "transformers_version", "_name_or_path"):
            config.pop(key, None)
    assert configs[0] == configs[1]


@pytest.mark.parametrize("kind", [transformers.T5Model, transformers.T5ForConditionalGeneration])
def test_whole_models_are_read_without_their_decoder(tmp_path, kind):
    model = torch_t5("v1.1", kind)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    assert any(name.startswith("decoder.") for name in tensors)
    tensors["lm_head.weight"] = torch.zeros(99, 40)  # untied in version 1.1
    save_file(tensors, tmp_path / WEIGHTS, metadata={"format": "pt"})
    assert relative_error(encoded(tmp_path).tokens, torch_t5_tokens(model.encoder, *t5_tokens())) < 1e-5


@pytest.mark.parametrize("both", [True, False])
def test_the_embedding_under_its_other_name(tmp_path, both):
    model = torch_t5()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].clone()
    if not both:
        del tensors["shared.weight"]
    save_file(tensors, tmp_path / WEIGHTS, metadata={"format": "pt"})
    assert relative_error(encoded(tmp_path).tokens, torch_t5_tokens(model, *t5_tokens())) < 1e-5


def test_padding_changes_nothing(tmp_path):
    torch_t5().save_pretrained(tmp_path)
    model = load_text_encoder(tmp_path)
    tokens, mask = t5_tokens()
    encode = jax.jit(model.encode_text)
    other = encode(model.params, np.where(mask, tokens, 5), mask)
    first = encode(model.params, tokens, mask)
    real = first.tokens[mask]
    np.testing.assert_allclose(other.tokens[mask], real, atol=1e-5)
    np.testing.assert_allclose(other.pooled, first.pooled, atol=1e-5)
    unmasked = encode(model.params, tokens, np.ones_like(mask)).tokens[mask]
    assert np.abs(unmasked - real).max() > 0.1, "the mask does nothing"


def test_bfloat16_is_as_near_to_float32_as_pytorchs(tmp_path):
    model = torch_t5("v1.1")
    model.save_pretrained(tmp_path)
    ours = encoded(tmp_path, dtype=jnp.bfloat16)
    assert ours.tokens.dtype == ours.pooled.dtype == jnp.bfloat16
    exact = torch_t5_tokens(model, *t5_tokens())
    theirs = torch_t5_tokens(model.to(torch.bfloat16), *t5_tokens())
    assert 1e-3 < relative_error(ours.tokens, exact) < 1.5 * relative_error(theirs, exact)


@pytest.mark.parametrize("buckets, distance", [(32, 128), (12, 20), (8, 64), (64, 256), (4, 16)])
def test_buckets_of_distances_equal_pytorch(buckets, distance):
    """Powers of two lie exactly on the border between two buckets."""
    away = torch.arange(600)[None] - torch.arange(600)[:, None]
    theirs = T5Attention._relative_position_bucket(away, True, buckets, distance).numpy()
    np.testing.assert_array_equal(t5.position_buckets(600, buckets, distance), theirs)


def test_defaults_are_transformers():
    theirs, ours = transformers.T5Config().to_dict(), t5.T5Config.from_dict(dict(model_type="t5"))
    assert {k: v for k, v in ours.to_dict().items() if k in theirs and k != "architectures"} == {
        k: v for k, v in theirs.items() if k in ours.to_dict() and k != "architectures"
    } | dict(is_encoder_decoder=False, use_cache=False)
    assert t5.T5Config.from_dict(ours.to_dict()) == ours


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(model_type="mt5"), "model_type='mt5'"),
        (dict(feed_forward_proj="gated-silu"), "feed_forward_proj='gated-silu' is unknown; use relu, gated-gelu"),
        (dict(relative_attention_num_buckets=7), "relative_attention_num_buckets=7"),
        (dict(relative_attention_max_distance=8), "relative_attention_max_distance=8"),
    ],
)
def test_impossible_configs_are_named(change, words):
    with pytest.raises(UserError, match=words):
        t5.T5Config.from_dict(dict(model_type="t5") | change)
