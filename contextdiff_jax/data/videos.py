"""Videos through FFmpeg (PyAV): frames as players show them, upright, as wide as they are meant, on white, and their
rate."""

import statistics
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import PIL.Image

from contextdiff_jax.data.images import to_rgb
from contextdiff_jax.errors import UserError

# Of these codecs FFmpeg's own decoders leave transparency out.
_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


def decoded(path: Path) -> tuple[Iterator[PIL.Image.Image], Callable[[int], float | None]]:
    """The frames of whatever FFmpeg decodes, and, once they have been decoded, their rate from a frame on, None where
    nothing says it.

    Raises:
        UserError: no video, one that cannot be decoded, or not with its transparency.
    """
    import av

    damaged = lambda error: UserError(f"clip {str(path)!r} cannot be decoded ({error}); give an intact file")
    try:
        # Titles in other encodings than UTF-8 are nobody's concern here.
        container = av.open(str(path), metadata_errors="replace")
    except (av.FFmpegError, OSError) as error:
        raise damaged(error) from error
    if not container.streams.video:
        has_sound = bool(container.streams.audio)
        container.close()
        if not has_sound:
            raise damaged("it is cut off or no video")
        raise UserError(f"clip {str(path)!r} has sound but no pictures; give a video")
    stream = container.streams.best("video")  # the first may be a still, as a cover is
    average, times = stream.average_rate or stream.guessed_rate, []
    ratio = stream.sample_aspect_ratio or 1

    def frames() -> Iterator[PIL.Image.Image]:
        with container:
            try:
                for frame in _frames_of(container, stream, path):
                    times.append(None if frame.pts is None else frame.pts * frame.time_base)
                    yield _turned(_widened(_shown(frame), ratio), frame.rotation)
            except av.FFmpegError as error:
                raise damaged(error) from error

    return frames(), lambda first: _rate(times[first:], average, stream.time_base)


def unreadable(path: Path) -> str:
    """Why the first frame of a video cannot be decoded; "" where it can, or where nothing here decodes its kind."""
    try:
        import av
    except ImportError:
        return ""
    try:
        # FFmpeg takes a relative path with a colon for an address.
        with av.open(str(path.absolute()), metadata_errors="replace") as container:
            if not container.streams.video:
                return "no pictures in it"
            return "" if next(container.decode(video=0), None) is not None else "no frame in it"
    except av.DecoderNotFoundError:
        return ""
    except (av.FFmpegError, OSError) as error:
        return str(error.strerror or error)


def _frames_of(container: Any, stream: Any, path: Path) -> Iterator[Any]:
    """Decoded frames, with their transparency."""
    import av

    codec = stream.codec_context.codec.canonical_name
    if stream.metadata.get("alpha_mode") != "1" or codec not in _WITH_ALPHA:
        yield from container.decode(stream)
        return
    try:
        decoder = av.CodecContext.create(_WITH_ALPHA[codec], "r")
    except (ValueError, av.FFmpegError) as error:  # codecs that are not there are ValueErrors
        raise UserError(
            f"clip {str(path)!r} has transparency, for which this PyAV lacks the decoder {_WITH_ALPHA[codec]}; give a "
            "folder of png frames, or a video without it"
        ) from error
    for packet in container.demux(stream):
        yield from decoder.decode(packet)


def _rate(times: list[Fraction | None], average: Fraction | None, tick: Fraction | None) -> float | None:
    """Frames per second, by the median distance of frames [s]: the average over a file in which one picture stands for
    long says nothing of the others. Times are rounded to ticks, so that an average that agrees is the more exact."""
    distances = [b - a for a, b in zip(times, times[1:], strict=False) if None not in (a, b) and b > a]
    if not distances:
        return float(average) if average else None
    distance = statistics.median(distances)
    if average and abs(1 / Fraction(average) - distance) <= (tick or 0):
        return float(average)
    return float(1 / distance)


def _shown(frame: Any) -> PIL.Image.Image:
    """A decoded frame; one with transparency on white, as everywhere."""
    if not any(component.is_alpha for component in frame.format.components):
        return frame.to_image()
    return to_rgb(PIL.Image.fromarray(frame.to_ndarray(format="rgba")))


def _widened(picture: PIL.Image.Image, ratio: Fraction | int) -> PIL.Image.Image:
    """A frame as wide as players show it, whose pixels are `ratio` times as wide as high (DV, anamorphic discs)."""
    width = max(1, round(picture.width * ratio))
    return picture if width == picture.width else picture.resize((width, picture.height), PIL.Image.Resampling.LANCZOS)


def _turned(picture: PIL.Image.Image, degrees: int) -> PIL.Image.Image:
    """A frame turned counter-clockwise to the nearest quarter, as phones store how they were held."""
    turn = 90 * round(degrees / 90)
    return picture.rotate(turn, expand=True) if turn else picture
