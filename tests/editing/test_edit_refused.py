"""What can be wrong with a clip, its prompts or its model is one line, before anything is compiled or written."""

import contextlib
import dataclasses
import json
import weakref
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import video_edit
from contextdiff_jax import command_line, compilation, keys, training
from contextdiff_jax import config as config_lib
from contextdiff_jax import task as task_lib
from contextdiff_jax.data.one_clip import clip_of, keep_identity
from contextdiff_jax.editing import editor as editor_lib
from contextdiff_jax.editing import memory
from contextdiff_jax.editing import plan as plans
from contextdiff_jax.editing.cache import Kept, shape_of, takes
from contextdiff_jax.editing.editor import Editor
from contextdiff_jax.editing.result import NO_EDITS
from contextdiff_jax.encoders import ASSETS
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import write_json
from contextdiff_jax.pipeline import clip_editing
from contextdiff_jax.tasks.readers import read_adapter
from contextdiff_jax.training import distributed
from contextdiff_jax.training.workdir import check_workdir

SHIPPED = {}


@pytest.fixture
def recipe(monkeypatch):
    """The smallest recipe; its model is read once for all that is refused after it, and nothing may be tuned."""
    build = task_lib.build

    def once(config, **how):
        if "task" not in SHIPPED:
            SHIPPED["task"] = build(config, **how)
        return SHIPPED["task"]

    monkeypatch.setattr(task_lib, "build", once)
    monkeypatch.setattr(training, "train", lambda *args, **how: pytest.fail("tuned"))
    return video_edit.get_config("tiny")


def refused(config, workdir, message, *prompts):
    """Runs the command line, which must end in a line with this message and leave the folder as it was."""
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=message) as caught:
        command_line.run("train", config, command_line.Options(str(workdir), tuple(prompts), compilation_cache="off"))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert before == {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}


def folder_of(path, count, size=(40, 40)):
    path.mkdir(exist_ok=True)
    for i in range(count):
        Image.new("RGB", size, (10 * i, 0, 0)).save(path / f"{size[0]}-{i}.png")
    return path


def test_clips_that_are_none(recipe, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "corrupt.mp4").write_bytes(b"no video" * 100)
    mixed = folder_of(folder_of(tmp_path / "mixed", 2).parent / "mixed", 2, (48, 40))
    recipe.data.caption = "a square"
    recipe.data.sampling_rate = 2
    refused(recipe, tmp_path / "run", "config.data.sampling_rate=2 cannot act: without config.data.path", "a circle")
    recipe.data.sampling_rate, recipe.data.path = 1, "clip.mp4"
    refused(recipe, tmp_path / "run", "config.data.index=9 cannot act: config.data.path names the clip", "a circle")
    keys.put_at_rest(recipe)  # what a preset brings is no mistake
    assert recipe.data.index == 0
    for path, message in (
        ("nowhere.mp4", "does not exist"),
        ("empty", "holds no pictures"),
        ("corrupt.mp4", "cannot be decoded"),
        (folder_of(tmp_path / "one", 1).name, "a clip needs 2"),
        (mixed.name, "several sizes"),
    ):
        recipe.data.path = str(tmp_path / path)
        refused(recipe, tmp_path / "run", message, "a circle")
    recipe.data.path, recipe.data.mask_path = "", "masks"
    refused(recipe, tmp_path / "run", "data.mask_path='masks' cannot act: without config.data.path", "a circle")
    recipe.data.mask_path, recipe.data.length = "", 2
    refused(recipe, tmp_path / "run", "data.length=2 is less than the config.data.num_frames=3", "a circle")
    recipe.data.path, recipe.data.length = str(folder_of(tmp_path / "four", 4)), 100
    refused(recipe, tmp_path / "run", "too few for length=100 .* at most length=4 fit", "a circle")
    recipe.data.length, recipe.data.sampling_rate = 0, 2
    refused(recipe, tmp_path / "run", "at most num_frames=2 fit", "a circle")
    recipe.data.sampling_rate = 1
    refused(recipe, tmp_path / "run", "no edited prompt")
    recipe.edit.mask = "clip"
    refused(recipe, tmp_path / "run", "this clip has no masks", "a circle")
    recipe.data.caption = ""
    refused(recipe, tmp_path / "run", "data.caption is empty", "a circle")


def test_prompts_that_cannot_be_edited(recipe, tmp_path):
    refused(recipe, tmp_path, "has room for", "a frog " * 80)
    for key, pair, message in (
        ("equalizer", ("frog", -1.0), "0 or more, and finite"),
        ("equalizer", ("frog", float("nan")), "0 or more, and finite"),
        ("equalizer", ("frog", "x"), "must hold pairs"),
        ("equalizer", 10, "must hold pairs"),
        ("cross_replace_words", 10, "must hold pairs"),
        ("blend_words", 5, r"edit.blend_words=\(5,\) must hold texts"),
        ("prompts", 5, r"edit.prompts=\(5,\) must hold texts"),
        ("latent_blend", "0.2", r"is not \(from, to\)"),
        ("cross_replace_words", ("frog", 2.0), "accepted: 0 to 1"),
    ):
        recipe.edit[key] = (pair,)
        refused(recipe, tmp_path, message, "a frog on a red background")
        recipe.edit[key] = ()
    recipe.edit.latent_blend = ("0.2", "0.8")
    refused(recipe, tmp_path, r"is not \(from, to\)")
    recipe.edit.latent_blend = (0.2, 0.8)
    refused(recipe, tmp_path, "empty prompt", " ")
    refused(recipe, tmp_path, "'source' is the name of a row", "source")
    recipe.edit.blend_words = ("horse",)
    refused(recipe, tmp_path, "'horse' is not in the prompt .*its words are: a", "a frog on a red background")
    recipe.edit.alignment, recipe.edit.blend_words = "replace", ()
    refused(recipe, tmp_path, "needs as many words", "a frog")


def test_an_edit_of_what_the_network_has_not_leaves_no_folder(recipe, tmp_path, monkeypatch):
    task = task_lib.build(recipe)
    pipeline = SimpleNamespace(task=task, params=None, frozen=None, config=recipe)
    monkeypatch.setattr(command_line.shared, "pipeline_of", lambda *args: pipeline)
    monkeypatch.setattr(Editor, "run", lambda *args: pytest.fail("run"))

    def trace(self, targets):
        raise UserError("the network attends to the text at other sides")

    def killed(self, targets):
        raise KeyboardInterrupt

    monkeypatch.setattr(Editor, "trace", trace)
    keep_identity(clip_of(recipe.data), tmp_path)
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    options = command_line.Options(str(tmp_path), compilation_cache="off")
    with pytest.raises(UserError, match="the network attends"):
        command_line.run("edit", recipe, options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "clip.json"]
    # A page of the run that is there shows what has been edited since; a training writes its own.
    pages = []
    edited = SimpleNamespace(table=str, write=lambda folder: (folder / "edit.json").write_text("{}"))
    monkeypatch.setattr(Editor, "check", lambda *args: None)
    monkeypatch.setattr(Editor, "run", lambda *args: edited)
    monkeypatch.setattr(command_line.shared, "write_page", pages.append)
    (tmp_path / "config.json").write_text("{}")
    command_line.run("edit", recipe, options)
    command_line.clips.edit(recipe, options, Kept(1))
    assert pages == [tmp_path]
    (tmp_path / "config.json").unlink()
    # One that is killed leaves nothing either: the next takes its place. What is there is not lost.
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Editor, "run", killed)
        command_line.run("edit", recipe, options)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("mine")
    for out in ("", str(tmp_path / "mine")):
        command_line.run("edit", recipe, dataclasses.replace(options, out=out))
    folders = {path.name: sorted(f.name for f in path.iterdir()) for path in tmp_path.iterdir() if path.is_dir()}
    assert folders.pop("checkpoints") == ["1"]
    assert folders == {f"edit{n}": ["edit.json"] for n in ("", "-2", "-3")} | {"mine": ["edit.json", "notes"]}
    # Of a model of the hub nothing is written where its name would be taken for a folder; what no clip was tuned on
    # edits any.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(clip_editing, "tuned_on", lambda model: {})
    command_line.run("edit", recipe, dataclasses.replace(options, workdir="org/name"))
    names = lambda: sorted(path.name for path in (tmp_path / "runs" / "org-name").iterdir())
    assert names() == ["clip.json", "edit"] and not (tmp_path / "org").exists()
    (tmp_path / "runs" / "org-name" / "clip.json").unlink()
    pipeline.config = recipe.copy_and_resolve_references()
    pipeline.config.data.source = "folder"
    as_it_is = lambda pipeline, clip, config: Editor(task, None, None, clip, config)
    monkeypatch.setattr(clip_editing, "editor_as_it_is", as_it_is)
    command_line.run("edit", recipe, dataclasses.replace(options, workdir="org/name"))
    assert names() == ["edit", "edit-2"]
    with pytest.raises(UserError, match="org/name was tuned on no clip, and names none; name one.*--config.data.path"):
        command_line.run("edit", None, dataclasses.replace(options, workdir="org/name"))
    monkeypatch.setattr(Editor, "run", lambda *args: pytest.fail("run"))
    for mode in ("edit", "train"):
        with pytest.raises(UserError, match="--out=.*edit holds an edit"):
            command_line.run(mode, recipe, dataclasses.replace(options, out=str(tmp_path / "edit")))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed, "together", contextlib.nullcontext)
    for mode, message in (("edit", "--mode=edit needs no other process"), ("train", "edit.after_training=True needs")):
        with pytest.raises(UserError, match=message):
            command_line.run(mode, recipe, options)


def test_a_run_s_own_clip_and_words_need_not_be_named_again(recipe, tmp_path, monkeypatch):
    """Another preset edits the clip of the run; what the run says of words in other prompts is left out, and said."""
    own, given, seen = recipe.copy_and_resolve_references(), video_edit.get_config("style+tiny"), []
    own.data.path, own.data.caption, own.data.index = str(folder_of(tmp_path / "own", 3)), "a red square", 0
    own.edit.equalizer, own.edit.cross_replace_words = (("circle", 3.0),), (("circle", 0.2),)
    pipeline = SimpleNamespace(task=task_lib.build(recipe), params=None, frozen=None, config=own)
    monkeypatch.setattr(command_line.shared, "pipeline_of", lambda config, options: seen.append(config) or pipeline)
    monkeypatch.setattr(Editor, "check", lambda *args: None)

    def run(self, targets):
        seen.append((self.clip.caption, self.config, targets))
        return SimpleNamespace(table=str, write=lambda folder: (folder / "edit.json").write_text("{}"))

    monkeypatch.setattr(Editor, "run", run)
    (tmp_path / "run" / "checkpoints" / "1").mkdir(parents=True)
    options = command_line.Options(str(tmp_path / "run"), prompts=("a blue square",), compilation_cache="off")
    told = []
    monkeypatch.setattr(plans.logging, "warning", lambda text, *values: told.append(text % values))
    command_line.run("edit", given, options)
    command_line.run("edit", None, options)
    assert seen[0] is given and seen[2] is None
    for caption, config, targets in (seen[1], seen[3]):
        assert caption == "a red square" and targets == ["a blue square"] and config.data.path == own.data.path
    assert seen[1][1].preset == "style+tiny" and seen[3][1].edit.equalizer == ()
    assert len(told) == 1 and told[0].endswith("(edit.cross_replace_words: circle; edit.equalizer: circle)")
    assert own.edit.equalizer  # the run's own stays as it is
    for word, prompts in (("circle", ("a blue square",)), ("square", ("a blue circle",))):
        own.edit.equalizer, own.edit.cross_replace_words = ((word, 3.0),), ()
        with pytest.raises(UserError, match=f"edit.equalizer: word '{word}' is not in the prompt .*or leave it out"):
            editor_lib.controls_of(pipeline.task, own, clip_of(own.data), prompts)


def test_what_a_model_says_need_not_be_said_again(tmp_path, monkeypatch):
    """Neither the clip of a run beside its masks, nor the model itself that was tuned on none."""
    own, given = video_edit.get_config("tiny"), video_edit.get_config("style+tiny")
    own.data.path, own.data.caption, own.data.index = str(tmp_path / "own"), "a red square", 0
    write_json(own.to_dict(), tmp_path / "run" / "config.json")
    given.data.mask_path, given.data.start, given.data.sampling_rate, given.edit.mask = "masks", 1, 2, "clip"
    with pytest.raises(UserError, match="cannot act: without config.data.path"):
        config_lib.check(given)
    config_lib.check(found := command_line.clips.with_model(given, str(tmp_path / "run")))
    assert (found.data.path, found.data.mask_path, found.data.index) == (own.data.path, "masks", 0)
    assert not given.data.path and given.data.index == 9
    given.data.path = "other.mp4"
    assert command_line.clips.with_model(given, str(tmp_path / "run")) is given
    given = video_edit.get_config("contextdiff")
    given.data.path = "clip.mp4"
    with pytest.raises(UserError, match="config.model.pretrained is empty"):
        config_lib.check(given)
    config_lib.check(found := command_line.clips.with_model(given, "builtin:demo"))
    assert found.model.pretrained == "builtin:demo" and not given.model.pretrained
    seen = []
    monkeypatch.setitem(command_line.MODES, "edit", lambda config, options: seen.append(config.model.pretrained))
    command_line.run("edit", given, command_line.Options("builtin:demo", compilation_cache="off"))
    assert seen == ["builtin:demo"]
    # The recipe that is named for a model is one that fits it.
    given.model.pretrained = str(tmp_path / "sd")
    write_json({"sample_size": 64}, tmp_path / "sd" / "unet" / "config.json")
    assert clip_editing.recipe_for(own) == "configs/video_edit.py"
    assert clip_editing.recipe_for(given) == "configs/video_edit.py:contextdiff"


def test_whether_a_model_was_tuned_is_in_its_files(tmp_path):
    for name, content in (("run", '{"data": {"source": "clip"}}'), ("other", '{"data": {"source": "folder"}}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(content)
    (tmp_path / "sd").mkdir()
    (tmp_path / "sd" / "model_index.json").write_text("{}")
    (tmp_path / "sd.safetensors").write_bytes(b"")
    found = {name: clip_editing.is_tuned(tmp_path / name) for name in ("run", "other", "sd", "sd.safetensors", "none")}
    assert found == {"run": True, "other": False, "sd": False, "sd.safetensors": False, "none": True}
    assert not clip_editing.is_tuned("builtin:demo")


def test_a_clip_that_changed(recipe, tmp_path):
    keep_identity(clip_of(recipe.data), tmp_path)
    recipe.data.index = 1
    clip_editing.check_clip(recipe, tmp_path)  # nothing has been tuned yet
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    refused(recipe, tmp_path, "was tuned on other frames")
    (tmp_path / "clip.json").write_text("{}")
    refused(recipe, tmp_path, "clip.json is damaged")


def test_what_guided_the_tuning_does_not_change_under_it(recipe, tmp_path):
    """A killed tuning does not go on without its ControlNet; masks, which only an edit looks at, may come later."""
    save_config = lambda: (tmp_path / "config.json").write_text(json.dumps(recipe.to_dict()))
    recipe.edit.control = "control"
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    save_config()
    recipe.edit.control = ""
    refused(recipe, tmp_path, "edit.control: saved 'control', now ''")
    save_config()
    recipe.data.mask_path, recipe.data.flow_path, recipe.edit.mask = "masks", "flow.npy", "clip"
    assert not check_workdir(tmp_path, recipe)


def test_the_edit_has_the_device_to_itself(recipe, tmp_path, monkeypatch):
    class State:
        step = recipe.train.num_steps

    states, seen = [], []

    def tuned(*args, **how):
        states.append(weakref.ref(state := State()))
        return state

    monkeypatch.setattr(training, "train", tuned)
    monkeypatch.setattr(clip_editing, "check", lambda *args, **how: None)
    monkeypatch.setattr(command_line.clips, "edit", lambda *args, **how: seen.append(states[0]()))
    monkeypatch.setattr(command_line.shared, "write_page", lambda *args: None)
    command_line.run("train", recipe, options := command_line.Options(str(tmp_path), compilation_cache="off"))
    assert seen == [None]
    # One that was cut off after its edit goes on behind it; another edit is not taken for this one.
    out, targets = tmp_path / "mine", clip_editing.targets_of(recipe, ())
    method = recipe.edit.to_dict() | {"sample": recipe.sample.to_dict()}
    rows = dict.fromkeys([*NO_EDITS, *targets], {})
    write_json(dict(source_prompt=clip_of(recipe.data).caption, method=method, rows=rows), out / "edit.json")
    options = dataclasses.replace(options, out=str(out))
    with pytest.raises(UserError, match="holds an edit"):
        command_line.run("train", recipe, options)
    (tmp_path / "checkpoints" / str(recipe.train.num_steps)).mkdir(parents=True)
    command_line.run("train", recipe, options)
    assert seen == [None]
    recipe.sample.num_steps += 1
    for changed, prompts in ((recipe, ()), (video_edit.get_config("tiny"), ("a pumpkin on a white background",))):
        with pytest.raises(UserError, match="holds an edit"):
            command_line.run("train", changed, dataclasses.replace(options, prompts=prompts))


def test_frames_that_do_not_fit_the_device_are_counted():
    program = jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x).T).lower(jnp.zeros((256, 256))).compile()
    needed = memory.check(program, "edit", 8)
    with pytest.raises(UserError, match="edit of 8 frames needs .* the device has .* about 7 frames fit"):
        memory.check(program, "edit", 8, limit=needed["peak"] - 1)
    with pytest.raises(UserError, match=r"about 7 frames fit \(tune anew with data.num_frames=7\)"):
        memory.check(program, "edit", 8, limit=needed["peak"] - 1, tuned=True)
    for tuned, how in ((False, "take"), (True, "tune anew on")):
        with pytest.raises(UserError, match=f"; {how} fewer frames of the clip .a smaller data.length"):
            memory.check(program, "edit", 8, limit=needed["arguments"], tuned=tuned)


def test_an_accelerator_is_asked_before_the_tuning(recipe, tmp_path, monkeypatch):
    edit = jax.jit(lambda x: jnp.sin(x)).trace(jnp.zeros(1000))
    monkeypatch.setattr(Editor, "trace", lambda *args: {"edit": edit})
    there = SimpleNamespace(platform="gpu", local=jax.local_devices())
    monkeypatch.setattr(editor_lib, "here", lambda: there)
    monkeypatch.setattr(compilation, "available", lambda device: 100)
    message = "edit of 3 frames needs .*; take fewer frames of the clip"
    refused(recipe, tmp_path, message, "a frog on a green background")
    # Where nothing is edited no edit is compiled. And what an older version took does not stop what it has begun.
    recipe.edit.reconstruct, recipe.edit.self_blend, recipe.edit.latent_blend = True, False, ()
    recipe.edit.mask = "clip"
    with pytest.raises(UserError, match="edit.mask='clip' cannot act"):
        clip_editing.check(task_lib.build(recipe), recipe, ())
    clip_editing.check(task_lib.build(recipe), recipe, (), resumed=True)


def test_a_program_that_was_compiled_from_shapes_is_taken_where_it_fits():
    shape = jax.ShapeDtypeStruct((3,), jnp.float32)
    add = jax.jit(lambda given, x, none: given["used"] + x)
    program = add.lower({"used": shape, "not": shape}, shape, None).compile()
    x, place = jnp.ones(3), jax.sharding.SingleDeviceSharding(jax.devices()[0])
    given = {"used": jax.device_put(x, place), "not": np.ones(3, np.float32)}
    assert takes(program, (given, x, None)) and program(given, x, None).tolist() == [2, 2, 2]
    for args in ((given, x, x), (given, x[:2], None), (given, x.astype(int), None), ({"used": x}, x, None)):
        assert not takes(program, args)


def test_an_edit_that_finds_the_device_full_is_one_line(monkeypatch):
    def full(*args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory\nBufferAssignment ...")

    editor = Editor.__new__(Editor)  # what it would hold does not matter
    editor.plan, editor.memory, editor._kept, editor._tuned = SimpleNamespace(window=24), {}, Kept(1), True
    editor._kept.of(("edit", None, shape_of((np.zeros(3),))), lambda: (full, {}))
    with pytest.raises(UserError, match="edit of 24 frames does not fit the device .*tune anew with fewer") as caught:
        editor._call("edit", None, np.zeros(3))
    assert "\n" not in str(caught.value)


def test_an_adapter_of_other_shapes():
    """Read before the training step is compiled."""
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    expected = {"tokens": {"kernel": jax.ShapeDtypeStruct((3, 5), jnp.float32)}}
    with pytest.raises(UserError, match=r"config.adapter.start=.*tokens.kernel.*\(3, 5\)"):
        read_adapter(ASSETS / "demo", expected, jax.tree.map(lambda _: place, expected))
