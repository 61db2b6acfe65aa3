"""Every kind of export stands alone: what it was made from is gone when it is read."""

import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import contextdiff_jax as cdx
from configs import cifar10_nll, t2i
from contextdiff_jax import task as task_lib
from contextdiff_jax import trees
from contextdiff_jax.conditions.spaces import write_rgb_map
from contextdiff_jax.config import leaves
from contextdiff_jax.encoders import ASSETS
from contextdiff_jax.errors import UserError
from contextdiff_jax.formats import digests as files
from contextdiff_jax.formats import pretrained
from contextdiff_jax.pipeline import export, loading
from contextdiff_jax.tasks import identity, warm_start
from contextdiff_jax.tasks.diffusion import DiffusionTask
from contextdiff_jax.training.state import initial_params
from tests import editing_helpers, stored_helpers
from tests import stable_diffusion_helpers as helpers


def tiny(config):
    """The smallest pixel model: 8 x 8, patches for the adapter."""
    config.data.image_size, config.model.multipliers, config.adapter.features = 8, (1,), "patches"
    config.model.self_attention_levels, config.model.cross_attention_levels = (), (0,)
    return config


def pixels_with_encoders_of_their_own(root):
    config = tiny(t2i.get_config("tiny"))
    config.adapter.features, config.model.dtype = "clip", "bfloat16"
    for section, key in (("encoder", "clip"), ("condition", "encoder")):
        config[section][key] = str(shutil.copytree(ASSETS / "clip_mini", root / f"{section}-{key}"))
    return config


def classes(root):
    config = cifar10_nll.get_config("tiny")
    config.process.schedule = config.process.variance = "learned"
    return config


def latents(rgb):
    def build(root):
        helpers.save_pipeline(root / "sd")
        config = t2i.get_config("sd")
        config.model.pretrained, config.space.rgb, config.data.image_size = str(root / "sd"), rgb, 16
        config.adapter.depth, config.adapter.width, config.adapter.num_heads = 1, 16, 2
        if rgb == "linear":
            (root / "map").mkdir()
            write_rgb_map({"kernel": np.eye(4, 3), "bias": np.arange(3) / 9}, root / "map")
            config.space.rgb_map = str(root / "map")
        return config

    return build


def pixels_in_latents_without_text(root):
    config = latents("decode")(root)
    config.model.backbone, config.condition.kind, config.sample.guidance = "unet", "none", 1.0
    config.model.channels, config.model.multipliers, config.model.head_dim = 16, (1, 2), 16
    config.model.self_attention_levels = config.model.cross_attention_levels = (1,)
    config.adapter.features, config.train.trainable = "patches", (".*",)
    return config


KINDS = {
    "encoders of its own": pixels_with_encoders_of_their_own,
    "classes, learned process": classes,
    "Stable Diffusion, linear colours": latents("linear"),
    "pixel network in latents": pixels_in_latents_without_text,
}


def fresh(config):
    """(task, parameters at the start of training)."""
    task = task_lib.build(config)
    expected = jax.eval_shape(task.init, jax.random.key(0))
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return task, initial_params(task, jax.tree.map(lambda _: place, expected), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_stands_alone(kind, tmp_path, monkeypatch):
    (tmp_path / "origin").mkdir()
    task, params = fresh(KINDS[kind](tmp_path / "origin"))
    export.write(task, params, 7, tmp_path / "export")
    index = tmp_path / "export" / export.PIPELINE_INDEX
    known = export.WRITTEN | (json.loads(index.read_text()).keys() if index.is_file() else set())
    assert {path.name for path in index.parent.iterdir()} <= known
    digests = {name: files.digest(folder) for name, folder in identity.sources(task.config).items()}
    shutil.rmtree(tmp_path / "origin")
    moved = (tmp_path / "export").rename(tmp_path / "moved")
    assert str(tmp_path / "origin") not in json.dumps(
        {k: v for k, v in json.loads((moved / export.CONFIG).read_text())["config"].items() if k != "data"}
    )
    with monkeypatch.context() as patch:
        patch.setattr(files, "digest", None)  # a move costs no reading of what is frozen
        again = cdx.Pipeline.load(moved)
    jax.tree.map(np.testing.assert_array_equal, again.params, params)
    jax.tree.map(np.testing.assert_array_equal, again.frozen, task.frozen)
    frozen = identity.sources(again.config).keys() | identity.settings(again.config).keys()
    recorded = json.loads((moved / identity.FILE).read_text()) if frozen else {}
    found = {name: network["digest"] for name, network in recorded.items() if "digest" in network}
    assert found == digests, "to the last bit of float32"
    assert recorded.keys() == frozen
    again.save(tmp_path / "saved")  # and so does what is saved from it
    shutil.rmtree(moved)
    jax.tree.map(np.testing.assert_array_equal, cdx.Pipeline.load(tmp_path / "saved").params, params)
    if "process" in params:
        export.write(task, params, 7, tmp_path / "half", half=True)
        kinds = lambda part: {tensor.code for tensor in pretrained.stored_tensors(tmp_path / "half" / part).values()}
        assert kinds("process") == {"F32"} and kinds("denoiser") == {"F16"}


def test_an_export_of_a_tuned_clip_has_its_layers_over_time(tmp_path):
    helpers.save_pipeline(tmp_path / "sd")
    task, params = editing_helpers.model_of(editing_helpers.config_of(tmp_path / "sd"))
    assert any("temporal" in name for name in trees.names(params["denoiser"]))
    export.write(task, params, 7, tmp_path / "export")
    shutil.rmtree(tmp_path / "sd")
    jax.tree.map(np.testing.assert_array_equal, cdx.Pipeline.load(tmp_path / "export").params, params)


def test_another_network_in_an_export_is_refused(tmp_path):
    (tmp_path / "origin").mkdir()
    task, params = fresh(pixels_with_encoders_of_their_own(tmp_path / "origin"))
    export.write(task, params, 7, tmp_path / "export")
    clip = cdx.encoders.load_clip(tmp_path / "export" / "image_encoder")
    clip.save(tmp_path / "export" / "image_encoder", jax.tree.map(lambda v: 0.5 * v, clip.params))
    with pytest.raises(UserError, match="made with the encoder.clip of .*digest.*holds another"):
        cdx.Pipeline.load(tmp_path / "export")


def test_an_export_over_an_export_leaves_what_is_not_its_own(tmp_path, monkeypatch):
    def write(task, params, step, out, name, half):
        (out / "denoiser").mkdir()
        (out / "denoiser" / "model.safetensors").write_text(params)
        (out / export.CONFIG).write_text(str(step))

    monkeypatch.setattr(export, "_write", write)
    monkeypatch.setattr(export, "_check_target", lambda config, out: None)
    monkeypatch.setattr(export, "read_config", lambda folder: (None, 0))
    monkeypatch.setattr(identity, "check", lambda *args: None)
    task, out = types.SimpleNamespace(config=None), tmp_path / "export"
    export.write(task, "a", 1, out)
    (out / "samples").mkdir()
    for name in ("samples/0.png", "eval.json", "clip.json", "denoiser/old"):
        (out / name).write_text("mine")
    (out / "safety").mkdir()
    (out / export.PIPELINE_INDEX).write_text('{"safety": []}')
    export.write(task, "a", 2, out)
    assert (out / export.CONFIG).read_text() == "2" and (out / "samples" / "0.png").read_text() == "mine"
    kept = [export.CONFIG, "denoiser", "samples"]
    assert sorted(path.name for path in out.iterdir()) == ["clip.json", *kept[:2], "eval.json", kept[2]]
    assert len(list((out / "denoiser").iterdir())) == 1 and [path.name for path in tmp_path.iterdir()] == ["export"]

    # What cannot be put in its place leaves the earlier export there, and a link stays a link.
    rename = type(out).rename

    def full(self, target):
        if self.name.startswith(".") and not self.name.endswith(".before"):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    with monkeypatch.context() as patch, pytest.raises(UserError, match="cannot be written .*No space left"):
        patch.setattr(type(out), "rename", full)
        export.write(task, "b", 3, out)
    assert (out / export.CONFIG).read_text() == "2" and (out / "eval.json").is_file()
    (tmp_path / "link").symlink_to(out)
    export.write(task, "a", 4, tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (out / export.CONFIG).read_text() == "4"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "link"]

    # What tells of another model is not lost, and not taken for the new one's; a damaged index names no parts.
    for weights, folder in (("b", "earlier"), ("c", "earlier-2")):
        (out / export.PIPELINE_INDEX).write_text("{")
        (out / "eval.json").write_text(folder)
        export.write(task, weights, 5, out)
        kept.insert(-1, folder)
        assert sorted(path.name for path in out.iterdir()) == kept
        assert (out / folder / "eval.json").read_text() == folder
    assert (out / "earlier" / "clip.json").is_file()

    # One that was set aside when the export that was to replace it was killed is found again.
    out.rename(tmp_path / ".export.host-1-0123abcd.before")
    (tmp_path / ".export.v2.host-1-0123abcd.before").mkdir()  # another one's stays
    export.write(task, "c", 6, out)
    (tmp_path / ".export.v2.host-1-0123abcd.before").rmdir()
    assert (out / "earlier" / "clip.json").is_file() and (out / export.CONFIG).read_text() == "6"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "link"]


def test_what_the_files_of_frozen_networks_say_belongs_to_the_model(tmp_path, monkeypatch):
    helpers.save_pipeline(tmp_path / "sd")
    config = loading.stable_diffusion_config(tmp_path / "sd")
    identity.check(tmp_path, config)
    for name, change, words in (
        ("scheduler/scheduler_config.json", dict(prediction_type="v_prediction"), "prediction_type=epsilon.*=v_pred"),
        ("vae/config.json", dict(scaling_factor=0.5), r"scaling_factor=0.18215\), but .* \(scaling_factor=0.5"),
        ("text_encoder/config.json", dict(hidden_act="gelu"), "hidden_act=quick_gelu.*hidden_act=gelu"),
        ("unet/config.json", dict(attention_head_dim=8), "attention_head_dim=4.*attention_head_dim=8"),
        ("tokenizer/tokenizer_config.json", dict(padding_side="left"), "padding_side=right.*padding_side=left"),
    ):
        file = tmp_path / "sd" / name
        before = file.read_text()
        file.write_text(json.dumps(json.loads(before) | dict(_written_by="another version")))
        identity.check(tmp_path, config)
        file.write_text(json.dumps(json.loads(before) | change))
        with pytest.raises(UserError, match=f"was made with the .*{words}"):
            identity.check(tmp_path, config)
        file.write_text(before)
    # An earlier version recorded digests alone.
    recorded = json.loads((tmp_path / identity.FILE).read_text())
    older = {name: dict(network) for name, network in recorded.items() if "digest" in network}
    for network in older.values():
        del network["settings"]
    (tmp_path / identity.FILE).write_text(json.dumps(older))
    identity.check(tmp_path, config)
    assert json.loads((tmp_path / identity.FILE).read_text()) == recorded
    # A copy, whose files have other times, is read once.
    copied = shutil.copytree(tmp_path, tmp_path / "copied", copy_function=shutil.copyfile)
    elsewhere, read, digest = loading.stable_diffusion_config(copied / "sd"), [], files.digest
    with monkeypatch.context() as patch:
        patch.setattr(files, "digest", lambda folder: read.append(folder.name) or digest(folder))
        with monkeypatch.context() as full:
            full.setattr(identity, "write_json", lambda *args: (_ for _ in ()).throw(OSError(30, "Read-only")))
            identity.check(copied, elsewhere)
        identity.check(copied, elsewhere)
        assert sorted(read) == sorted(2 * ["text_encoder", "vae"])
        identity.check(copied, elsewhere)
    assert len(read) == 4 and json.loads((copied / identity.FILE).read_text())["vae"]["path"] == "sd/vae"
    # What a start has recorded binds once there is a checkpoint.
    run = types.SimpleNamespace(config=config, _keep=lambda folder: None)
    file.write_text(json.dumps(json.loads(before) | change))
    DiffusionTask.keep(run, tmp_path)
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    file.write_text(before)
    with pytest.raises(UserError, match="padding_side=left.*padding_side=right"):
        DiffusionTask.keep(run, tmp_path)


@pytest.fixture(scope="module")
def previous(tmp_path_factory):
    return stored_helpers.unpack(tmp_path_factory.mktemp("previous"))


def like_the_stored_one(**changes):
    config = tiny(t2i.get_config("tiny"))
    config.update_from_flattened_dict(changes)
    return config


@pytest.mark.parametrize("source", ["export", "run"])
def test_a_model_starts_from_another_s_parameters(previous, source):
    config = like_the_stored_one(**{"model.init_from": str(previous / source)})
    if source == "run":  # of which a part was trained
        with pytest.raises(UserError, match="has another denoiser: no .*export a run of which only a part was trained"):
            fresh(config)
        return
    _, params = fresh(config)
    jax.tree.map(np.testing.assert_array_equal, params, cdx.Pipeline.load(previous / "export").params)
    config.adapter.enabled = False
    _, params = fresh(config)
    assert params.keys() == {"denoiser"}
    for key, value, words in (
        ("model.channels", 32, "has another denoiser: .* instead of .* and .* more"),
        ("adapter.depth", 2, "has another adapter: no block_1"),
        ("model.init_from", "nowhere", "nowhere"),
    ):
        with pytest.raises(UserError, match=words):
            fresh(like_the_stored_one(**{"model.init_from": str(previous / "export"), key: value}))


def test_a_model_starts_from_an_export_by_its_name_on_the_hub(previous, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    state = tmp_path / "models--me--toys" / "snapshots" / "aa"
    state.parent.mkdir(parents=True)
    state.symlink_to(previous / "export")
    warm_start.check("me/toys")
    jax.tree.map(np.testing.assert_array_equal, *map(warm_start.read_all, ("me/toys", previous / "export")))
    config = like_the_stored_one(**{"model.init_from": "me/toys", "train.trainable": ("^adapter/",)})
    assert identity.sources(config)["model.init_from"] == state
    with pytest.raises(UserError, match="config.model.init_from='me/none' is neither a run .* hf download me/none"):
        warm_start.check("me/none")


def test_a_lora_leaves_the_model_as_it_was_until_it_is_trained(previous, tmp_path):
    config = like_the_stored_one(**{"model.init_from": str(previous / "export"), "train.lora.rank": 2})
    for trainable in (".*",), ("^adapter/",):
        config.train.trainable = trainable
        with pytest.raises(UserError, match="the LoRA is to be trained and the kernels under it are not"):
            fresh(config)
    config.train.trainable = ("^lora/",)
    task, params = fresh(config)
    jax.tree.map(np.testing.assert_array_equal, task.merged(params)["denoiser"], params["denoiser"])
    up = jax.tree.map(lambda v: v + 1.0, params["lora"])
    changed = task.merged(params | {"lora": up})["denoiser"]
    moved = [n for n in trees.names(changed) if np.any(_leaf(changed, n) != _leaf(params["denoiser"], n))]
    assert moved and all(name.endswith("kernel") and "/cross/" in name for name in moved)
    name = moved[0]
    layer = _leaf(up, name.rpartition("/")[0])
    expected = _leaf(params["denoiser"], name) + jnp.asarray(layer["down"]) @ layer["up"]
    np.testing.assert_allclose(_leaf(changed, name), expected, rtol=1e-5, atol=1e-6)
    # Its export holds the changed weights, and is the model that the run's own config describes.
    export.write(task, params, 7, tmp_path / "export", half=True)
    own = export.read_config(tmp_path / "export")[0]
    assert own.train.lora.rank == 0 and loading._with_sampling_of(own, config, tmp_path / "export").model == own.model
    # A base that has moved is found where another config says that it lies; of two that exist none is guessed.
    moved, saved = like_the_stored_one(**leaves(config)), like_the_stored_one(**leaves(config))
    moved.model.init_from, saved.model.init_from = str(tmp_path / "export"), "gone"
    assert loading._with_sampling_of(saved, moved, tmp_path / "run").model.init_from == moved.model.init_from
    with pytest.raises(UserError, match="model.init_from: saved .*, now "):
        loading._with_sampling_of(config, moved, tmp_path / "run")
    config.model.init_from = ""
    with pytest.raises(UserError, match="name it: config.model.init_from"):
        fresh(config)
    config.train.lora.rank, config.adapter.start = 0, str(previous / "export")
    for trainable, names in (("^denoiser/", {"adapter.start"}), ("^adapter/", set())):
        config.train.trainable = (trainable,)
        assert identity.sources(config).keys() - {"encoder.clip"} == names


def _leaf(tree, name):
    for part in name.split("/"):
        tree = tree[part]
    return tree


@pytest.mark.parametrize("said", [{"vae": {"path": "x"}}, {"vae": ["x"]}, {"vae": 3}])
def test_a_record_of_frozen_networks_that_says_something_else_is_one_line(tmp_path, said):
    (tmp_path / identity.FILE).write_text(json.dumps(said))
    with pytest.raises(UserError, match="frozen.json is damaged .of vae it says .*; delete it"):
        identity.check(tmp_path, ConfigDict())
