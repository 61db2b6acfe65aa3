"""The reader and the writer of the hub's layouts."""

import json
import os
import stat

import jax
import numpy as np
import pytest
import torch
import transformers
from encoder_helpers import relative_error, saved_clip, texts, torch_clip, torch_outputs
from safetensors.torch import load_file, save_file

from contextdiff_jax.encoders import load_clip
from contextdiff_jax.errors import UserError
from contextdiff_jax.formats import pretrained

WEIGHTS = "model.safetensors"


def rewrite(folder, change) -> None:
    """Applies `change` to the dict of tensors in a saved model."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def assert_equal_trees(a, b) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("shape", ["quick_gelu", "gelu", "legacy_eos"])
def test_what_we_write_pytorch_reads_back_exactly(tmp_path, shape):
    original = saved_clip(tmp_path / "theirs", shape)
    read = load_clip(tmp_path / "theirs")
    read.save(tmp_path / "ours", read.params)
    again, report = transformers.CLIPModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert original.state_dict().keys() == again.state_dict().keys()
    for name, value in original.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    size = original.config.vision_config.image_size
    pixels = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    before, after = (torch_outputs(m.eval(), texts(shape), pixels) for m in (original, again))
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    for section in ("text_config", "vision_config"):
        theirs, ours = (getattr(m.config, section).to_dict() for m in (original, again))
        ignored = {"attention_dropout", "dropout", "initializer_factor", "initializer_range", "dtype"}
        assert {k: v for k, v in theirs.items() if k not in ignored} == {
            k: v for k, v in ours.items() if k not in ignored
        }


def test_half_precision_export(tmp_path):
    original = saved_clip(tmp_path / "theirs")
    read = load_clip(tmp_path / "theirs")
    read.save(tmp_path / "ours", read.params, dtype=np.float16)
    again = transformers.CLIPModel.from_pretrained(tmp_path / "ours")
    assert again.dtype == torch.float16
    for name, value in original.half().state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert (tmp_path / "ours" / WEIGHTS).stat().st_size < 0.6 * (tmp_path / "theirs" / WEIGHTS).stat().st_size


def test_shards_equal_the_whole(tmp_path):
    saved_clip(tmp_path / "whole")
    saved_clip(tmp_path / "shards", max_shard_size="40KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    assert_equal_trees(load_clip(tmp_path / "whole").params, load_clip(tmp_path / "shards").params)


def test_written_weights_win_over_an_older_index(tmp_path):
    """Writing into a folder that held shards must not leave a mixture."""
    saved_clip(tmp_path, max_shard_size="40KB")
    read = load_clip(tmp_path)
    doubled = jax.tree.map(lambda v: 2 * v, read.params)
    read.save(tmp_path, doubled)
    assert_equal_trees(load_clip(tmp_path).params, doubled)


def test_variants_are_never_taken_by_guess(tmp_path):
    saved_clip(tmp_path)
    read = load_clip(tmp_path)
    (tmp_path / "model.fp16.safetensors").write_bytes(b"not this one")
    (tmp_path / "adapter.safetensors").write_bytes(b"nor this")
    assert_equal_trees(load_clip(tmp_path).params, read.params)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(UserError, match="adapter.safetensors, model.fp16.safetensors: rename"):
        load_clip(tmp_path)


def test_diffusers_file_name(tmp_path):
    kernel, bias = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4), np.ones(4, np.float32)
    params = {"conv": {"kernel": kernel, "bias": bias}}
    names = lambda path: path.replace("/kernel", ".weight").replace("/", ".")
    pretrained.write_params(tmp_path, params, names, {}, stem="diffusion_pytorch_model")
    stored = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    assert stored["conv.weight"].shape == (4, 3, 1, 2)  # HWIO -> OIHW
    assert stored["conv.weight"][3, 2, 0, 1] == params["conv"]["kernel"][0, 1, 2, 3]
    expected = jax.eval_shape(lambda: params)
    assert_equal_trees(pretrained.read_params(tmp_path, expected, names), params)


def test_weights_may_be_read_by_others(tmp_path):
    saved_clip(tmp_path / "theirs")
    read = load_clip(tmp_path / "theirs")
    umask = os.umask(0o022)
    try:
        read.save(tmp_path / "ours", read.params)
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "ours" / WEIGHTS).stat().st_mode) == 0o644
    assert not list((tmp_path / "ours").glob(".*")), "temporary files left"


def test_position_ids_of_old_files_are_ignored(tmp_path):
    saved_clip(tmp_path)
    name = "text_model.embeddings.position_ids"
    rewrite(tmp_path, lambda tensors: tensors.update({name: torch.arange(12)[None]}))
    load_clip(tmp_path)


def test_missing_unexpected_and_wrong_tensors_are_listed_at_once(tmp_path):
    saved_clip(tmp_path)

    def spoil(tensors):
        del tensors["visual_projection.weight"]
        tensors["extra.weight"] = torch.zeros(3, 2)
        tensors["text_projection.weight"] = torch.zeros(5, 4)

    rewrite(tmp_path, spoil)
    with pytest.raises(UserError) as error:
        load_clip(tmp_path)
    message = str(error.value)
    assert "missing: visual_projection.weight (40, 20)" in message
    assert "unexpected: extra.weight (3, 2)" in message
    assert "wrong shape: text_projection.weight expected (32, 20) found (4, 5)" in message
    assert "\n" not in message


def test_pickles_are_refused_with_the_remedy(tmp_path):
    model = saved_clip(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="pytorch_model.bin.*runs code.*save_pretrained"):
        load_clip(tmp_path)


def test_a_pickle_beside_safetensors_is_not_opened(tmp_path):
    saved_clip(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"never opened")
    load_clip(tmp_path)


def _damage(name: str, content: bytes):
    return lambda folder: (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda folder: (folder / WEIGHTS).unlink(), "no model.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (_damage("config.json", b"{"), "config.json is damaged"),
        (_damage("config.json", b"\xff\xfe\x00"), "config.json is damaged"),
        (_damage(WEIGHTS, b""), "model.safetensors is damaged"),
        (lambda folder: os.truncate(folder / WEIGHTS, 5000), "model.safetensors is damaged"),
        (_damage("preprocessor_config.json", b"]"), "preprocessor_config.json is damaged"),
    ],
)
def test_damaged_folders_are_one_line_errors(tmp_path, spoil, words):
    saved_clip(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=words) as error:
        load_clip(tmp_path)
    assert "\n" not in str(error.value)


def test_a_missing_shard_is_named(tmp_path):
    saved_clip(tmp_path, max_shard_size="40KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(UserError, match=f"lacks {shard.name}"):
        load_clip(tmp_path)


def test_absent_folders(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_clip(tmp_path / "nowhere")
    with pytest.raises(UserError, match="built-in CLIP 'builtin:nothing' does not exist"):
        load_clip("builtin:nothing")


def test_image_normalisation_comes_from_the_folder(tmp_path):
    saved_clip(tmp_path)
    preprocessor = dict(image_mean=[0, 0, 0], image_std=[1, 2, 3])
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    read = load_clip(tmp_path)
    assert read.mean == (0, 0, 0) and read.std == (1, 2, 3)
    read.save(tmp_path / "ours", read.params)
    assert transformers.CLIPImageProcessor.from_pretrained(tmp_path / "ours").image_std == (1, 2, 3)


def test_random_model_differs_from_another():
    """The helper's models are not all alike, so equality above means something."""
    blank = lambda n: np.zeros((1, n, n, 3), np.float32)
    a = torch_outputs(torch_clip("quick_gelu"), texts("gelu"), blank(16))
    b = torch_outputs(torch_clip("gelu"), texts("gelu"), blank(24))
    assert relative_error(a["text_pooled"], b["text_pooled"]) > 0.1
