"""What an edit gives: pictures, figures, heatmaps, and the files made of them."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from PIL import Image

from contextdiff_jax.data.clips import write_clip
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import local_path, write_json
from contextdiff_jax.pictures import caption_grid, to_uint8

SHOWN = 8  # frames of a clip in the picture
WIDEST = 4096  # pixels of a film: more is not played everywhere, and four times as much not written
SOURCE, AUTOENCODER, INVERSION = "source", "autoencoder alone", "inversion alone"
NO_EDITS = SOURCE, AUTOENCODER, INVERSION  # rows of the clip itself; all others are edits, by their prompts


@dataclasses.dataclass(frozen=True)
class Edit:
    """A clip, edited.

    Attributes:
        arrays: float32 [F, H, W, 3] in [-1, 1] of the source, of its two reconstructions (no method can beat them), and
            of the edit under each prompt, by name or prompt.
        figures: {row: {figure: value}}, and what was left out and why.
        heatmaps: {prompt: {word: attention [F, h, w]}}: the source's attention to the words of the mask; without a mask
            of words, to those that the prompt takes away, or to all that name something.
        masks: {prompt: float32 [F, h, w]}: where the clip was edited.
        rate: frames per second.
    """

    arrays: Mapping[str, np.ndarray]
    figures: dict[str, Any]
    heatmaps: dict[str, dict[str, np.ndarray]]
    masks: dict[str, np.ndarray]
    rate: float

    @property
    def targets(self) -> tuple[str, ...]:
        """The edited prompts."""
        return tuple(name for name in self.arrays if name not in NO_EDITS)

    @property
    def frames(self) -> dict[str, list[Image.Image]]:
        """{prompt: its frames}."""
        return {name: _pictures(self.arrays[name]) for name in self.targets}

    @property
    def source(self) -> list[Image.Image]:
        """The clip itself."""
        return _pictures(self.arrays[SOURCE])

    @property
    def reconstruction(self) -> list[Image.Image]:
        """The clip inverted and sampled again under the inversion's prompt."""
        return _pictures(self.arrays[INVERSION])

    def save(self, path: str | Path) -> Path:
        """Writes source, reconstruction and every edit side by side, in as many rows as it takes: an mp4, or a gif, by
        the suffix."""
        shown = [to_uint8(self.arrays[name]) for name in (SOURCE, INVERSION, *self.targets)]
        columns = min(len(shown), max(1, WIDEST // shown[0].shape[2]))
        shown += [np.full_like(shown[0], 255)] * (-len(shown) % columns)
        rows = [np.concatenate(shown[i : i + columns], axis=2) for i in range(0, len(shown), columns)]
        write_clip(path := local_path(path), np.concatenate(rows, axis=1), self.rate)
        return path

    def write(self, folder: str | Path) -> Path:
        """Writes edit.json, edit.png, edit.mp4, edit.gif, and each edit alone as edit-1.mp4, ... A film that FFmpeg
        does not write is left out, and said: the others are not lost for it."""
        folder = local_path(folder)
        films = {name: self.save for name in ("edit.mp4", "edit.gif")}
        for i, target in enumerate(self.targets, start=1):
            films[f"edit-{i}.mp4"] = partial(write_clip, frames=to_uint8(self.arrays[target]), rate=self.rate)
        for name, write in films.items():
            try:
                write(folder / name)
            except UserError as error:
                logging.warning("%s is left out: %s", name, error)
        self._draw(folder / "edit.png")
        write_json(self.figures, folder / "edit.json")
        return folder

    def _draw(self, path: Path) -> None:
        """A row of frames for the source, the reconstructions, each edit, and where attention to its words lay."""
        count = len(self.arrays[SOURCE])
        picked = np.linspace(0, count - 1, min(SHOWN, count)).astype(int)
        rows = {name: clip[picked] for name, clip in self.arrays.items()}
        for target, words in self.heatmaps.items():
            for word, heat in words.items():
                rows[f"{target}: attention to {word!r}"] = _overlaid(rows[SOURCE], heat[picked])
        images = np.concatenate([to_uint8(clip) for clip in rows.values()])
        captions = [name if i == 0 else "" for name in rows for i in range(len(picked))]
        caption_grid(images, captions, path, columns=len(picked))

    def table(self) -> str:
        """The figures as lines of text."""
        names = list(dict.fromkeys(name for row in self.figures["rows"].values() for name in row))
        width = max(map(len, self.figures["rows"]))
        lines = [" ".join([" " * width, *(f"{name:>16}" for name in names)])]
        for row, values in self.figures["rows"].items():
            cells = (f"{values[name]:16.4g}" if values.get(name) is not None else " " * 16 for name in names)
            lines.append(" ".join([f"{row:{width}}", *cells]))
        return "\n".join(lines + [f"left out: {line}" for line in self.figures["left_out"]])


def _pictures(frames: np.ndarray) -> list[Image.Image]:
    return [Image.fromarray(frame) for frame in to_uint8(frames)]


def _overlaid(frames: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Frames as greys with the heat [F, h, w] over them in red, each frame's maximum full; float [F, H, W, 3]."""
    _, height, width, _ = frames.shape
    tiles = [Image.fromarray(h / max(h.max(), 1e-12)).resize((width, height), Image.Resampling.BILINEAR) for h in heat]
    share = np.stack([np.asarray(tile) for tile in tiles])[..., None]
    grey = np.repeat(frames.mean(axis=-1, keepdims=True), 3, axis=-1)
    return grey * (1 - 0.7 * share) + np.array([1.0, -0.6, -1.0]) * 0.7 * share

