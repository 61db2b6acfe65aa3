"""Editing from Python with all that a clip can bring: more frames than a window, masks, edges, several prompts."""

import json
from functools import partial
from types import SimpleNamespace

import av
import diffusers
import jax
import numpy as np
import pytest
from diffusers_helpers import randomised
from ml_collections import ConfigDict
from PIL import Image
from stable_diffusion_helpers import UNET, save_pipeline

import contextdiff_jax as cdx
from configs import t2i, video_edit
from contextdiff_jax import encoders, keys
from contextdiff_jax.data.clips import Clip, write_clip
from contextdiff_jax.data.moving import moving
from contextdiff_jax.editing import editor as editor_lib
from contextdiff_jax.editing import measures, result
from contextdiff_jax.editing.editor import Editor
from contextdiff_jax.editing.result import AUTOENCODER
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import read_object, write_json
from contextdiff_jax.formats import digests
from contextdiff_jax.pipeline import clip_editing, loading

SIZE, FRAMES, WINDOW = 16, 5, 3
SOURCE, TARGETS = "a star on a red background", ["a star on a blue background", "a star on grass"]


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipe")
    save_pipeline(root / "sd")
    names = ("block_out_channels", "layers_per_block", "down_block_types", "cross_attention_dim", "norm_num_groups")
    sizes = {name: UNET[name] for name in names} | dict(attention_head_dim=4)
    net = diffusers.ControlNetModel(**sizes, conditioning_embedding_out_channels=(4, 8))
    randomised(net, seed=0).save_pretrained(root / "control")
    pipe = cdx.Pipeline.load(root / "sd")
    pipe.control = str(root / "control")
    return pipe


def fails_for(name, path, *args, **how):
    if path.name == name:
        raise UserError("no such film")
    write_clip(path, *args, **how)


def test_windows_masks_edges_and_several_prompts_at_once(pipe, tmp_path, monkeypatch):
    frames = np.random.default_rng(0).integers(0, 256, (FRAMES, SIZE, SIZE, 3)).astype(np.uint8)
    masks = np.zeros((FRAMES, SIZE, SIZE), bool)
    masks[:, 4:9, 5:12] = True
    how = dict(method="controlvideo", steps=2, guidance=3.0, num_frames=WINDOW, overlap=1, control=pipe.control)
    how |= dict(masks=masks, mask="around", latent_blend=(0.0, 1.0), mask_resolution=8, progress=False)
    monkeypatch.setattr(editor_lib.memory, "peak_measured", lambda device: 7)
    # As on an accelerator: the edit is compiled before anything runs, and not again when its turn comes.
    compiled, compile_one = [], Editor._compiled
    monkeypatch.setattr(Editor, "_compiled", lambda *args: compiled.append(args[1]) or compile_one(*args))
    monkeypatch.setattr(editor_lib, "here", lambda: SimpleNamespace(platform="gpu", local=jax.local_devices()))
    edited = pipe.edit(frames, SOURCE, TARGETS, **how)
    assert compiled == ["edit", "encode", "invert", "reconstruct", "decode"]
    assert edited.figures["memory_measured"] is None and "in use before" in " ".join(edited.figures["left_out"])
    np.testing.assert_array_equal(np.stack(edited.source), frames)
    # No mask is made of words; shown is attention to those that the prompts take away.
    assert {target: list(words) for target, words in edited.heatmaps.items()} == dict(
        zip(TARGETS, (["red"], ["red", "background"]), strict=True)
    )
    assert edited.heatmaps[TARGETS[0]]["red"].shape == (FRAMES, 8, 8)
    assert "heatmaps" not in " ".join(edited.figures["left_out"])
    assert [len(edited.frames[target]) for target in TARGETS] == [FRAMES] * 2
    with av.open(str(edited.save(tmp_path / "x.mp4"))) as video:
        shown = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert np.shape(shown) == (FRAMES, SIZE, 4 * SIZE, 3)  # source, reconstruction, two edits
    # Where that would be too wide, in rows; and one film that cannot be written does not cost the others.
    monkeypatch.setattr(result, "WIDEST", 3 * SIZE)
    monkeypatch.setattr(result, "write_clip", partial(fails_for, "edit-1.mp4"))
    edited.write(tmp_path / "rows")
    with av.open(str(tmp_path / "rows" / "edit.mp4")) as video:
        stacked = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert np.shape(stacked) == (FRAMES, 2 * SIZE, 3 * SIZE, 3) and np.min(np.array(stacked)[:, SIZE:, SIZE:]) > 200
    written = sorted(path.name for path in (tmp_path / "rows").iterdir())
    assert written == ["edit-2.mp4", "edit.gif", "edit.json", "edit.mp4", "edit.png"]
    seconds = edited.figures["seconds_per_frame"]
    assert set(seconds["edit"]) == set(TARGETS) and seconds["decode"].keys() > seconds["edit"].keys()
    assert all(isinstance(seconds[stage], float) for stage in ("encode", "invert", "reconstruct"))
    assert edited.figures["not_to_change"] == "object" and edited.figures["warp_error_flow"] is None
    kept = masks.reshape(FRAMES, 8, 2, 8, 2).any(axis=(2, 4))
    for target in TARGETS:
        np.testing.assert_array_equal(edited.masks[target], 1.0 - kept)
    # The same again with more guidance, for which nothing is built or compiled, as latents: to the last step the
    # object's are the clip's own, all others have moved.
    given = how | dict(num_steps=how["steps"], guidance=4.0)
    del given["steps"], given["progress"], given["method"]
    unused = (editor_lib.memory, "check"), (clip_editing.task_lib, "build"), (clip_editing, "initial_params")
    for where, name in unused:
        monkeypatch.setattr(where, name, None)
    editor = clip_editing.editor_of(pipe, frames, SOURCE, "controlvideo", given, progress=False)
    monkeypatch.setattr(editor_lib.memory, "peak_measured", lambda device: 9)
    # By which CLIP, whatever has been said ahead: a training checks it under its relative path.
    monkeypatch.chdir(encoders.ASSETS)
    monkeypatch.setattr(measures, "Embed", lambda *args: SimpleNamespace(row=lambda *args: {}))
    editor.config.encoder.clip = "clip_mini"
    figures = editor._figures(edited.arrays, edited.masks, {})
    assert figures["memory_measured"] == 9 and figures["clip"] == "clip_mini"
    assert figures["clip_digest"] == digests.digest(encoders.ASSETS / "clip_mini")
    editor.config.encoder.clip = ""
    assert editor._figures(edited.arrays, edited.masks, {})["clip_digest"] is None
    assert editor.plan.controlnet is not None and editor.plan.window == WINDOW
    latents = jax.device_get(editor.latents(TARGETS)[0])
    own, (one, two) = latents[AUTOENCODER], (latents[target] for target in TARGETS)
    for found in (one, two):
        np.testing.assert_array_equal(found[kept], own[kept])
        assert (np.abs(found - own)[~kept].max(axis=-1) > 1e-4).all()
    assert np.abs(one - two)[~kept].max() > 1e-4
    # What the network has not is said before anything of it runs.
    monkeypatch.setattr(Editor, "run", lambda *args: pytest.fail("run"))
    words = dict(mask="attention", blend_words=("star",))
    for changed, message in (
        (dict(mask_resolution=7, **words), "edit.mask_resolution=7: the network attends to the text at the sides 4, 8"),
        (dict(overlap=WINDOW), "data.overlap=3 does not fit windows of data.num_frames=3; accepted: 0 to 2"),
    ):
        with pytest.raises(UserError, match=message):
            pipe.edit(frames, SOURCE, TARGETS, **how | changed)


def test_a_file_is_read_as_the_options_say(pipe, tmp_path):
    """A recipe alone is that of the default method, on a model that has none of its own."""
    frames = np.repeat(np.arange(12, dtype=np.uint8) * 20, SIZE * SIZE * 3).reshape(12, SIZE, SIZE, 3)
    drawn, flow = np.zeros_like(frames), np.zeros((4, SIZE, SIZE, 2), np.float32)
    drawn[:, :3] = 255
    write_clip(tmp_path / "long.gif", frames, 10)
    write_clip(tmp_path / "masks.gif", drawn, 10)
    np.save(tmp_path / "flow.npy", flow)
    options = dict(num_frames=3, overlap=1, length=5, start=1, sampling_rate=np.int64(2), eta=None, blend_words=None)
    options |= dict(mask_path=tmp_path / "masks.gif", flow_path=str(tmp_path / "flow.npy"))
    editor = clip_editing.editor_of(pipe, tmp_path / "long.gif", SOURCE, "style", options, progress=False)
    np.testing.assert_array_equal(editor.clip.frames, frames[1:10:2])
    assert editor.clip.rate == 5 and (editor.plan.length, editor.plan.window) == (5, 3)
    np.testing.assert_array_equal(editor.clip.masks, drawn[1:10:2, ..., 0] > 0)
    assert editor.clip.motion.valid.all() and editor.config.data.path == str(tmp_path / "long.gif")
    edit = editor.config.edit
    assert (edit.alignment, edit.cross_replace_steps, edit.equalize_added, edit.latent_blend) == ("refine", 0.8, 10, ())
    with pytest.raises(UserError, match="at most length=6 fit"):
        pipe.edit(tmp_path / "long.gif", SOURCE, TARGETS, method="ddim", length=7, sampling_rate=2)


@pytest.fixture
def asked(pipe, monkeypatch):
    """(clip, config) of which an editor would be made; no network is built."""
    nothing = SimpleNamespace(task=None, params_of=lambda pipeline: None, kept=None)
    monkeypatch.setattr(clip_editing.ClipModels, "of", lambda self, pipeline, config: nothing)
    monkeypatch.setattr(clip_editing, "Editor", lambda task, params, frozen, clip, config, **how: (clip, config))
    return lambda given, method, **options: clip_editing.editor_of(pipe, given, SOURCE, method, options)


def test_without_a_length_all_frames_are_taken(asked, tmp_path):
    """Of a short clip as of a long one, and of a file as of an array."""
    frames = np.repeat(np.arange(30, dtype=np.uint8) * 8, SIZE * SIZE * 3).reshape(30, SIZE, SIZE, 3)
    for count, window in ((30, 24), (5, 5)):
        write_clip(tmp_path / f"{count}.gif", frames[:count], 10)
        for given in (tmp_path / f"{count}.gif", frames[:count]):
            clip, config = asked(given, "tune_a_video")
            np.testing.assert_array_equal(clip.frames, frames[:count])
            assert config.data.num_frames == window
    assert len(asked(tmp_path / "30.gif", "ddim", length=9)[0].frames) == 9
    for given, overlap in ((dict(num_frames=3), 1), (dict(num_frames=12), 4), (dict(num_frames=3, overlap=2), 2)):
        assert asked(tmp_path / "30.gif", "ddim", **given)[1].data.overlap == overlap


def test_masks_are_of_the_frames_or_of_the_model(asked, tmp_path):
    """Those of the frames go through the same crop."""
    frames, large = np.zeros((3, 2 * SIZE, 4 * SIZE, 3), np.uint8), np.zeros((3, 2 * SIZE, 4 * SIZE), bool)
    frames[:, 8:16, 24:40], large[:, 8:16, 24:40] = 255, True
    small = np.zeros((3, SIZE, SIZE), bool)
    small[:, 4:8, 4:12] = True
    (tmp_path / "frames").mkdir()
    for i, frame in enumerate(frames):
        Image.fromarray(np.pad(frame, ((0, 0), (8, 0), (0, 0)))).save(tmp_path / "frames" / f"{i}.png")
    crop = dict(crop=(8, 0, 0, 0))
    wide = np.pad(large, ((0, 0), (0, 0), (8, 0)))
    for given, masks, how in ((frames, large, {}), (frames, 255 * small, {}), (tmp_path / "frames", wide, crop)):
        clip, config = asked(given, "ddim", masks=masks, rate=12, **how)
        np.testing.assert_array_equal(clip.masks, small)
        assert config.edit.rate == 12.0


def test_masks_are_of_pictures_as_they_are_shown(asked, tmp_path):
    """A picture's EXIF block may say that it is to be turned."""
    shown, masks = np.zeros((3, 2 * SIZE, SIZE, 3), np.uint8), np.zeros((3, 2 * SIZE, SIZE), bool)
    shown[:, SIZE : SIZE + 4], masks[:, SIZE : SIZE + 4] = 255, True
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for frame, file in zip(shown, files, strict=True):
        Image.fromarray(frame).transpose(Image.Transpose.ROTATE_90).save(file, exif=turned())
    for stored in ([Image.open(file) for file in files], files, map(str, files)):
        clip, _ = asked(stored, "ddim", masks=masks)
        np.testing.assert_array_equal(clip.frames.mean(axis=-1) > 127, clip.masks)
        assert clip.masks.any()
    with pytest.raises(UserError, match="frame '.*none.png' cannot be read"):
        asked([*files, tmp_path / "none.png"], "ddim")


def turned():
    """What says of a picture: turn it by a quarter, clockwise."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_masks_tell_an_object_from_what_is_around_it(asked):
    frames, masks = np.zeros((3, SIZE, SIZE, 3), np.uint8), np.zeros((3, SIZE, 2 * SIZE), bool)
    for given, what in ((masks[:, :, :SIZE], "nothing"), (~masks[:, :, :SIZE], "everything")):
        with pytest.raises(UserError, match=f"masks=... mark {what} of the frames as they are edited"):
            asked(frames, "ddim", masks=given)
    masks[:, :, 0] = True  # which the centre of a wide clip has not
    with pytest.raises(UserError, match="masks=... mark nothing"):
        asked(np.zeros((3, SIZE, 2 * SIZE, 3), np.uint8), "ddim", masks=masks)


def test_how_a_model_was_trained_says_nothing_of_a_clip(pipe, asked, monkeypatch):
    """Nor does what a caller says of a training, which was taken once: it is said to have no effect."""
    own, told = t2i.get_config("sd"), []
    own.model.pretrained, own.space.precomputed, own.eval.recogniser = pipe.config.model.pretrained, False, "judge"
    own.data.update(source="folder", path="pictures", labels="subfolders", class_words="words.txt")
    own.data.update(class_names=("n01",), random_crop=0.5, horizontal_flip=True, batch_size=8)
    own = ConfigDict(json.loads(own.to_json_best_effort()))  # as a run has it
    monkeypatch.setattr(clip_editing.logging, "warning", lambda text, *values: told.append(text % values))
    for config in (pipe.config, own):
        model = SimpleNamespace(config=config, clip_models=clip_editing.ClipModels(), frozen=None)
        options = dict(batch_size=1, num_threads=1, prefetch=None, seed=3)
        frames = np.zeros((3, SIZE, SIZE, 3), np.uint8)
        edited = clip_editing.editor_of(model, frames, SOURCE, "ddim", options)[1]
        assert edited.data.get("batch_size") == config.data.get("batch_size") and edited.data.seed == config.data.seed
    assert [line.split(" has no effect: nothing is trained")[0] for line in told] == [
        f"option {option}" for option in ("batch_size=1", "num_threads=1", "seed=3") * 2
    ]


def test_an_embedded_clip_is_asked_for_what_its_mask_lets_change():
    config = video_edit.get_config("contextdiff+demo")
    both = moving("demo", 9, config.data.seed).other_captions()
    for mask, expected in (("attention", both[:1]), ("clip", both[:1]), ("outside", both[1:]), ("around", both[1:])):
        config.edit.mask = mask
        assert clip_editing.targets_of(config, ()) == list(expected)
    config.edit.self_blend, config.edit.latent_blend = False, ()
    assert clip_editing.targets_of(config, ()) == list(both)


def test_what_frames_of_one_s_own_cannot_be(pipe):
    frames = np.zeros((3, SIZE, SIZE, 3), np.uint8)
    for given, options, message in (
        (frames / 255.0, {}, r"a frame of float64 \(16, 16, 3\) is no picture"),
        (frames, dict(threshold="static"), "sample.threshold='static' .*latents need 'none'"),
        (frames, dict(start=1), "option start=1 is for a clip's path"),
        (frames, dict(mask_path="masks"), "option mask_path='masks' is for a clip's path"),
        (frames, dict(strenght=1), "option strenght=1 is unknown"),
        (frames, dict(masks=np.zeros((2, SIZE, SIZE))), r"masks of shape .* needs \(3, 16, 16\)"),
        (frames, dict(index=3), "option index=3 cannot act: the frames say which clip"),
        (frames, dict(path="x.mp4"), "option path='x.mp4' cannot act: the frames say which clip"),
        (frames, dict(preset="demo"), "option preset='demo' cannot act"),
        (frames, dict(caption="a star"), "option caption='a star' cannot act: the source prompt says"),
        (frames, dict(prompts=("a star",)), "option prompts=.* cannot act: the targets are the edited prompts"),
        (frames, dict(after_training=True), "option after_training=True cannot act: nothing is trained"),
        (frames, dict(adapter=np.bool_(True)), "adapter=True cannot act: this model was trained without an adapter"),
        (frames, dict(num_inference_steps=5), "num_inference_steps=5 is unknown; here it is steps"),
        (frames[:1], {}, "give 2 or more"),
        (5, {}, "frames=5 are no clip"),
        (frames, dict(method=5), "method '5' is unknown"),
        (frames, dict(targets=[5]), "give a list of different ones"),
        (frames, dict(targets=5), "give a list of different ones"),
    ):
        with pytest.raises(UserError, match=message):
            pipe.edit(given, SOURCE, **dict(targets=TARGETS) | options)


def test_how_a_run_s_own_clip_was_read_says_nothing_of_another(monkeypatch, tmp_path):
    config, read = video_edit.get_config("tiny"), []
    own = dict(path=str(tmp_path / "own.mp4"), length=9, start=3, sampling_rate=2, crop=(1, 2, 3, 4))
    own |= dict(mask_path="masks", flow_path="flow.npy")
    config.data.update(own)
    tuned = SimpleNamespace(config=config, task="own", clip_models=clip_editing.ClipModels())

    def clip_of(data, whole):
        read.append({key: data[key] for key in own} | dict(whole=whole))
        raise UserError("read")

    monkeypatch.setattr(clip_editing, "clip_of", clip_of)
    monkeypatch.chdir(tmp_path)
    for path, options in (("own.mp4", {}), ("other.mp4", {}), ("other.mp4", dict(start=1))):
        with pytest.raises(UserError, match="read"):
            clip_editing.editor_of(tuned, path, SOURCE, None, options)
    whole = dict(path="other.mp4", length=0, start=0, sampling_rate=1, crop=(0, 0, 0, 0), whole=True)
    whole |= dict(mask_path="", flow_path="")
    assert read == [own | dict(path="own.mp4", whole=False), whole, whole | dict(start=1)]
    config.edit.rate, config.data.index = 12.0, 0  # nor at which rate it plays
    with monkeypatch.context() as patch:
        patch.setattr(clip_editing, "clip_of", lambda data, whole: Clip(np.zeros((3, 64, 64, 3), np.uint8)))
        patch.setattr(clip_editing.ClipModels, "of", lambda *args: SimpleNamespace(task=0, params_of=id, kept=0))
        patch.setattr(clip_editing, "Editor", lambda task, params, frozen, clip, config, **how: config.edit.rate)
        tuned.params = tuned.frozen = None
        for path, options, rate in (("own.mp4", {}, 12), ("other.mp4", {}, 0), ("other.mp4", dict(rate=5), 5)):
            assert clip_editing.editor_of(tuned, path, SOURCE, None, options) == rate
    # Pictures of another size are another model's.
    monkeypatch.setattr(clip_editing.task_lib, "build", lambda config, **how: config.data.image_size)
    assert tuned.clip_models.of(tuned, config).task == "own"
    config = ConfigDict(config.to_dict())
    config.data.image_size = 32
    assert tuned.clip_models.of(tuned, config).task == 32


def test_the_model_that_ships_makes_its_masks_as_its_recipe_does(monkeypatch):
    built = []
    shipped = SimpleNamespace(config=loading.find("builtin:demo", step=None, ema=True, config=None).config)
    shipped.clip_models = clip_editing.ClipModels()
    monkeypatch.setattr(clip_editing.task_lib, "build", lambda config, **how: built.append(config))
    frames = np.zeros((3, 64, 64, 3), np.uint8)
    with pytest.raises(AttributeError):  # what is built is no task
        clip_editing.editor_of(shipped, frames, SOURCE, "fatezero", {}, progress=False)
    assert (built[0].edit.mask_scale, built[0].edit.mask_threshold) == ("range", 0.5)
    assert built[0].edit.self_replace_steps == 0.8 and built[0].data.num_frames == 3
    assert built[0].sample.guidance == 3.0  # as its recipe has it, unless a caller says otherwise
    with pytest.raises(AttributeError):
        clip_editing.editor_of(shipped, frames, SOURCE, "style+fatezero", {"guidance": 5.0}, progress=False)
    assert (built[1].sample.guidance, built[1].edit.equalize_added, built[1].edit.self_blend) == (5.0, 10.0, False)


def test_an_export_of_the_model_that_ships_is_known_by_its_network(tmp_path):
    config = loading.find("builtin:demo", step=None, ema=True, config=None).config
    shipped = encoders.folder_of("builtin:demo") / "unet" / "config.json"
    for name, change in (("same", {"sample_size": 32}), ("other", {"norm_num_groups": 8})):
        write_json(read_object(shipped) | change, tmp_path / name / "unet" / "config.json")
        config.model.pretrained = str(tmp_path / name)
        edited = clip_editing._config(config, "contextdiff")
        expected = (3.0, "range", 0.5) if name == "same" else (7.5, "maximum", 0.3)
        assert (edited.sample.guidance, edited.edit.mask_scale, edited.edit.mask_threshold) == expected


def test_a_model_that_was_tuned_on_no_clip_edits_one_as_it_is(pipe, asked, monkeypatch):
    """On the command line as from Python: the recipe's clip and method, and the model's own network."""
    recipe = video_edit.get_config("style+tiny")
    recipe.data.path, recipe.data.caption, recipe.data.image_size, recipe.data.index = "x.mp4", SOURCE, SIZE, 0
    recipe.data.num_frames, recipe.encoder.clip = 8, "CLIP"
    clip, config = clip_editing.editor_as_it_is(pipe, Clip(np.zeros((5, SIZE, SIZE, 3), np.uint8)), recipe)
    assert config.model.pretrained == pipe.config.model.pretrained and config.model.video == recipe.model.video
    assert config.edit == recipe.edit and config.data.caption == SOURCE and config.data.num_frames == 5
    assert config.encoder.clip == "CLIP" and not config.sample.adapter and recipe.data.num_frames == 8
    assert config.sample.num_steps == recipe.sample.num_steps and config.preset == "style+tiny"
    own = t2i.get_config("sd")  # with a judge of the pictures that it was trained on
    own.eval.recogniser, own.model.pretrained = "judge", pipe.config.model.pretrained
    model = SimpleNamespace(config=own, clip_models=clip_editing.ClipModels(), frozen=None)
    assert clip_editing.editor_as_it_is(model, clip, recipe)[1].eval.recogniser == ""
    with monkeypatch.context() as patch, pytest.raises(UserError, match="backbone='unet' edits no clips"):
        patch.setattr(pipe.config.model, "backbone", "unet")
        clip_editing.editor_as_it_is(pipe, clip, recipe)


def test_a_model_that_was_tuned_on_no_clip_runs_as_it_is_asked_to():
    own = loading.find("builtin:demo", step=None, ema=True, config=None).config
    given = video_edit.get_config("contextdiff")
    own.mesh.fsdp, given.model.dtype, given.mesh.tensor = 4, "float32", 2
    found = loading.run_as(own, given)
    assert (found.model.dtype, found.mesh.fsdp, found.mesh.tensor) == ("float32", 4, 2)
    assert own.model.dtype == "auto" and not keys.differences(own, found, ("model.", "mesh."))
    own.model.dtype, given.model.dtype = "float32", "auto"  # as recipes leave it
    assert loading.run_as(own, given).model.dtype == "float32"
    # A recipe that names another model is told of, one that names this one, or what this was made from, is not.
    own.model.pretrained = "somebody/model"
    for named, other in (("", ""), ("builtin:demo", ""), ("somebody/model", ""), ("no/other", "no/other")):
        given.model.pretrained = named
        assert clip_editing.unread_model(own, given, "builtin:demo") == other


def test_what_an_edit_lacks_is_said():
    config = video_edit.get_config("demo+controlvideo")
    (line,) = measures.lacking(config)
    assert line.startswith("a ControlNet (edit.control): controlvideo is guided by one")
    config.edit.control, config.data.path = "control", "x.mp4"
    (line,) = measures.lacking(config)
    assert "by builtin:clip_mini, which has only seen OpenMoji scenes" in line
    config.encoder.clip = "CLIP"
    assert not measures.lacking(config)
    shipped = loading.find("builtin:demo", step=None, ema=True, config=None).config
    config = clip_editing._config(shipped, "controlvideo+style")
    assert config.preset == "controlvideo+style" and measures.lacking(config)


def test_presets_say_the_same_in_any_order():
    same = lambda *presets: len({str(video_edit.get_config(p).to_dict() | {"preset": ""}) for p in presets}) == 1
    assert same("fatezero+style+demo", "demo+style+fatezero", "style+demo+fatezero")
    assert same("tiny+tune_a_video", "tune_a_video+tiny") and not same("demo", "tiny")
    with pytest.raises(UserError, match="fatezero and ddim are methods, of which one is used"):
        video_edit.get_config("fatezero+ddim")


def test_a_tuned_run_keeps_its_network_under_another_preset(tmp_path, monkeypatch):
    own, given, said = video_edit.get_config("demo"), video_edit.get_config("style+demo"), []
    given.data.overlap = 2
    monkeypatch.setattr(loading.logging, "warning", lambda text, *values: said.append(text % values))
    found = loading._with_sampling_of(own, given, tmp_path)
    assert found.model == own.model and found.edit == given.edit and found.data.overlap == 2
    assert "stays the network that was tuned" in said[0] and "model.video.key_frames: saved" in said[0]
    # A ControlNet that guided the tuning guides the edit as well; another one is told of.
    own.edit.control, there = str(tmp_path), tmp_path / "there"
    there.mkdir()
    for control, expected, lines in (("", tmp_path, 2), (str(tmp_path), tmp_path, 3), (str(there), there, 5)):
        given.edit.control = control
        assert loading._with_sampling_of(own, given, tmp_path).edit.control == str(expected)
        assert given.edit.control == control and len(said) == lines
    assert "was tuned with the ControlNet" in said[3]
    given.data.num_frames = 4
    with pytest.raises(UserError, match="another model than --config describes .data.num_frames: saved 8, now 4"):
        loading._with_sampling_of(own, given, tmp_path)
