"""What is held out, and which of it is looked at."""

import collections
import json
import os
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
from data_helpers import config
from ml_collections import ConfigDict

from configs import t2i, video_edit
from contextdiff_jax import config as config_lib
from contextdiff_jax import data
from contextdiff_jax.errors import UserError
from contextdiff_jax.pipeline import loading as saved_model
from contextdiff_jax.tasks import warm_start
from contextdiff_jax.tasks.autoencoder import AutoencoderTask
from contextdiff_jax.training import workdir


def _fill(folder, count, classes=("cat", "dog")):
    for i in range(count):
        place = folder / classes[i * len(classes) // count]
        place.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (8, 8), (i, 0, 0)).save(place / f"{i:03d}.png")
        (place / f"{i:03d}.txt").write_text(f"picture {i}")
    return config(source="folder", path=str(folder), image_size=8)


def test_only_too_small_a_folder_and_a_clip_fall_back_to_training(tmp_path):
    assert data.held_out(_fill(tmp_path / "small", 10))[0] == "train"
    section = _fill(tmp_path / "large", 100)
    split, source = data.held_out(section)
    assert split == "val"
    (source.path / source.names[0]).write_text("no picture")
    with pytest.raises(UserError, match="1 of .* val images in .* cannot be read"):
        data.held_out(section)
    assert data.held_out(video_edit.get_config("tiny").data)[0] == "train", "the clip itself"


@pytest.mark.parametrize(
    "source, key, value",
    [(source, "path", "pictures") for source in ("openmoji", "digits", "imagenet2012")]
    + [(source, "labels", "subfolders") for source in ("openmoji", "digits", "cifar10", "fashion", "coco", "clip")]
    + [(source, "class_names", ("a",)) for source in ("openmoji", "digits", "cifar10", "fashion", "clip", "folder")],
)
def test_what_a_source_does_not_read_is_refused_and_old_runs_are_read(source, key, value):
    run = (video_edit if source == "clip" else t2i).get_config("tiny")
    run.data.source = source
    config_lib.check(run)
    without = run.copy_and_resolve_references()
    run.data[key] = value
    with pytest.raises(UserError, match=f"config.data.{key}=.* cannot act with config.data.source='{source}', wh"):
        config_lib.check(run)
    assert not config_lib.differences(config_lib.complete(ConfigDict(json.loads(run.to_json()))), without)


@pytest.mark.parametrize("length, count", [(1000, 16), (17, 16), (16, 16), (5, 16), (1, 1), (60_000, 1024)])
def test_what_is_looked_at_is_spread_and_always_the_same(length, count):
    chosen = data.chosen(length, count, seed=3)
    assert len(chosen) == len(set(chosen)) == min(length, count) and chosen == sorted(chosen)
    assert chosen[0] >= 0 and chosen[-1] < length and chosen == data.chosen(length, count, seed=3)
    if length > 2 * count:
        assert chosen != data.chosen(length, count, seed=4)
        assert np.diff(chosen).max() <= 2 * length / count + 1
        halves = collections.Counter(index * 2 // length for index in chosen)
        assert abs(halves[0] - halves[1]) <= 1


def test_a_batch_of_chosen_records_is_theirs():
    section = config()
    indices = data.chosen(2000, 6, seed=0)
    how = dict(seed=0, process_index=0, process_count=1, from_records=None, shuffle=False)
    batches = data.build(section, "test", batch_size=3, indices=indices, **how)
    assert [*next(batches)["index"], *next(batches)["index"]] == indices


def test_a_run_does_not_depend_on_where_one_stands(tmp_path, monkeypatch):
    (tmp_path / "clip").mkdir()
    monkeypatch.chdir(tmp_path)
    run = t2i.get_config("tiny")
    run.encoder.clip, run.model.pretrained, run.space.latents = "clip", "org/name", ""
    settled = data.settled(run)
    assert settled.encoder.clip == str(tmp_path / "clip") and run.encoder.clip == "clip"
    assert settled.model.pretrained == "org/name" and settled.space.latents == ""
    assert config_lib.whole_paths(t2i.get_config("tiny")).encoder.clip == "builtin:clip_mini"
    # A run of an earlier version, which kept the path as given, goes on from where it was started.
    assert not workdir._changes(run.to_dict(), settled)
    monkeypatch.chdir("/")
    assert not workdir._changes(settled.to_dict(), settled)
    monkeypatch.setenv("HOME", str(tmp_path))
    run.encoder.clip = os.path.join("~", "clip")
    assert config_lib.whole_paths(run).encoder.clip == str(tmp_path / "clip")
    (tmp_path / "judge").mkdir()
    monkeypatch.chdir(tmp_path)
    run.eval.features = ("efficientnet", "dinov2:clip", "clip:builtin:clip_mini", "clip:org/name", "judge:judge")
    spaces = "efficientnet", f"dinov2:{tmp_path / 'clip'}", "clip:builtin:clip_mini", "clip:org/name", "judge:judge"
    assert config_lib.whole_paths(run).eval.features == spaces
    edit = video_edit.get_config("tiny")
    edit.edit.control, edit.adapter.start = os.path.join("~", "clip"), os.path.join("~", "clip")
    whole = config_lib.whole_paths(edit)
    assert whole.edit.control == whole.adapter.start == str(tmp_path / "clip")


def _found(own, given, place="run"):
    """What `data` says of a run that is loaded with another config; from here, as a command line has them."""
    return saved_model._with_sampling_of(own, config_lib.whole_paths(given), place).data


def test_pictures_that_have_moved_are_found_where_the_config_says(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(saved_model.logging, "warning", lambda text, *values: said.append(text % values))
    own, given = t2i.get_config("tiny"), t2i.get_config("tiny")
    for run in (own, given):
        run.data.source, run.data.image_size = "folder", 8
    _fill(tmp_path / "before", 40)
    own.data.path, own.data.max_bad_fraction = str(tmp_path / "before"), 0.5
    assert _found(own, given).path == own.data.path, "a recipe's own is empty"
    given.data.path = "data/laion"
    assert _found(own, given).path == own.data.path and "'data/laion' is not there" in said.pop()
    (tmp_path / "before").rename(tmp_path / "after")
    given.data.path, given.data.prefetch = str(tmp_path / "after"), 7
    given.data.class_words = str(tmp_path / "words")
    found = _found(own, given)
    assert data.held_out(found)[1].path == tmp_path / "after" and not said
    assert found.class_words == given.data.class_words and found.prefetch == 7
    assert found.max_bad_fraction == 0.5, "what it was trained with is not refused"
    # Other pictures than those of the training are taken, and it is said.
    own.data.path = str(tmp_path)
    assert _found(own, given).path == given.data.path and "is taken, in the place of" in said.pop()
    # A Stable Diffusion folder as it is has no pictures of its own.
    (tmp_path / "sd" / "unet").mkdir(parents=True)
    (tmp_path / "sd" / "model_index.json").write_text("{}")
    plain = ConfigDict({"data": {"source": "folder", "path": "", "class_words": ""}})
    assert _found(plain, given, tmp_path / "sd").path == given.data.path
    given.data.source, given.data.path = "openmoji", ""
    assert not _found(plain, given, tmp_path / "sd").path


def test_a_clip_keeps_its_words_and_masks_where_it_has_moved(tmp_path):
    own, given = video_edit.get_config("tiny"), video_edit.get_config("tiny")
    before, after, masks = (tmp_path / name for name in ("before", "after", "masks"))
    for folder in (before, masks):
        folder.mkdir()
    own.data.update(path=str(before), index=0, caption="a jeep", length=6, crop=[1, 0, 0, 0], mask_path=str(masks))
    clip = ("path", "caption", "length", "crop", "mask_path", "flow_path", "index")
    of = lambda: {key: _found(own, given)[key] for key in clip}
    assert of() == {key: own.data[key] for key in clip}, "a config without a path"
    given.data.update(path=str(before), index=0, flow_path="flow.npy")
    assert of() == {key: own.data[key] for key in clip} | {"flow_path": "flow.npy"}, "the same path"
    before.rename(after)
    given.data.update(path=str(after), caption="a car")
    moved = {"path": str(after), "caption": "a car", "flow_path": "flow.npy"}
    assert of() == {key: own.data[key] for key in clip} | moved
    before.mkdir()
    assert of() == {key: given.data[key] for key in clip}, "another clip is all its own"


def test_what_is_only_started_from_does_not_count_once_it_is_trained(tmp_path):
    saved, now = t2i.get_config("tiny"), t2i.get_config("tiny")
    saved.model.init_from, now.model.init_from = "/gone/a", "runs/a"
    changes = workdir._changes(saved.to_dict(), now)
    assert changes and not workdir._another_model(changes)  # the start may have moved, which a flag allows
    assert not workdir._changes(saved.to_dict(), now, trained=True)
    saved_model._with_sampling_of(saved, now, tmp_path)
    for run in (saved, now):
        run.train.trainable = ("^adapter/",)
    assert workdir._changes(saved.to_dict(), now, trained=True) == [
        "model.init_from: saved '/gone/a', now 'runs/a'"
    ], "the rest is read from there"
    assert saved_model._with_sampling_of(saved, now, tmp_path).model.init_from == "runs/a"  # where it was is nothing
    saved.model.init_from = str(tmp_path)
    with pytest.raises(UserError, match="another model .*model.init_from"):
        saved_model._with_sampling_of(saved, now, tmp_path)
    saved.model.init_from = "/gone/a"
    now.model.init_from, saved.adapter.start, now.adapter.start = "/gone/a", "/gone/b", "runs/b"
    assert not workdir._changes(saved.to_dict(), now, trained=True)
    for source, words in (("runs/typo", "neither a run"), ("builtin:demo", "give it as config.model.pretrained")):
        with pytest.raises(UserError, match=f"config.model.init_from='{source}' .*{words}"):
            warm_start.check(source)
    with pytest.raises(UserError, match="config.adapter.start='builtin:clip_mini' has no adapter"):
        warm_start.check_adapter("builtin:clip_mini")


def test_the_classes_of_a_folder_go_into_the_run(tmp_path):
    run = t2i.get_config("tiny")
    run.data.update(ConfigDict(_fill(tmp_path / "pictures", 8).to_dict() | {"labels": "subfolders"}))
    settled = data.settled(run)
    assert settled.data.class_names == ("cat", "dog")
    assert not workdir._changes(settled.to_dict(), run)
    settled.data.path = str(tmp_path / "gone")
    assert data.describe(settled.data).class_names == ("cat", "dog")
    _fill(tmp_path / "another", 8)
    (tmp_path / "another" / "cat").rename(tmp_path / "another" / "bird")
    settled.data.path = str(tmp_path / "another")
    assert data.describe(settled.data).class_names == ("cat", "dog")  # sampling does not ask what lies there now
    with pytest.raises(UserError, match="has other classes than data.class_names"):
        data.source(settled.data, "train")
    renamed = data.settled(run)
    renamed.data.class_names = ("cat", "horse")
    assert workdir._another_model(workdir._changes(settled.to_dict(), renamed))


def test_an_autoencoder_is_scaled_and_shown_by_pictures_of_the_whole_set(monkeypatch):
    records = Records({"image": np.full((8, 8, 3), i // 3, np.uint8)} for i in range(768))
    monkeypatch.setattr(data, "held_out", lambda section: ("test", records))
    task = AutoencoderTask.__new__(AutoencoderTask)
    same = lambda params, images: images
    task.config, task.vae = t2i.get_config("tiny"), SimpleNamespace(encode=same, decode=same)
    level = lambda images: (images[:, 0, 0, 0] + 1) * 127.5
    assert (np.diff(level(task._held_out)) > 0).all() and len(task._held_out) == 256
    shown = level(task.preview({}, {}, None)[0])
    assert shown[0] < 40 and shown[7] > 215 and len(shown) == 16


class Records(list):
    """Pictures that come level by level."""

    levels = 256
