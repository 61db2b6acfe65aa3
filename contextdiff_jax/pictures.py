"""Grids of images with their captions written underneath."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from contextdiff_jax.errors import UserError
from contextdiff_jax.files import atomic

MIN_SIDE = 120  # pixels; smaller images are enlarged to at least this: room for a legible caption
GRID = "grid.png"  # samples in one picture, beside them; measures and studies leave it out
IN_GRID = 64  # pictures in it at most, the first
PAD = 10
INK, PAPER, FRAME, RIGHT, WRONG = "#22262b", "#ffffff", "#d9dce0", "#2e9e5b", "#d1495b"
MAX_LINES = 5


def caption_grid(
    images: np.ndarray,
    captions: Sequence[str],
    path: str | Path,
    columns: int = 8,
    *,
    correct: Sequence[bool] | None = None,
    resample: str = "lanczos",
) -> None:
    """Writes a PNG grid of images with their captions underneath, atomically.

    Args:
        images: [N, H, W, 3], float in [-1, 1] (clipped; NaN becomes grey) or uint8. Enlarged by a whole
            factor to at least `MIN_SIDE` pixels on the shorter side.
        captions: N texts, wrapped to the image's width.
        path: where the PNG goes; parent folders are made.
        columns: images per row.
        correct: per image, whether the judge recognised it: a green or red bar above the caption.
        resample: "lanczos" (smooth) or "nearest" (the pixels as they are).
    """
    grid = draw_grid(images, captions, columns, correct=correct, resample=resample)
    with atomic(path) as temporary:
        grid.save(temporary, format="PNG")


def draw_grid(
    images: np.ndarray,
    captions: Sequence[str],
    columns: int = 8,
    *,
    correct: Sequence[bool] | None = None,
    resample: str = "lanczos",
) -> Image.Image:
    """The picture that `caption_grid` writes."""
    tiles = _enlarge(to_uint8(images), resample)
    _check_counts(tiles, captions, columns, correct)
    height, width = tiles[0].height, tiles[0].width
    font = ImageFont.load_default(size=max(12, min(20, width // 9)))
    texts = [wrap(text, font, width) for text in captions]
    line_height = sum(font.getmetrics()) + 1
    rows = [range(i, min(i + columns, len(tiles))) for i in range(0, len(tiles), columns)]
    text_heights = [4 + line_height * max(texts[i].count("\n") + 1 for i in row) for row in rows]
    bar = 0 if correct is None else 6
    columns = min(columns, len(tiles))
    sheet_height = PAD + sum(height + bar + h + PAD for h in text_heights)
    sheet = Image.new("RGB", (PAD + columns * (width + PAD), sheet_height), PAPER)
    draw = ImageDraw.Draw(sheet)
    top = PAD
    for row, text_height in zip(rows, text_heights, strict=True):
        for column, i in enumerate(row):
            left = PAD + column * (width + PAD)
            sheet.paste(tiles[i], (left, top))
            draw.rectangle((left, top, left + width - 1, top + height - 1), outline=FRAME)
            if correct is not None:
                mark = (left, top + height + 2, left + width - 1, top + height + 5)
                draw.rectangle(mark, fill=RIGHT if correct[i] else WRONG)
            middle = (left + width / 2, top + height + bar + 2)
            draw.multiline_text(middle, texts[i], INK, font, anchor="ma", align="center", spacing=1)
        top += height + bar + text_height + PAD
    return sheet


def to_uint8(images: np.ndarray) -> np.ndarray:
    """[N, H, W, 3 or 1] float in [-1, 1] -> uint8 [N, H, W, 3], clipped, NaN grey; uint8 keeps its values."""
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise UserError(f"images have shape {images.shape}; give [N, height, width, 3], or 1 for grey")
    images = np.broadcast_to(images, (*images.shape[:-1], 3))
    if images.dtype == np.uint8:
        return images
    images = np.nan_to_num(images.astype(np.float32), nan=0.0)
    return np.round(np.clip((images + 1.0) * 127.5, 0.0, 255.0)).astype(np.uint8)


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """`text` broken into lines of at most `width` pixels; words longer than a line are broken, the rest after
    `MAX_LINES` becomes an ellipsis."""
    lines = [""]
    for word in text.split():
        candidate = f"{lines[-1]} {word}".strip()
        if font.getlength(candidate) <= width:
            lines[-1] = candidate
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    if len(lines) > MAX_LINES:
        last = lines[MAX_LINES - 1]
        while last and font.getlength(last + "...") > width:
            last = last[:-1]
        lines = [*lines[: MAX_LINES - 1], last.rstrip() + "..."]
    return "\n".join(lines)


def _enlarge(images: np.ndarray, resample: str) -> list[Image.Image]:
    """Images as PIL tiles, enlarged by a whole factor until the shorter side has `MIN_SIDE` pixels."""
    height, width = images.shape[1:3]
    factor = max(1, -(-MIN_SIDE // min(height, width)))
    filters = {"lanczos": Image.Resampling.LANCZOS, "nearest": Image.Resampling.NEAREST}
    if resample not in filters:
        raise UserError(f"resample '{resample}' is unknown; accepted: {', '.join(filters)}")
    return [Image.fromarray(i).resize((width * factor, height * factor), filters[resample]) for i in images]


def _check_counts(tiles: Sequence, captions: Sequence, columns: int, correct: Sequence | None) -> None:
    """A grid needs one caption, and one mark if any, for each of at least one image."""
    if not tiles or columns < 1:
        raise UserError(f"a grid of {len(tiles)} images in {columns} columns; give at least one of each")
    if len(captions) != len(tiles) or (correct is not None and len(correct) != len(tiles)):
        raise UserError(
            f"{len(tiles)} images with {len(captions)} captions; give a caption (and mark) for each"
        )
