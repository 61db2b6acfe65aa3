"""Clips in and out: folders of frames, and the videos that PyAV (mp4 and its kin) or Pillow (gif, webp) decode."""

import dataclasses
import functools
import hashlib
import itertools
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import PIL.GifImagePlugin
import PIL.Image
import PIL.ImageSequence
from absl import logging

from contextdiff_jax.data.images import SUFFIXES, reason, square, to_rgb, upright
from contextdiff_jax.data.videos import decoded
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import atomic, user_path

ANIMATIONS = (".gif", ".webp")
WRITTEN = (".mp4", ".gif")
RATE = 8.0  # frames per second of a source that names none: a folder
LEAST = 2  # frames that make a clip
_LONGEST_GIF = 65535  # hundredths of a second that a gif holds
_SLOWEST_MP4 = Fraction(1, 1001)
_COUNTS_TO = {"mpeg4": 65535}  # the largest numerator of a rate that an encoder takes
# What writes an mp4, and how well: the first that the installed FFmpeg has. Builds without GPL parts lack the first.
ENCODERS = {"libx264": {"crf": "12"}, "mpeg4": {"flags": "+qscale", "global_quality": "236"}}


@dataclasses.dataclass(frozen=True)
class Motion:
    """Where the pixels of each frame were in the frame before.

    Attributes:
        flow: (dx, dy) in pixels, float32 [F - 1, H, W, 2]: pixel (x, y) of frame f + 1 was at (x + dx, y + dy) in f.
        valid: where that is so, bool [F - 1, H, W]; elsewhere something was uncovered or has come in.
    """

    flow: np.ndarray
    valid: np.ndarray


@dataclasses.dataclass(frozen=True)
class Clip:
    """A short video.

    Attributes:
        frames: uint8 [F, H, W, 3].
        rate: frames per second at which it is played.
        caption: what it shows; empty where nobody has said.
        masks: of the object, bool [F, H, W]; None where nobody knows.
        motion: None where nobody knows.
        size: (width, height) of the pictures that it was read from; None where it was not.
    """

    frames: np.ndarray
    rate: float = RATE
    caption: str = ""
    masks: np.ndarray | None = None
    motion: Motion | None = None
    size: tuple[int, int] | None = None

    @functools.cached_property
    def digest(self) -> str:
        """What tells one clip's frames from another's."""
        return hashlib.sha256(np.ascontiguousarray(self.frames)).hexdigest()[:16]


def is_longer(path: str | Path, count: int) -> bool:
    """Whether a clip has more frames than `count`; no more than these are decoded. Errors as `read_clip`."""
    frames, _ = _open(place_of(path))
    return sum(1 for _ in itertools.islice(frames, count + 1)) > count


def read_clip(
    path: str | Path,
    image_size: int,
    num_frames: int | None,
    *,
    start: int = 0,
    sampling_rate: int = 1,
    crop: Sequence[int] = (0, 0, 0, 0),
    count_key: str = "num_frames",
) -> Clip:
    """Reads frames start, start + sampling_rate, ...; nothing behind the last of them is decoded.

    Args:
        path: a folder of pictures, taken in the order of the numbers in their names, or a video.
        image_size: side of the frames, which are cropped to the centre and resized.
        num_frames: 2 or more; 8 to 24 are usual. None takes all that there are.
        start: the first frame, from 0.
        sampling_rate: 1 takes every frame, 2 every other one.
        crop: pixels cut off first: left, top, right, bottom.
        count_key: of `data`, which says how many frames; for messages.

    Raises:
        UserError: no such file, no frames, fewer than asked for, frames of several sizes, a crop that leaves nothing, a
            file without pictures or that cannot be decoded.
    """
    path = place_of(path)
    least, asked = (LEAST, f"{LEAST} frames") if num_frames is None else (num_frames, f"{count_key}={num_frames}")
    for name, value, smallest in ((count_key, least, LEAST), ("start", start, 0), ("sampling_rate", sampling_rate, 1)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < smallest:
            raise UserError(f"data.{name}={value!r} is refused; give a whole number from {smallest}")
    if not path.exists():
        raise UserError(f"clip {str(path)!r} does not exist; give a folder of frames, or an mp4, gif or webp file")
    frames, rate_of = _open(path)
    end = None if num_frames is None else start + (num_frames - 1) * sampling_rate + 1
    pictures, sizes, seen = [], set(), 0
    for i, picture in enumerate(itertools.islice(frames, end)):
        seen = i + 1
        if i >= start and (i - start) % sampling_rate == 0:
            sizes.add(picture.size)
            _check_sizes(path, sizes)
            pictures.append(square(cropped(path, picture, crop), image_size))
    _check_count(path, seen, asked, start, sampling_rate, least)
    return Clip(np.stack(pictures), (rate_of(start) or RATE) / sampling_rate, size=sizes.pop())


def place_of(path: str | Path) -> Path:
    """A user's path from the root: FFmpeg takes a relative one with a colon for an address. A name that begins with a
    tilde but with no user's name stays one."""
    return user_path(path).absolute()


def _open(path: Path) -> tuple[Iterator[PIL.Image.Image], Callable[[int], float | None]]:
    """The frames of a source, decoded as they are asked for, and once they have been its rate from a frame on."""
    if path.is_dir():
        # Other systems keep a file ._name beside a picture.
        shown = (p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
        return _pictures(path, sorted(shown, key=_number)), lambda first: RATE
    if path.suffix.lower() in ANIMATIONS:
        return _animation(path)
    return decoded(path)


def _number(path: Path) -> tuple:
    """Orders frame2 before frame10."""
    return tuple((int(p), "") if p.isdecimal() else (-1, p) for p in re.split(r"(\d+)", path.stem)), path.suffix


def _pictures(folder: Path, paths: Sequence[Path]) -> Iterator[PIL.Image.Image]:
    if not paths:
        raise UserError(f"clip {str(folder)!r} holds no pictures; give a folder of frames such as 00000.png")
    yield from map(frame_of, paths)


def frame_of(path: Path) -> PIL.Image.Image:
    """A frame's file as a viewer shows it.

    Raises:
        UserError: whatever is wrong with the file.
    """
    try:
        with PIL.Image.open(path) as picture:
            return as_shown(picture)
    except Exception as error:  # Pillow's decoders raise almost anything
        raise UserError(f"frame {str(path)!r} cannot be read ({reason(error)}); replace it") from error


def as_shown(picture: PIL.Image.Image) -> PIL.Image.Image:
    """A frame as a viewer shows it: upright and without transparency; nothing is left that would turn it once more."""
    return PIL.Image.fromarray(np.asarray(to_rgb(upright(picture))))


def _animation(path: Path) -> tuple[Iterator[PIL.Image.Image], Callable[[int], float]]:
    """gif and webp; the rate is that of the median of the frames' durations: a title may stand for long."""
    damaged = lambda error: UserError(f"clip {str(path)!r} cannot be decoded ({reason(error)}); give an intact file")
    try:
        image = PIL.Image.open(path)
        image.load()
    except Exception as error:
        raise damaged(error) from error
    durations = []  # milliseconds

    def frames() -> Iterator[PIL.Image.Image]:
        try:
            with image:
                for frame in PIL.ImageSequence.Iterator(image):
                    shown = as_shown(frame)
                    durations.append(frame.info.get("duration") or 1000.0 / RATE)
                    yield shown
        except Exception as error:
            raise damaged(error) from error

    return frames(), lambda first: 1000.0 / statistics.median(durations[first:])


def _check_sizes(path: Path, sizes: set[tuple[int, int]]) -> None:
    if len(sizes) > 1:
        words = " and ".join(f"{w} x {h}" for w, h in sorted(sizes))
        raise UserError(f"clip {str(path)!r} has frames of several sizes ({words}); give frames of one size")


def _check_count(path: Path, seen: int, asked: str, start: int, sampling_rate: int, num_frames: int) -> None:
    """Refuses a clip that ends before the last frame that was asked for; `asked` is the key and its value."""
    if seen > start + (num_frames - 1) * sampling_rate:
        return
    if seen < LEAST:
        raise UserError(f"clip {str(path)!r} has {seen} frame{'s' * (seen != 1)}; a clip needs {LEAST} or more")
    fits = max(0, (seen - 1 - start) // sampling_rate + 1)
    remedy = f"at most {asked.split('=')[0]}={fits} fit" if fits >= LEAST else "start earlier or sample more densely"
    raise UserError(
        f"clip {str(path)!r} has {seen} frames, too few for {asked} from start={start} at "
        f"sampling_rate={sampling_rate}; {remedy}"
    )


def cropped(path: Path, picture: PIL.Image.Image, crop: Sequence[int]) -> PIL.Image.Image:
    """The picture without its margins."""
    if len(crop) != 4 or any(isinstance(c, bool) or not isinstance(c, int | np.integer) or c < 0 for c in crop):
        raise UserError(f"data.crop={tuple(crop)} is refused; give pixels to cut off: (left, top, right, bottom)")
    left, top, right, bottom = crop
    if left + right >= picture.width or top + bottom >= picture.height:
        raise UserError(f"data.crop={tuple(crop)} leaves nothing of the {picture.width} x {picture.height} of {path}")
    return picture.crop((left, top, picture.width - right, picture.height - bottom)) if any(crop) else picture


def write_clip(path: str | Path, frames: np.ndarray, rate: float = RATE) -> None:
    """Writes an mp4 (H.264, or what `encoder` finds in its place) or a gif, whole or not at all.

    Args:
        path: its suffix says which.
        frames: uint8 [F, H, W, 3]. An mp4 needs even sides: an odd one is filled up by repeating its last pixels.
        rate: frames per second.

    Raises:
        UserError: another suffix, frames of another shape, no encoder, or sides or a rate that it does not take.
    """
    path, frames = Path(path), np.asarray(frames)
    if path.suffix.lower() not in WRITTEN:
        raise UserError(f"clip {str(path)!r}: suffix {path.suffix!r} is not written; accepted: {', '.join(WRITTEN)}")
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise UserError(f"frames of {frames.dtype} {frames.shape} cannot be written; give uint8 [F, H, W, 3]")
    with atomic(path) as temporary:
        (_write_gif if path.suffix.lower() == ".gif" else _write_mp4)(temporary, frames, rate)


def _write_gif(path: Path, frames: np.ndarray, rate: float) -> None:
    """Frame by frame: Pillow's `save` makes one of pictures that repeat, and a clip would come back shorter."""
    pictures = [PIL.Image.fromarray(f).convert("P", palette=PIL.Image.Palette.ADAPTIVE) for f in frames]
    duration = min(max(2, round(100.0 / rate)), _LONGEST_GIF) * 10  # gifs count in hundredths of a second
    parts, _ = PIL.GifImagePlugin.getheader(pictures[0].copy(), info={"loop": 0})
    for picture in pictures:
        parts += PIL.GifImagePlugin.getdata(picture, duration=duration, include_color_table=True)
    path.write_bytes(b"".join(parts) + b";")


@functools.cache
def encoder() -> str:
    """The first of `ENCODERS` that is there; said once where it is not the first.

    Raises:
        UserError: none is.
    """
    import av

    for name in ENCODERS:
        try:
            av.codec.Codec(name, "w")
        except ValueError:  # PyAV's unknown codec is one
            continue
        if name != next(iter(ENCODERS)):
            logging.warning("this FFmpeg has no libx264; mp4 files are written by %s, which browsers do not play", name)
        return name
    raise UserError(
        f"mp4 files cannot be written: this FFmpeg has none of the encoders {', '.join(ENCODERS)}; install PyAV's own "
        "build: pip install --force-reinstall --only-binary=:all: av"
    )


def _rate_of_mp4(rate: float, largest: int | None) -> Fraction:
    """Frames per second as an mp4 says them: the nearest fraction whose numerator is no larger than `largest`."""
    found = max(Fraction(rate).limit_denominator(1001), _SLOWEST_MP4)
    if largest is None or found.numerator <= largest:
        return found
    rate = min(found, largest)
    return Fraction(rate).limit_denominator(int(largest / rate))


def _write_mp4(path: Path, frames: np.ndarray, rate: float) -> None:
    import av

    _, height, width, _ = frames.shape
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    try:
        with av.open(str(path), "w") as container:
            stream = container.add_stream(encoder(), rate=_rate_of_mp4(rate, _COUNTS_TO.get(encoder())))
            stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
            stream.options = ENCODERS[encoder()]
            # Said, or else players guess by the size: a conversion by BT.601 to its usual range, of sRGB.
            context = stream.codec_context
            context.colorspace, context.color_range, context.color_primaries, context.color_trc = 5, 1, 1, 13
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
    except (av.error.ExternalError, av.error.ArgumentError, OverflowError, ValueError) as error:
        what = f"an mp4 of {width} x {height} pixels at {rate:g} frames per second"
        raise UserError(f"{what} cannot be written ({error}); give smaller frames, or another rate") from error
