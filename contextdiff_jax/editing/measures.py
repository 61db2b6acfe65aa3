"""The table of an edit: every figure that this clip allows, for each edit and for the two rows that bound them all."""

from typing import Any

import jax
import numpy as np

from contextdiff_jax.data.clips import Clip
from contextdiff_jax.data.vocabulary import vocabulary
from contextdiff_jax.editing import figures, judge
from contextdiff_jax.editing.result import AUTOENCODER, INVERSION, SOURCE
from contextdiff_jax.encoders import load_clip
from contextdiff_jax.models.recogniser import load_recogniser


def rows(
    embed: "Embed | None", config: Any, clip: Clip, arrays: dict[str, np.ndarray], regions: dict[str, np.ndarray]
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """{row: {figure: value}} and what was left out and why.

    Args:
        embed: the CLIP of the figures; None leaves them out.
        config: its `data` says whether the clip is embedded.
        clip: its masks and motion are used where it has them.
        arrays: frames of every row.
        regions: where each edit acted, [F, h, w]: what is outside is the background of a clip without masks.
    """
    left_out = []
    if embed is None:
        left_out.append("CLIP figures: config.encoder.clip names no CLIP")
    if clip.motion is None:
        left_out.append("warp error: no flow; give one by data.flow_path")
    # No edit can beat the rows that bound them: those are measured where all edits left the clip alone.
    everywhere = np.max(list(regions.values()), axis=0) if regions else None
    if clip.masks is None:
        masked = any(not region.all() for region in regions.values())
        instead = "outside the edits' own masks instead" if masked else "and the edits have no mask"
        left_out.append(f"background by true masks: none (data.mask_path), {instead}")
    table = {}
    for name, frames in arrays.items():
        prompt = clip.caption if name in (SOURCE, AUTOENCODER, INVERSION) else name
        row = {} if embed is None else embed.row(frames, prompt, clip.caption)
        if name != SOURCE:
            outside = _background(clip, regions.get(name, everywhere), frames.shape[1:3])
            row |= _against_source(frames, arrays[SOURCE], outside)
            if clip.masks is not None:
                row["object_psnr"] = figures.psnr(frames, arrays[SOURCE], clip.masks)
        if clip.motion is not None:
            row["warp_error"] = figures.warp_error(frames, clip.motion)
        if config.data.source == "clip" and not config.data.path:
            row |= judge.named(frames, prompt, vocabulary(config.data.preset), load_recogniser(config.data.preset))
        table[name] = row
    return table, left_out


def _background(clip: Clip, region: np.ndarray | None, size: tuple[int, int]) -> np.ndarray | None:
    """Pixels that an edit was to leave alone, bool [F, H, W]; None for all that is known to be so."""
    if clip.masks is not None:
        return ~clip.masks
    if region is None or region.all():
        return None
    return np.repeat(np.repeat(region, size[0] // region.shape[1], 1), size[1] // region.shape[2], 2) == 0


def _against_source(frames: np.ndarray, source: np.ndarray, outside: np.ndarray | None) -> dict[str, float]:
    row = dict(psnr=figures.psnr(frames, source))
    if outside is not None:
        row |= dict(
            background_psnr=figures.psnr(frames, source, outside), background_ssim=figures.ssim(frames, source, outside)
        )
    return row


class Embed:
    """CLIP's figures of a row.

    Args:
        model: `parts.clip` is the CLIP, where there is one.
        frozen: its parameters.
        config: `encoder.clip` is the CLIP otherwise.
    """

    def __init__(self, model: Any, frozen: Any, config: Any):
        self.clip = model.parts.clip or load_clip(config.encoder.clip)
        self.params = frozen["clip"] if model.parts.clip else self.clip.params
        self._images = jax.jit(lambda params, images: self.clip.encode_image(params, images).pooled)

    def text(self, prompt: str) -> np.ndarray:
        """[D]."""
        fields = self.clip.tokenize([prompt])
        return np.asarray(self.clip.encode_text(self.params, fields["tokens"], fields["token_mask"]).pooled[0])

    def row(self, frames: np.ndarray, prompt: str, source: str) -> dict[str, float]:
        """Figures of frames that were to show the prompt."""
        images = np.asarray(self._images(self.params, frames))
        row = dict(
            clip_text=figures.clip_text(images, self.text(prompt)),
            clip_temp=figures.clip_temp_all(images),
            clip_temp_neighbours=figures.clip_temp_neighbours(images),
        )
        if prompt != source:
            row["frame_accuracy"] = figures.frame_accuracy(images, self.text(prompt), self.text(source))
        return row


def heat_shares(clip: Clip, heatmaps: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, float]]:
    """Share of the attention to each word of a mask that lies on the clip's object; {} without masks."""
    if clip.masks is None:
        return {}
    share = lambda heat: figures.heat_in_mask(heat, clip.masks)
    return {target: {word: share(heat) for word, heat in words.items()} for target, words in heatmaps.items()}
