"""`load_text_encoder`: whatever text encoder a folder holds, against transformers."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from encoder_helpers import (
    MAX_LENGTH,
    SHAPES,
    randomised,
    relative_error,
    saved_clip,
    t5_tokens,
    text_config,
    texts,
    torch_outputs,
    torch_t5,
    torch_t5_tokens,
)
from safetensors.torch import load_file, save_file

from contextdiff_jax.encoders import Clip, ClipText, load_text_encoder
from contextdiff_jax.errors import UserError
from contextdiff_jax.formats.tokenizers import train_bpe

WEIGHTS = "model.safetensors"
PLAIN, PROJECTED = transformers.CLIPTextModel, transformers.CLIPTextModelWithProjection


def torch_text(kind: type, shape: str):
    """A random text tower; SD 1 has quick_gelu and the old end token, SD 2 gelu, SDXL a projection."""
    return randomised(kind, transformers.CLIPTextConfig(**text_config(shape)))


def torch_features(model, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """PyTorch's (last hidden state, pooled)."""
    with torch.no_grad():
        out = model(torch.tensor(tokens, dtype=torch.long))
    return out.last_hidden_state.numpy(), (out.text_embeds if "text_embeds" in out else out.pooler_output).numpy()


def assert_equal_features(folder, model, shape: str) -> ClipText:
    read = load_text_encoder(folder)
    context = jax.jit(read.encode_text)(read.params, texts(shape), texts(shape) > 0)
    for ours, theirs in zip((context.tokens, context.pooled), torch_features(model, texts(shape)), strict=True):
        assert ours.shape == theirs.shape
        assert relative_error(ours, theirs) < 1e-5
    np.testing.assert_array_equal(context.mask, texts(shape) > 0)
    return read


@pytest.mark.parametrize("kind, shape", [(PLAIN, "legacy_eos"), (PLAIN, "gelu"), (PROJECTED, "quick_gelu")])
def test_text_tower_alone_equals_pytorch_and_its_export_too(tmp_path, kind, shape):
    original = torch_text(kind, shape)
    original.save_pretrained(tmp_path / "theirs")
    read = assert_equal_features(tmp_path / "theirs", original, shape)
    read.save(tmp_path / "ours", read.params)
    again, report = kind.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    before, after = (torch_features(model.eval(), texts(shape)) for model in (original, again))
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)
    theirs, ours = (json.loads((tmp_path / which / "config.json").read_text()) for which in ("theirs", "ours"))
    assert ours.items() <= theirs.items()


@pytest.mark.parametrize("prefix", ["text_model.", ""])
def test_names_with_and_without_prefix(tmp_path, prefix):
    """Pipelines on the hub have the prefix and a buffer of positions; transformers 5 writes neither."""
    model = torch_text(PLAIN, "quick_gelu")
    model.save_pretrained(tmp_path)
    tensors = {prefix + name.removeprefix("text_model."): v for name, v in load_file(tmp_path / WEIGHTS).items()}
    tensors[f"{prefix}embeddings.position_ids"] = torch.arange(MAX_LENGTH)[None]
    tensors["text_projection.weight"] = torch.zeros(20, 32)  # which a plain CLIPTextModel does not use
    save_file(tensors, tmp_path / WEIGHTS, metadata={"format": "pt"})
    read = assert_equal_features(tmp_path, model, "quick_gelu")
    read.save(tmp_path / "ours", read.params)
    assert all(name.startswith("text_model.") for name in load_file(tmp_path / "ours" / WEIGHTS))


def test_both_towers_and_t5_come_through_the_same_door(tmp_path):
    clip = saved_clip(tmp_path / "clip", "quick_gelu")
    read = load_text_encoder(tmp_path / "clip")
    assert isinstance(read, Clip)
    size = SHAPES["quick_gelu"]["image"][0]
    theirs = torch_outputs(clip, texts("quick_gelu"), np.zeros((1, size, size, 3), np.float32))
    context = jax.jit(read.encode_text)(read.params, texts("quick_gelu"), texts("quick_gelu") > 0)
    assert relative_error(context.pooled, theirs["text_pooled"]) < 1e-5

    t5 = torch_t5()
    t5.save_pretrained(tmp_path / "t5")
    read = load_text_encoder(tmp_path / "t5")
    context = jax.jit(read.encode_text)(read.params, *t5_tokens())
    assert relative_error(context.tokens, torch_t5_tokens(t5, *t5_tokens())) < 1e-5
    assert isinstance(load_text_encoder("builtin:clip_mini"), Clip)


def test_parameters_go_to_their_shardings_in_their_dtype(tmp_path):
    torch_t5().save_pretrained(tmp_path)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    everywhere = lambda shapes: jax.tree.map(lambda _: device, shapes)
    read = load_text_encoder(tmp_path, jnp.bfloat16, shardings=everywhere, param_dtype=jnp.bfloat16)
    reference = load_text_encoder(tmp_path).params
    for ours, exact in zip(jax.tree.leaves(read.params), jax.tree.leaves(reference), strict=True):
        assert isinstance(ours, jax.Array) and ours.sharding == device
        np.testing.assert_array_equal(ours, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize("number", ["", "_2"])
def test_a_pipelines_tokenizer_is_beside_the_encoder(tmp_path, number):
    torch_text(PLAIN, "quick_gelu").save_pretrained(tmp_path / f"text_encoder{number}")
    train_bpe(["a red apple"], 520, MAX_LENGTH, tmp_path / f"tokenizer{number}")
    read = load_text_encoder(tmp_path / f"text_encoder{number}")
    assert read.tokenize(["a red apple", "a"])["tokens"].shape == (2, MAX_LENGTH)
    assert list(read.null_tokens()["tokens"][0, :3]) == [0, 1, 1]
    null = read.null_tokens()["tokens"]
    read.save(tmp_path / "ours", read.params)  # one folder that needs no other
    np.testing.assert_array_equal(load_text_encoder(tmp_path / "ours").null_tokens()["tokens"], null)
    shutil.move(tmp_path / f"tokenizer{number}", tmp_path / "elsewhere")
    given = load_text_encoder(tmp_path / f"text_encoder{number}", tokenizer_dir=tmp_path / "elsewhere")
    np.testing.assert_array_equal(given.null_tokens()["tokens"], null)
    with pytest.raises(UserError, match="has no tokenizer"):
        load_text_encoder(tmp_path / f"text_encoder{number}").null_tokens()


def test_t5_length_is_the_tokenizers_or_the_callers(tmp_path):
    torch_t5().save_pretrained(tmp_path)
    assert load_text_encoder(tmp_path).max_length == 512
    for written, expected in ((77, 77), (int(1e30), 512)):  # transformers' way to say that there is no limit
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(dict(model_max_length=written)))
        assert load_text_encoder(tmp_path).max_length == expected
    assert load_text_encoder(tmp_path, max_length=9).max_length == 9


def test_other_models_and_lengths_are_refused(tmp_path):
    torch_text(PLAIN, "quick_gelu").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="max_length=20: only T5"):
        load_text_encoder(tmp_path, max_length=20)
    (tmp_path / "config.json").write_text(json.dumps(dict(model_type="bert")))
    with pytest.raises(UserError, match="of type 'bert'; text encoders are clip, clip_text_model"):
        load_text_encoder(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        load_text_encoder(tmp_path / "nowhere")
