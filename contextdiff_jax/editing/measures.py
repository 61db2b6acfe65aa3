"""The table of an edit: every figure that this clip allows, for each edit and for the two rows that bound them all."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.data.clips import Clip
from contextdiff_jax.editing import figures
from contextdiff_jax.editing.effects import OF_THE_BACKGROUND, masked
from contextdiff_jax.editing.judge import Judge, is_embedded
from contextdiff_jax.editing.methods import without_control
from contextdiff_jax.editing.result import NO_EDITS, SOURCE
from contextdiff_jax.encoders import BUILTIN, folder_of, load_clip
from contextdiff_jax.formats import digests

TOGETHER = 8  # frames that CLIP is shown at once


def check(model: Any, config: Any) -> None:
    """Reads what the figures will need: what is missing or damaged is said before hours of tuning, not after them.

    Raises:
        UserError: a CLIP or a judge that cannot be read.
    """
    Judge.of(config.data)
    if config.encoder.clip and model.parts.clip is None:  # the model's own has been read
        load_clip(config.encoder.clip)


def clip_digest(config: Any) -> str | None:
    """What tells the weights of the figures' CLIP from others'; None without one."""
    return digests.digest(folder_of(config.encoder.clip)) if config.encoder.clip else None


def flow_of(config: Any, clip: Clip) -> str | None:
    """Which flow the warp error is by: "exact" on embedded clips, else the user's file; None without any."""
    if clip.motion is None:
        return None
    return "exact" if is_embedded(config.data) else str(config.data.flow_path)


def kept_part(config: Any) -> str | None:
    """What an edit was not to change; None without a mask, where all of the picture may."""
    if not masked(config.edit):
        return None
    return "object" if config.edit.mask in OF_THE_BACKGROUND else "background"


def lacking(config: Any) -> list[str]:
    """What an edit and its figures would be better for, and have not."""
    found = [without_control(config.get("preset", ""), config.edit.control)]
    if config.encoder.clip.startswith(BUILTIN) and not is_embedded(config.data):
        found.append(
            f"a CLIP that knows such clips (encoder.clip): the CLIP figures are by {config.encoder.clip}, which has "
            "only seen OpenMoji scenes"
        )
    return [line for line in found if line]


def rows(
    embed: "Embed | None", config: Any, clip: Clip, arrays: dict[str, np.ndarray], regions: dict[str, np.ndarray]
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """{row: {figure: value}} and what was left out and why.

    Args:
        embed: the CLIP of the figures; None leaves them out.
        config: its `data` says whether the clip is embedded, its `edit` what was not to change.
        clip: its masks and motion are used where it has them.
        arrays: frames of every row.
        regions: where each edit acted, [F, h, w]; they stand for the masks of a clip that has none.

    Raises:
        UserError: a judge that cannot be read.
    """
    left_out, judge, kept = [], Judge.of(config.data), kept_part(config)
    if judge is not None:
        left_out += judge.left_out([name for name in arrays if name not in NO_EDITS] + [clip.caption], clip.caption)
    elif is_embedded(config.data):
        left_out.append(f"judge: none ships for data.preset={config.data.preset!r}")
    if embed is None:
        left_out.append("CLIP figures: config.encoder.clip names no CLIP")
    if clip.motion is None:
        left_out.append("warp error: no flow (data.flow_path, of a clip in a file)")
    # No edit can beat the rows that bound them: those are measured where all edits left the clip alone.
    everywhere = np.max(list(regions.values()), axis=0) if regions else None
    if kept is None and regions:
        left_out.append("what was not to change: without edit.self_blend or edit.latent_blend no mask keeps a part")
    if clip.masks is None:
        own = any(not region.all() for region in regions.values())
        where = "inside" if kept == "object" else "outside"
        instead = f"{where} the edits' own masks instead" if own else "and the edits have no mask"
        left_out.append(f"background by true masks: none (data.mask_path; masks= of frames in Python), {instead}")
    table = {}
    for name, frames in arrays.items():
        prompt = clip.caption if name in NO_EDITS else name
        row = {} if embed is None else embed.row(frames, prompt, clip.caption)
        if name != SOURCE:
            inside = clip.masks
            if inside is None:
                inside = _stands_for_object(regions.get(name, everywhere), frames.shape[1:3], kept)
            row |= _against_source(frames, arrays[SOURCE], inside)
        if clip.motion is not None:
            row["warp_error"] = figures.warp_error(frames, clip.motion)
        if judge is not None:
            row |= judge.named(frames, prompt, clip.caption)
        table[name] = row
    return table, left_out


def _stands_for_object(region: np.ndarray | None, size: tuple[int, int], kept: str | None) -> np.ndarray | None:
    """The object by where an edit acted, bool [F, H, W]: all but that, where the object is what was kept; None without
    a mask."""
    if region is None or region.all():
        return None
    acted = np.repeat(np.repeat(region, size[0] // region.shape[1], 1), size[1] // region.shape[2], 2) > 0
    return ~acted if kept == "object" else acted


def _against_source(frames: np.ndarray, source: np.ndarray, inside: np.ndarray | None) -> dict[str, float]:
    """How near a row is to the source, as a whole and, where the object is known, on it and outside."""
    row = dict(psnr=figures.psnr(frames, source))
    if inside is not None and not inside.all():
        row["background_psnr"] = figures.psnr(frames, source, ~inside)
        row["background_ssim"] = figures.ssim(frames, source, ~inside)
    if inside is not None and inside.any():
        row["object_psnr"] = figures.psnr(frames, source, inside)
    return row


class Embed:
    """CLIP's figures of a row, in float32 whatever the model computes in: figures of two arms are to be compared.

    Args:
        model: `parts.clip` is the CLIP, where there is one of that precision.
        frozen: its parameters.
        config: `encoder.clip` is the CLIP otherwise.

    Raises:
        UserError: a CLIP that cannot be read.
    """

    def __init__(self, model: Any, frozen: Any, config: Any):
        own = model.parts.clip
        if own is not None and own.dtype == jnp.float32:
            self.clip, self.params = own, frozen["clip"]
        else:
            self.clip = load_clip(config.encoder.clip)
            self.params = jax.device_put(self.clip.params)
        self._images = jax.jit(lambda params, images: self.clip.encode_image(params, images).pooled)

    def images(self, frames: np.ndarray) -> np.ndarray:
        """[F, H, W, 3] -> [F, D]; few frames at a time, by one program: a clip may be long."""
        size, parts = min(TOGETHER, len(frames)), []
        for start in range(0, len(frames), size):
            part = np.asarray(frames[start : start + size])
            filled = np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]), part.dtype)])
            parts.append(np.asarray(self._images(self.params, filled))[: len(part)])
        return np.concatenate(parts)

    def text(self, prompt: str) -> np.ndarray:
        """[D]."""
        fields = self.clip.tokenize([prompt])
        return np.asarray(self.clip.encode_text(self.params, fields["tokens"], fields["token_mask"]).pooled[0])

    def row(self, frames: np.ndarray, prompt: str, source: str) -> dict[str, float]:
        """Figures of frames that were to show the prompt."""
        images = self.images(frames)
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
