"""A ControlNet guides tuning, inversion and edit alike, by the edges of each frame."""

import shutil
from types import SimpleNamespace

import diffusers
import jax
import numpy as np
import pytest
from diffusers_helpers import randomised
from editing_helpers import FRAMES, SIZE, config_of
from flax import traverse_util
from PIL import Image
from stable_diffusion_helpers import UNET, save_pipeline

from contextdiff_jax import task as task_lib
from contextdiff_jax import trees
from contextdiff_jax.data.edges import edges
from contextdiff_jax.data.one_clip import clip_of
from contextdiff_jax.editing.editor import Editor
from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate import heatmaps
from contextdiff_jax.models.controlnet import ControlNet, load_controlnet
from contextdiff_jax.models.sd_unet import read_sd_unet
from contextdiff_jax.pipeline import clip_editing, export, loading
from contextdiff_jax.training import Setup
from contextdiff_jax.training.state import stream

SIZES = {name: UNET[name] for name in ("block_out_channels", "layers_per_block", "down_block_types")}
SIZES |= dict(attention_head_dim=4, cross_attention_dim=24, norm_num_groups=8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("control")
    save_pipeline(root / "sd")
    for name, widths in (("fits", (4, 8)), ("too_large", (4, 8, 8))):
        net = diffusers.ControlNetModel(**SIZES, conditioning_embedding_out_channels=widths)
        randomised(net, seed=0).save_pretrained(root / name)
    return root


def test_every_stage_is_shown_the_edges(folders, monkeypatch):
    """Traced: the network is given what the ControlNet adds to the rows of each call, which see the clip's edges."""
    config = config_of(folders / "sd", "controlvideo", edit__control=str(folders / "fits"))
    task, clip, rows = task_lib.build(config), clip_of(config.data), []
    apply = ControlNet.__call__

    def seen(self, xt, t, tokens, picture):
        assert picture.shape == (len(xt), SIZE, SIZE, 3) and len(tokens) == len(xt) == len(t)
        rows.append(len(xt))
        return apply(self, xt, t, tokens, picture)

    monkeypatch.setattr(ControlNet, "__call__", seen)
    batch = next(task.train_iterator(0, 1))
    drawn = np.stack([edges(Image.fromarray(frame)) for frame in clip.frames])
    np.testing.assert_array_equal(batch["edges"], drawn[None])
    assert 0.01 < drawn.mean() < 0.5
    spec = task.batch_spec()
    assert {name: spec[name].shape for name in spec} == {name: batch[name].shape for name in spec}
    params = jax.eval_shape(task.init, stream(0, "init"))
    drawn_batch = jax.eval_shape(task.draw, spec, jax.random.key(0))
    jax.eval_shape(task.loss, params, task.frozen, drawn_batch, jax.random.key(0))
    assert rows == [FRAMES]
    target = clip.caption.replace("star", "frog")
    Editor(task, params, task.frozen, clip, config, progress=False).trace([target])
    assert rows == [FRAMES, FRAMES, 2 * FRAMES]  # the edit: without and with its prompt
    # Another method from Python keeps what guided the tuning and how this network's attention becomes a mask.
    config.data.mask_path = "of-the-run-s-own-clip"
    models = clip_editing.ClipModels()
    tuned = SimpleNamespace(config=config, task=task, params=params, frozen=task.frozen, clip_models=models)
    editor = clip_editing.editor_of(tuned, clip.frames, clip.caption, "fatezero", {}, progress=False)
    assert editor.config.edit.cross_replace_steps == 0.8
    assert editor.plan.controlnet is task.edges.net and editor.plan.mask_scale == "range"
    assert editor.config.edit.mask_threshold == 0.5
    assert editor.config.data.path and not editor.config.data.mask_path  # no embedded clip, whose judge knows it
    # Heatmaps are of the same inversion.
    given = []

    def invert(model, params, frozen, context, x0, drawn, words, plan):
        given.append(plan.controlnet)
        return SimpleNamespace(maps=drawn)

    monkeypatch.setattr(heatmaps, "invert", invert)
    np.testing.assert_array_equal(heatmaps.of_clip(task, {}, task.frozen, clip, config, adapter=True), drawn)
    assert given == [task.edges.net]


def test_branches_over_time_begin_as_copies_where_little_is_trained(folders):
    """Tuning reads the trained leaves alone, which of the self-attention are those of its output."""
    config = config_of(folders / "sd", "controlvideo")
    task = task_lib.build(config)
    places = Setup.of(task).shardings.params
    assert not any("/attn1/query/" in name for name in trees.names(places))
    read = traverse_util.flatten_dict(task.load(places)["denoiser"], sep="/")
    whole = traverse_util.flatten_dict(read_sd_unet(folders / "sd" / "unet"), sep="/")
    branches = {name for name in trees.names(places["denoiser"]) if "/attn_temporal/" in name}
    assert branches and set(read) == branches | {n for n in trees.names(places["denoiser"]) if "/attn1/out/" in n}
    for name in branches:
        np.testing.assert_array_equal(read[name], whole[name.replace("attn_temporal/over_time", "attn1")])


def test_an_export_has_what_guided_its_tuning(folders, tmp_path):
    folder = shutil.copytree(folders / "fits", tmp_path / "control")
    task = task_lib.build(config_of(folders / "sd", "controlvideo", edit__control=str(folder)))
    expected = jax.eval_shape(task.init, stream(0, "init"))
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, leaf.dtype), expected)
    export.write(task, params, 1, tmp_path / "export", half=True)
    shutil.rmtree(folder)
    found = loading.find(tmp_path / "export", step=None, ema=True, config=task.config)  # which names the old place
    assert found.config.edit.control == str(tmp_path / "export" / "controlnet")
    again = load_controlnet(found.config.edit.control)[1]
    jax.tree.map(np.testing.assert_array_equal, again, task.frozen["control"])


def test_a_controlnet_of_other_sizes_is_refused_before_tuning(folders):
    config = config_of(folders / "sd", "controlvideo", edit__control=str(folders / "too_large"))
    task = task_lib.build(config)
    params = jax.eval_shape(task.init, stream(0, "init"))
    with pytest.raises(UserError, match="control picture of 32 x 32 does not fit latents of 16 x 16"):
        Editor(task, params, task.frozen, clip_of(config.data), config, progress=False).trace(["a frog"])
