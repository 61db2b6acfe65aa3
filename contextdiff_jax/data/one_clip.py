"""One clip as a data source: what one-shot tuning trains on and what is edited."""

import dataclasses
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from absl import logging

from contextdiff_jax.data.base import ImageSource
from contextdiff_jax.data.clips import Clip, Motion, cropped, place_of, read_clip
from contextdiff_jax.data.images import square
from contextdiff_jax.data.moving import moving
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import read_object, write_json

CLIP = "clip.json"
MANY = 240  # frames


def window_starts(length: int, window: int, overlap: int) -> np.ndarray:
    """First frames of the fewest windows that overlap by `overlap` frames or more, evenly spread, int [W].

    Raises:
        UserError: a clip shorter than a window; of a longer one, an overlap that is no smaller than a window.
    """
    if length < window:
        raise UserError(
            f"a clip of {length} frames is shorter than a window of data.num_frames={window}; give {window} frames or "
            "more, or a model of shorter windows"
        )
    if length == window:
        return np.zeros(1, np.int32)
    if not 0 <= overlap < window:
        raise UserError(
            f"data.overlap={overlap} does not fit windows of data.num_frames={window}; accepted: 0 to {window - 1}"
        )
    count = -(-(length - overlap) // (window - overlap))
    return np.rint(np.linspace(0, length - window, max(1, count))).astype(np.int32)


class ClipSource(ImageSource):
    """A source whose records are the windows of one clip: image uint8 [F, H, W, 3], caption, index; in every split.

    Attributes:
        clip: with its masks and its motion where they are known.
        window: F, frames of a record; a clip that is no longer has one record.
    """

    def __init__(self, clip: Clip, window: int, overlap: int):
        self.clip, self.window = clip, window
        self._starts = window_starts(len(clip.frames), window, overlap)

    def __len__(self) -> int:
        return len(self._starts)

    def __repr__(self) -> str:
        return f"ClipSource({self.clip.caption!r}, {self.identity})"

    @property
    def identity(self) -> str:
        """What tells this clip from another, or from itself before it was changed."""
        return f"clip {self.clip.digest}"

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A window."""
        self.check_index(index)
        first = self._starts[index]
        window = self.clip.frames[first : first + self.window]
        return {"image": window, "caption": self.clip.caption, "index": int(index)}


def clip_of(cfg_data: Any, whole: bool = False) -> Clip:
    """The clip of a config's `data` section: the user's at `path`, or an embedded one.

    Args:
        cfg_data: path, caption, num_frames, length, start, sampling_rate, crop, mask_path, flow_path, image_size; with
            no path preset, index, seed.
        whole: without a length, whether all frames of the user's clip are read, or the first `num_frames` of them.

    Raises:
        UserError: what `read_clip` raises; a user's clip without a caption; masks or a flow that do not fit it.
    """
    size, count = cfg_data.image_size, cfg_data.length or cfg_data.num_frames
    if not cfg_data.path:
        clip = moving(cfg_data.preset, cfg_data.index, cfg_data.seed).clip(count, size)
        return dataclasses.replace(clip, caption=cfg_data.caption or clip.caption)
    if not cfg_data.caption.strip():
        raise UserError(
            f"data.caption is empty; say what {cfg_data.path} shows, e.g. --config.data.caption='a jeep on a road'"
        )
    where = dict(start=cfg_data.start, sampling_rate=cfg_data.sampling_rate, crop=tuple(cfg_data.crop))
    where["count_key"] = "length" if cfg_data.length or whole else "num_frames"
    clip = read_clip(cfg_data.path, size, None if whole and not cfg_data.length else count, **where)
    if whole and not cfg_data.length and len(clip.frames) > MANY:
        long = "all %d frames of %s are taken, which may take hours; length=%d takes fewer"
        logging.warning(long, len(clip.frames), cfg_data.path, MANY)
    masks = None
    if cfg_data.mask_path:
        masks = _white(read_clip(cfg_data.mask_path, size, len(clip.frames), **where), clip, cfg_data.mask_path)
    motion = read_flow(cfg_data.flow_path, clip) if cfg_data.flow_path else None
    return dataclasses.replace(clip, caption=cfg_data.caption.strip(), masks=masks, motion=motion)


def _white(drawn: Clip, clip: Clip, path: str) -> np.ndarray:
    """Where the frames of a mask are white, bool [F, H, W].

    Raises:
        UserError: frames of another size than the clip's, whose crop would be another, or all of one colour.
    """
    if drawn.size != clip.size:
        sizes = " and the clip of ".join(f"{width} x {height}" for width, height in (drawn.size, clip.size))
        raise UserError(f"data.mask_path={path!r} has frames of {sizes}; give masks of the clip's size")
    white = _is_white(drawn.frames)
    _check_marks(white, f"data.mask_path={path!r} marks", "draw the object white on black")
    return white


def _check_marks(masks: np.ndarray, said: str, remedy: str) -> None:
    """Refuses masks bool [F, H, W] that tell no object from what is around it: all of a clip, or none of it."""
    if masks.all() or not masks.any():
        what = "everything" if masks.all() else "nothing"
        raise UserError(f"{said} {what} of the frames as they are edited; {remedy}")


def _is_white(frames: np.ndarray) -> np.ndarray:
    """[F, H, W, 3] -> bool [F, H, W]."""
    return frames.mean(axis=-1) > 127


def given_masks(masks: np.ndarray, clip: Clip, crop: Sequence[int]) -> np.ndarray:
    """A caller's masks of a clip, bool [F, H, W] as its frames are: either as large as these, or as the pictures that
    they were read from, and then cropped and fitted like them.

    Raises:
        UserError: masks of another shape, or that mark nothing or everything.
    """
    masks, own = np.asarray(masks), clip.frames.shape[:3]
    read = own if clip.size is None else (own[0], *clip.size[::-1])
    if masks.shape == read:
        pictures = (PIL.Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)) for mask in masks)
        found = _is_white(np.stack([square(cropped("masks", picture, crop), own[1]) for picture in pictures]))
    elif masks.shape != own:
        needed = " or ".join(map(str, dict.fromkeys((read, own))))
        raise UserError(f"masks of shape {masks.shape}; this clip needs {needed}")
    else:
        found = masks.astype(bool)
    _check_marks(found, "masks=... mark", "give True on the object alone, or leave them out")
    return found


def check_identity(clip: Clip, folder: str | Path) -> bool:
    """Whether a run's folder says already which clip it was tuned on; it is this one.

    Raises:
        UserError: the folder was tuned on another clip, or this one has changed since.
    """
    path = Path(folder) / CLIP
    if not path.is_file():
        return False
    recorded = read_object(path, "delete it")
    if "frames" not in recorded:
        raise UserError(f"{path} is damaged (it does not say which frames); delete it")
    if (then := recorded["frames"]) != clip.digest:
        raise UserError(
            f"{folder} was tuned on other frames ({then}) than the config names now ({clip.digest}); name that clip as "
            "it was read then (config.data.path, index, start, ...), put it back as it was, or take another --workdir"
        )
    return True


def keep_identity(clip: Clip, folder: str | Path) -> None:
    """Writes into a run's folder which clip it was tuned on, or compares with what is there.

    Raises:
        UserError: as `check_identity`.
    """
    if not check_identity(clip, folder):
        write_json({"frames": clip.digest, "caption": clip.caption}, Path(folder) / CLIP)


def read_flow(path: str | Path, clip: Clip) -> Motion:
    """A user's optical flow: a .npy of (dx, dy), float [F - 1, H, W, 2] in pixels of the frames as they are edited.

    Pixel (x, y) of frame f + 1 was at (x + dx, y + dy) in frame f; NaN, or a place outside the frame, where it was
    nowhere.

    Raises:
        UserError: a file that cannot be read, or another shape.
    """
    try:
        flow = np.load(place_of(path), allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"data.flow_path={str(path)!r} cannot be read ({error}); give a .npy file") from error
    if not isinstance(flow, np.ndarray) or flow.dtype.kind not in "fiu":
        raise UserError(f"data.flow_path={str(path)!r} is no array of numbers; give a .npy file of (dx, dy)")
    expected = (len(clip.frames) - 1, *clip.frames.shape[1:3], 2)
    if flow.shape != expected:
        raise UserError(f"data.flow_path={str(path)!r} has the shape {flow.shape}; this clip needs {expected}")
    height, width = clip.frames.shape[1:3]
    ys, xs = np.mgrid[:height, :width]
    from_x, from_y = xs + flow[..., 0], ys + flow[..., 1]
    valid = (from_x >= 0) & (from_x <= width - 1) & (from_y >= 0) & (from_y <= height - 1)  # NaN is neither
    return Motion(np.where(valid[..., None], flow, 0.0).astype(np.float32), valid)
