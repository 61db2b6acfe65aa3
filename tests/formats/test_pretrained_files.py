"""How weights are read and written: memory, shards, half-written folders, types, names."""

import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from encoder_helpers import saved_clip, torch_clip
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from contextdiff_jax.encoders import load_clip
from contextdiff_jax.errors import UserError
from contextdiff_jax.formats import pretrained

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ONE_DEVICE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def names(path: str) -> str:
    return path.replace("/kernel", ".weight").replace("/", ".")


def some_params(value: float = 1.0) -> dict:
    """Five tensors, 180 bytes of float32."""
    return {
        "a": {"kernel": np.full((3, 4), value), "bias": np.full(4, value)},
        **{f"b{i}": {"bias": np.full(n, value)} for i, n in enumerate((10, 9, 10))},
    }


def read_some(folder: Path, **how):
    return pretrained.read_params(folder, jax.eval_shape(some_params), names, **how)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's count of resident memory")
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_host_memory_is_bounded_by_a_shard(tmp_path, dtype):
    """On a CPU the arrays are host memory too, so they are subtracted. Reading all at once would take six shards."""
    script = Path(__file__).with_name("measure_memory.py")
    environment = os.environ | dict(JAX_PLATFORMS="cpu", PYTHONPATH=str(Path(pretrained.__file__).parents[2]))
    command = [sys.executable, script, tmp_path, dtype]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    assert result["total"] > 3e8 and result["shard"] < 63e6
    assert result["reading"] < 1.3 * result["shard"]
    assert result["writing"] < 2 * result["shard"]


def test_shards_are_read_by_transformers_and_by_us(tmp_path):
    original = saved_clip(tmp_path / "theirs")
    read = load_clip(tmp_path / "theirs")
    pretrained.write_params(tmp_path / "ours", read.params, read.names, read.config.to_dict(), max_shard_bytes=40_000)
    files = sorted(path.name for path in (tmp_path / "ours").glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    sizes = [sum(v.nbytes for v in load_file(tmp_path / "ours" / name).values()) for name in files]
    assert max(sizes) <= 40_000
    index = json.loads((tmp_path / "ours" / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(sizes) == 4 * sum(p.numel() for p in original.parameters())
    with safe_open(tmp_path / "ours" / files[0], "pt") as handle:
        assert handle.metadata() == {"format": "pt"}
    again, report = transformers.CLIPModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, value in original.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    jax.tree.map(np.testing.assert_array_equal, load_clip(tmp_path / "ours").params, read.params)


@pytest.mark.parametrize("before", [None, 100])
@pytest.mark.parametrize("after", [None, 100, 60])
def test_a_write_replaces_the_one_before_and_leaves_nothing_of_it(tmp_path, before, after):
    pretrained.write_params(tmp_path, some_params(1), names, {}, max_shard_bytes=before)
    pretrained.write_params(tmp_path, some_params(2), names, {"new": True}, max_shard_bytes=after)
    jax.tree.map(np.testing.assert_array_equal, read_some(tmp_path), some_params(2))
    shards = {None: 0, 100: 3, 60: 4}[after]
    numbered = [f"model-{i:05}-of-{shards:05}.safetensors" for i in range(1, shards + 1)]
    files = [*numbered, INDEX] if shards else [WEIGHTS]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["config.json", *files])


@pytest.mark.parametrize("config", [{"depth": 1}, {"depth": 2}])
@pytest.mark.parametrize("after", [None, 100])
@pytest.mark.parametrize("before", [None, 100])
def test_a_killed_write_never_leaves_a_mixture(tmp_path, monkeypatch, before, after, config):
    """Killed before every single change of the folder: what can be read is all old or all new."""
    changes = {os: "replace", Path: "unlink"}
    originals = {place: getattr(place, name) for place, name in changes.items()}
    seen = set()
    for kill in range(30):
        folder = tmp_path / str(kill)
        pretrained.write_params(folder, some_params(1), names, {"depth": 1}, max_shard_bytes=before)
        count = 0

        def counted(original, kill=kill):
            def change(*args, **kwargs):
                nonlocal count
                count += 1
                if count > kill:
                    raise KeyboardInterrupt  # nothing on the way out may change the folder either
                return original(*args, **kwargs)

            return change

        with monkeypatch.context() as patch:
            for place, name in changes.items():
                patch.setattr(place, name, counted(originals[place]))
            try:
                pretrained.write_params(folder, some_params(2), names, config, max_shard_bytes=after)
                finished = True
            except KeyboardInterrupt:
                finished = False
        try:
            values = {float(v) for leaf in jax.tree.leaves(read_some(folder)) for v in leaf.flat}
            found = json.loads((folder / "config.json").read_text())["depth"]
            state = {(1.0,): "old", (2.0,): "new"}[tuple(values)]
            assert found == {"old": 1, "new": config["depth"]}[state]
        except UserError:
            state = "incomplete"
        seen.add(state)
        if finished:
            assert state == "new"
            break
    assert {"old", "new"} <= seen and finished


def test_a_failed_write_changes_nothing(tmp_path):
    pretrained.write_params(tmp_path, some_params(1), names, {}, max_shard_bytes=100)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match="b0.bias has values up to 1e.05, too large for float16; write bfloat16"):
        params = some_params(2) | {"b0": {"bias": np.full(10, 1e5)}}
        pretrained.write_params(tmp_path, params, names, {"new": True}, np.float16)
    with pytest.raises(UserError, match="cannot be written as float64; choose float32, float16, bfloat16"):
        pretrained.write_params(tmp_path, some_params(2), names, {}, np.float64)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_everything_is_checked_before_anything_is_read(tmp_path, monkeypatch):
    pretrained.write_params(tmp_path, some_params() | {"extra": {"bias": np.ones(2)}}, names, {})
    monkeypatch.setattr(pretrained, "read_tensor", None)
    with pytest.raises(UserError, match=r"unexpected: extra.bias \(2,\)"):
        read_some(tmp_path)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shardings", [False, True])
def test_values_are_exact_in_every_dtype(tmp_path, stored, shardings):
    """Every number of 16 bits, the smallest included; more of them than are converted at once."""
    if stored == torch.float32:
        value = torch.randn(65536, 34)
    else:
        value = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(stored)
        value = torch.where(value.isfinite(), value, 0)[:, None].repeat(1, 34)
    save_file({"a.weight": value.contiguous(), "scale": value[77, 0].clone()}, tmp_path / WEIGHTS)
    expected = {"a": {"kernel": jnp.zeros((34, 65536))}, "scale": jnp.zeros(())}
    where = jax.tree.map(lambda _: ONE_DEVICE, expected) if shardings else None
    read = pretrained.read_params(tmp_path, expected, names, shardings=where)
    exact = {"a": {"kernel": value.float().numpy().T}, "scale": value.float().numpy()[77, 0]}
    for ours, theirs in zip(jax.tree.leaves(read), jax.tree.leaves(exact), strict=True):
        assert isinstance(ours, jax.Array if shardings else np.ndarray) and ours.dtype == np.float32
        np.testing.assert_array_equal(ours, theirs)


def test_other_dtypes_are_named_but_ignored_tensors_may_have_any(tmp_path):
    tensors = {"a.weight": torch.zeros(4, 3, dtype=torch.float64), "steps": torch.zeros(1, dtype=torch.int64)}
    save_file(tensors, tmp_path / WEIGHTS)
    expected = {"a": {"kernel": jnp.zeros((3, 4))}}
    with pytest.raises(UserError, match="cannot be read: a.weight F64; convert them to one of F32, F16, BF16"):
        pretrained.read_params(tmp_path, expected, names, ignore=("^steps$",))


def test_a_dense_layer_may_be_stored_as_a_convolution(tmp_path):
    """As old VAEs have their attention."""
    weight = torch.randn(4, 3)
    save_file({"a.weight": weight[..., None, None].clone()}, tmp_path / WEIGHTS)
    read = lambda *shape: pretrained.read_params(tmp_path, {"a": {"kernel": jnp.zeros(shape)}}, names)["a"]["kernel"]
    np.testing.assert_array_equal(read(3, 4), weight.numpy().T)
    np.testing.assert_array_equal(read(1, 1, 3, 4), weight.numpy().T[None, None])
    with pytest.raises(UserError, match=r"a.weight expected \(4, 4\) found \(3, 4\)"):
        read(4, 4)
    save_file({"a.weight": torch.zeros(4, 3, 3, 3)}, tmp_path / WEIGHTS)
    with pytest.raises(UserError, match=r"a.weight expected \(3, 4\) found \(3, 3, 3, 4\)"):
        read(3, 4)


def test_a_tensor_may_have_several_names(tmp_path):
    both = lambda path: (names(path), "old." + names(path))
    params = {"a": {"bias": np.arange(3.0, dtype=np.float32)}}
    read = lambda: pretrained.read_params(tmp_path, jax.eval_shape(lambda: params), both)["a"]["bias"]
    pretrained.write_params(tmp_path, params, both, {})
    assert list(load_file(tmp_path / WEIGHTS)) == ["a.bias"]
    np.testing.assert_array_equal(read(), [0, 1, 2])
    save_file({"old.a.bias": torch.ones(3)}, tmp_path / WEIGHTS)
    np.testing.assert_array_equal(read(), [1, 1, 1])
    save_file({"old.a.bias": torch.ones(3), "a.bias": torch.zeros(3)}, tmp_path / WEIGHTS)
    np.testing.assert_array_equal(read(), [0, 0, 0])
    save_file({"other": torch.ones(3)}, tmp_path / WEIGHTS)
    with pytest.raises(UserError, match=r"missing: a.bias or old.a.bias \(3,\); unexpected: other \(3,\)"):
        read()


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda index: index["weight_map"].update(ghost="model-00001-of-00003.safetensors"), "lack ghost in model-"),
        (lambda index: index.pop("weight_map"), "no weight_map"),
        (lambda index: index["weight_map"].update(ghost=3), "no weight_map"),
    ],
)
def test_an_index_that_does_not_fit(tmp_path, spoil, words):
    pretrained.write_params(tmp_path, some_params(), names, {}, max_shard_bytes=100)
    index = json.loads((tmp_path / INDEX).read_text())
    spoil(index)
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match=words) as error:
        read_some(tmp_path)
    assert "\n" not in str(error.value)


def test_a_pointer_of_git_lfs_is_called_by_its_name(tmp_path):
    (tmp_path / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    with pytest.raises(UserError, match="is a Git LFS pointer; download it again"):
        read_some(tmp_path)


def test_the_remedy_for_pickles_names_the_class(tmp_path):
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"never opened")
    (tmp_path / "config.json").write_text(json.dumps(dict(_class_name="UNet2DConditionModel")))
    with pytest.raises(UserError, match="from diffusers import UNet2DConditionModel; UNet2DConditionModel.from_pre"):
        read_some(tmp_path)


def test_model_card_is_read_by_the_hubs_library(tmp_path):
    pretrained.write_model_card(
        tmp_path,
        "# A model\n\nIt draws: *things*.",
        license="other",
        library_name="diffusers",
        tags=("text-to-image", "c: d"),
        base_model="someone/some-model",
    )
    card = huggingface_hub.ModelCard.load(tmp_path / "README.md")
    assert (card.data.license, card.data.library_name, card.data.base_model) == (
        "other",
        "diffusers",
        "someone/some-model",
    )
    assert card.data.tags == ["text-to-image", "c: d"]
    assert card.text.strip() == "# A model\n\nIt draws: *things*."


def test_helpers_models_fill_several_shards():
    """The 40,000 bytes above mean something."""
    assert sum(p.numel() for p in torch_clip().parameters()) * 4 > 120_000
