"""`--mode=heatmaps`: heatmaps of words drawn over the pictures, with the adapter on and off under one colour scale."""

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image

from contextdiff_jax import data
from contextdiff_jax.data.moving import owner_map
from contextdiff_jax.data.one_clip import clip_of
from contextdiff_jax.data.vocabulary import captions_of_one
from contextdiff_jax.editing.words import Prompt
from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate import heatmaps
from contextdiff_jax.evaluate.figures import as_written
from contextdiff_jax.evaluate.groups import settings_of
from contextdiff_jax.evaluate.metrics.base import mean
from contextdiff_jax.evaluate.suite import keep
from contextdiff_jax.files import atomic, write_json
from contextdiff_jax.models.backbones import two_headed
from contextdiff_jax.pictures import to_uint8
from contextdiff_jax.pipeline import Pipeline

COLOURS = "inferno"
OPACITY = 0.65
RENDERS = 64  # whose objects are compared with the heat
SHOWN_FRAMES = 4


def overlay(image: np.ndarray, heat: np.ndarray, largest: float) -> np.ndarray:
    """A picture in grey with a word's heat over it.

    Args:
        image: [H, W, 3 or 1], uint8 or float in [-1, 1].
        heat: [h, w].
        largest: what the last colour stands for; the same for all maps that are to be compared.

    Returns:
        uint8 [H, W, 3].
    """
    pixels = to_uint8(image[None])[0].astype(np.float32)
    height, width = pixels.shape[:2]
    tile = Image.fromarray((heat / max(largest, 1e-12)).astype(np.float32))
    tile = np.asarray(tile.resize((width, height), Image.Resampling.BILINEAR))
    colours = colormaps[COLOURS](np.clip(tile, 0, 1))[..., :3] * 255.0
    grey = np.repeat(pixels.mean(axis=-1, keepdims=True), 3, axis=-1)
    return np.round((1 - OPACITY) * grey + OPACITY * colours).astype(np.uint8)


def draw(rows: Mapping[str, tuple[np.ndarray, Mapping[str, np.ndarray]]], title: str, path: Path) -> float:
    """One figure: a row for each arm, its picture and a map for each word, ONE colour scale for all.

    Args:
        rows: {arm: (picture, {word: heat [h, w]})}.
        title: over it, the prompt.
        path: of the PNG.

    Returns:
        The largest heat, which the last colour stands for.
    """
    largest = max(float(h.max()) for _, heats in rows.values() for h in heats.values())
    words = list(next(iter(rows.values()))[1])
    figure = Figure(figsize=(1.75 * (len(words) + 1) + 0.9, 1.9 * len(rows) + 0.45), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(len(rows), len(words) + 1, squeeze=False)
    for line, (arm, (image, heats)) in zip(axes, rows.items(), strict=True):
        line[0].imshow(to_uint8(image[None])[0])
        line[0].set_ylabel(arm, fontsize=9)
        for cell, word in zip(line[1:], words, strict=True):
            cell.imshow(overlay(image, heats[word], largest))
            cell.set_title(word, fontsize=9)
        for cell in line:
            cell.set(xticks=[], yticks=[])
    scale = ScalarMappable(Normalize(0, largest), COLOURS)
    figure.colorbar(scale, ax=axes, shrink=0.8, label="attention to the word", fraction=0.04).ax.tick_params(
        labelsize=8
    )
    as_written(figure)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")
    return largest


def write_heatmaps(pipeline: Pipeline, prompts: Sequence[str], out: Path, key: int = 0) -> dict[str, Any]:
    """Draws prompts with their heatmaps; of embedded scenes it also says how much heat lies on the object.

    Args:
        pipeline: a model of texts; of a run that was tuned on a clip, the clip's own prompt is shown.
        prompts: what to draw; none for a clip.
        out: folder of the pictures and of heatmaps.json.
        key: of the noise, the same for both arms.

    Returns:
        What heatmaps.json holds: the pictures, what the colours stand for, shares of heat.

    Raises:
        UserError: a prompt without a word that names something.
    """
    settings, of_clip = settings_of(pipeline), pipeline.config.data.source == "clip"
    asked = [clip_of(pipeline.config.data).caption] if of_clip else prompts
    if empty := [prompt for prompt in asked if not heatmaps.words_of(prompt)]:
        raise UserError(f"prompt {empty[0]!r} has no word to show; name an object")
    found = _of_clip(pipeline, settings, out) if of_clip else _of_prompts(pipeline, settings, prompts, out, key)
    about = {"step": pipeline.step, "seed": key, "pictures": found, "shares": {}}
    try:
        about["shares"] = shares(pipeline, settings)
    finally:  # whatever stops the shares, what is drawn keeps its file
        keep(out / "heatmaps.json", partial(write_json, about))
    return about


def _of_prompts(pipeline: Pipeline, settings: Mapping, prompts: Sequence[str], out: Path, key: int) -> list[dict]:
    arms = {name or "samples": heatmaps.of_samples(pipeline, prompts, key, **how) for name, how in settings.items()}
    found = []
    for i, prompt in enumerate(prompts):
        read = Prompt.read(prompt, pipeline.task.parts.condition.read)
        words = heatmaps.words_of(prompt)
        rows = {
            name: (arm.images[i], {word: heatmaps.heat(arm.maps[i], read, word) for word in words})
            for name, arm in arms.items()
        }
        largest = draw(rows, prompt, out / f"{i:04d}.png")
        found.append({"prompt": prompt, "file": f"{i:04d}.png", "last_colour": largest, "words": words})
    return found


def _of_clip(pipeline: Pipeline, settings: Mapping, out: Path) -> list[dict]:
    """A row for each arm and frame: one colour scale for all."""
    clip, task = clip_of(pipeline.config.data), pipeline.task
    read, words = Prompt.read(clip.caption, task.parts.condition.read), heatmaps.words_of(clip.caption)
    rows = {}
    for name, how in settings.items():
        on = how.get("adapter", True)
        maps = heatmaps.of_clip(task, pipeline.params, pipeline.frozen, clip, pipeline.config, on)
        for frame in np.linspace(0, len(clip.frames) - 1, min(SHOWN_FRAMES, len(clip.frames))).astype(int):
            heats = {word: heatmaps.heat(maps[frame], read, word) for word in words}
            rows[f"{name}\nframe {frame}".strip()] = (clip.frames[frame], heats)
    largest = draw(rows, clip.caption, out / "clip.png")
    return [{"prompt": clip.caption, "file": "clip.png", "last_colour": largest, "words": words}]


def shares(pipeline: Pipeline, settings: Mapping[str, dict]) -> dict[str, dict[str, float]]:
    """How much of the heat of the object's words lies on the object, over held-out renders on their way into noise; and
    the same of the background's word. {} where the data are no embedded scenes of one object; settings that have no way
    into noise, of a second head, are left out."""
    config = pipeline.config.data
    if config.source != "openmoji" or config.num_frames > 1 or pipeline.config.condition.kind != "text":
        return {}
    if not captions_of_one(config.preset):
        print(f"shares of heat are left out: all captions of data.preset={config.preset!r} name two objects")
        return {}
    inverted = {name: how for name, how in settings.items() if not _by_head(pipeline, how)}
    if left_out := [name or "the model" for name in settings if name not in inverted]:
        why = "config.adapter.reverse='head' predicts the shift of steps down, and so has no way into noise"
        print(f"shares of heat are left out of {', '.join(left_out)}: {why}")
    source = data.source(config, "test")
    alone = (scene for scene in map(source.scene, range(len(source))) if scene.relation < 0)
    scenes, words = list(itertools.islice(alone, RENDERS)), source.vocabulary
    images = np.stack([scene.draw(words, config.image_size) for scene in scenes]).astype(np.float32) / 127.5 - 1.0
    # An object's pixels, on the grid of the scene; drawings that miss a pixel's corner do not count there.
    side = 32 * max(1, config.image_size // 32)
    masks = np.stack([owner_map(scene, words, side) == 1 for scene in scenes])
    captions, found = [scene.caption(words) for scene in scenes], {}
    for name, how in inverted.items():
        maps = heatmaps.of_pictures(pipeline, images, captions, **how).maps
        for what in ("object", "background"):
            named = [_named(words, scene, what) for scene in scenes]
            reads = [Prompt.read(caption, pipeline.task.parts.condition.read) for caption in captions]
            heats = np.stack([heatmaps.heat(m, r, w) for m, r, w in zip(maps, reads, named, strict=True)])
            inside, spread = heatmaps.share_inside(heats, masks)
            row = {"heat_in_mask": mean(inside), "mask_of_picture": mean(spread), "ratio": mean(inside / spread)}
            label = f"the {what}'s words" + (f", {name}" if name else "")
            found[label] = {
                k: v for key, value in row.items() for k, v in ((key, float(value)), (f"{key}_stderr", value.stderr))
            }
            found[label]["n"] = len(scenes)
    return found


def _by_head(pipeline: Pipeline, how: Mapping[str, Any]) -> bool:
    """Whether a second head predicts the shift under these options."""
    return two_headed(pipeline.config) and bool(how.get("adapter", pipeline.config.sample.adapter))


def _named(words: data.Vocabulary, scene: Any, what: str) -> str:
    """The words of a scene's caption that name its object, or its background."""
    return words.objects[scene.objects[0]] if what == "object" else words.backgrounds[scene.background]
