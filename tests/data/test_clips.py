"""Clips: files of every kind in and out, embedded clips with exact masks and motion, and one line for bad input."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from contextdiff_jax.data import clips
from contextdiff_jax.data.clips import read_clip, write_clip
from contextdiff_jax.data.moving import moving
from contextdiff_jax.data.one_clip import clip_of, read_flow
from contextdiff_jax.data.videos import unreadable
from contextdiff_jax.errors import UserError

SIZE = 32


def frames(count: int = 10, height: int = 32, width: int = 32) -> np.ndarray:
    """Frame i is a grey of 10 i with a brighter square: tells frames apart after compression."""
    out = np.repeat(np.arange(count, dtype=np.uint8)[:, None, None, None] * 20, 3, axis=-1)
    out = np.tile(out, (1, height, width, 1))
    out[:, 8:16, 8:16] += 40
    return out


def write_folder(folder, pictures) -> str:
    folder.mkdir()
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"frame{i}.png")
    return str(folder)


@pytest.mark.parametrize("kind", ["folder", ".mp4", ".gif", ".webp"])
def test_frames_come_back_in_order_and_at_their_rate(kind, tmp_path):
    made, path = frames(12), tmp_path / f"clip{kind.removeprefix('folder')}"
    if kind == "folder":
        write_folder(path, made)
    elif kind == ".webp":
        first, *rest = (Image.fromarray(f) for f in made)
        first.save(path, save_all=True, append_images=rest, duration=100, lossless=True)
    else:
        write_clip(path, made, 10.0)
    clip = read_clip(path, SIZE, 4, start=1, sampling_rate=3)
    assert clip.frames.shape == (4, SIZE, SIZE, 3)
    assert np.abs(clip.frames.astype(int) - made[[1, 4, 7, 10]]).max() <= (8 if kind == ".mp4" else 1)
    assert clip.rate == pytest.approx((8.0 if kind == "folder" else 10.0) / 3)


@pytest.mark.parametrize("kind", [".gif", ".webp"])
def test_a_title_that_stands_long_is_not_the_rate(kind, tmp_path):
    first, *rest = (Image.fromarray(f) for f in frames(5))
    first.save(tmp_path / f"title{kind}", save_all=True, append_images=rest, duration=[2000, 40, 40, 40, 40])
    assert read_clip(tmp_path / f"title{kind}", SIZE, 4).rate == pytest.approx(25.0)


def encoded(path, codec, form, times, pictures, **options):
    """A video of pictures shown at these times, in hundredths of a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=100, options=options)
        stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], form
        stream.time_base = stream.codec_context.time_base = Fraction(1, 100)
        for time, picture in zip(times, pictures, strict=True):
            kind = "rgba" if picture.shape[-1] == 4 else "rgb24"
            frame = av.VideoFrame.from_ndarray(picture, format=kind).reformat(format=form)
            frame.pts, frame.time_base = time, Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_a_picture_that_stands_long_is_not_the_rate_of_a_video(tmp_path):
    """25 a second, then one of three seconds, then 10 a second; and a container whose times are rounded."""
    times = [0, 4, 8, 12, 316, 326, 336, 346, 356]
    path = encoded(tmp_path / "film.mkv", "mpeg4", "yuv420p", times, frames(9))
    assert read_clip(path, SIZE, 9).rate == pytest.approx(10.0)
    assert read_clip(path, SIZE, 5).rate == pytest.approx(25.0)
    assert read_clip(path, SIZE, 2, start=5, sampling_rate=2).rate == pytest.approx(5.0)
    for rate in (30.0, 24000 / 1001):
        write_clip(tmp_path / "even.mp4", frames(6), rate)
        with av.open(str(tmp_path / "even.mp4")) as source, av.open(str(tmp_path / "even.mkv"), "w") as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                packet.stream = stream
                target.mux(packet) if packet.dts is not None else None
        assert read_clip(tmp_path / "even.mkv", SIZE, 6).rate == pytest.approx(rate, rel=1e-4)


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_the_transparency_of_webm_is_on_white(codec, tmp_path, monkeypatch):
    pictures = np.zeros((3, SIZE, SIZE, 4), np.uint8)
    pictures[:, 8:24, 8:24] = 0, 0, 0, 255
    options = {"auto-alt-ref": "0"}
    path = encoded(tmp_path / "clear.webm", codec, "yuva420p", [0, 10, 20], pictures, **options)
    clip = read_clip(path, SIZE, 3)
    assert clip.rate == pytest.approx(10.0)
    assert clip.frames[:, 11:21, 11:21].max() < 40 and clip.frames[:, :5].min() > 200
    monkeypatch.setattr(av.CodecContext, "create", no_codec)
    with pytest.raises(UserError, match=f"has transparency, for which this PyAV lacks the decoder {codec};"):
        read_clip(path, SIZE, 3)


def no_codec(name, mode):
    raise av.codec.codec.UnknownCodecError(name)


def test_a_gif_keeps_frames_that_repeat(tmp_path):
    made = frames(6)[[0, 0, 1, 2, 2, 2, 0]]
    write_clip(tmp_path / "still.gif", made, 5.0)
    with Image.open(tmp_path / "still.gif") as image:
        assert (image.n_frames, image.info["loop"]) == (7, 0)
    clip = read_clip(tmp_path / "still.gif", SIZE, None)
    assert clip.rate == 5.0
    np.testing.assert_array_equal(clip.frames, made)


@pytest.mark.parametrize("kind", [".gif", ".mp4"])
def test_a_clip_of_hours_is_written(kind, tmp_path):
    """As slow as the format can say."""
    write_clip(tmp_path / f"slow{kind}", frames(3), 1e-5)
    assert read_clip(tmp_path / f"slow{kind}", SIZE, 3).rate < 0.01


def test_without_the_usual_encoder_another_one_writes(tmp_path, monkeypatch):
    """Said once, and where none is there, before the work that makes what would be written."""
    codec, said, missing = av.codec.Codec, [], ["libx264"]

    def of(name, mode):
        return codec("nothing" if name in missing else name, mode)

    monkeypatch.setattr(av.codec, "Codec", of)
    monkeypatch.setattr(clips.logging, "warning", lambda text, *values: said.append(text % values))
    clips.encoder.cache_clear()
    try:
        for _ in range(2):
            write_clip(tmp_path / "x.mp4", frames(3), 8)
        with av.open(str(tmp_path / "x.mp4")) as video:
            assert video.streams.video[0].codec_context.name == "mpeg4"
        found = read_clip(tmp_path / "x.mp4", SIZE, 3)
        assert found.rate == 8 and np.abs(found.frames.astype(int) - frames(3)).mean() < 5
        for rate, closest in ((90_000 / 1001, 90_000 / 1001), (60_000 / 1001, 60_000 / 1001), (1e6, 65535)):
            write_clip(tmp_path / "x.mp4", frames(3), rate)
            with av.open(str(tmp_path / "x.mp4")) as video:
                assert float(video.streams.video[0].average_rate) == pytest.approx(closest, rel=1e-5)
        assert len(said) == 1 and "written by mpeg4" in said[0]
        clips.encoder.cache_clear()
        missing.append("mpeg4")
        with pytest.raises(UserError, match="none of the encoders libx264, mpeg4; install"):
            clips.encoder()
    finally:
        clips.encoder.cache_clear()


def test_names_that_mean_something_elsewhere(tmp_path, monkeypatch):
    """A tilde without a user, and what FFmpeg takes for an address; and what other systems keep beside a picture."""
    monkeypatch.chdir(tmp_path)
    for name in ("~clip.mp4", "12:30.mp4"):
        write_clip("plain.mp4", frames(2), 8.0)
        (tmp_path / "plain.mp4").rename(tmp_path / name)
        assert len(read_clip(name, SIZE, 2).frames) == 2 and not unreadable(Path(name))
    np.save("~flow.npy", np.zeros((1, SIZE, SIZE, 2)))
    assert read_flow("~flow.npy", read_clip("~clip.mp4", SIZE, 2)).valid.all()
    folder = write_folder(tmp_path / "frames", frames(2))
    (tmp_path / "frames" / "._frame0.png").write_bytes(b"\x00\x05\x16\x07")
    assert len(read_clip(folder, SIZE, 2).frames) == 2


def test_frames_are_as_wide_as_they_are_shown_and_on_white(tmp_path):
    """Anamorphic video, and one with transparency: what is shown is a square on white."""
    kinds = ("dv.mp4", "mpeg4", "yuv420p", 2, 16), ("clear.mov", "qtrle", "argb", 1, 32)
    for name, codec, form, ratio, width in kinds:
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream(codec, rate=8)
            stream.width, stream.height, stream.pix_fmt = width, 32, form
            stream.codec_context.sample_aspect_ratio = Fraction(ratio)
            pixels = np.zeros((32, width, 4), np.uint8)
            pixels[8:24, width // 4 : 3 * width // 4] = 0, 0, 0, 255
            pixels = pixels if ratio == 1 else np.repeat(255 - pixels[..., 3:], 3, axis=-1)
            picture = av.VideoFrame.from_ndarray(pixels, format="rgba" if ratio == 1 else "rgb24")
            for _ in range(3):
                container.mux(stream.encode(picture.reformat(format=form)))
            container.mux(stream.encode(None))
        clip = read_clip(tmp_path / name, SIZE, 2)
        assert clip.size == (32, 32)
        assert clip.frames[:, 11:21, 11:21].max() < 40 and clip.frames[:, :5].min() > 200
        assert clip.frames[:, :, :5].min() > 200 and clip.frames[:, :, 27:].min() > 200


def test_an_odd_side_is_filled_up_and_a_crop_is_cut_off(tmp_path):
    made = frames(3, 31, 33)
    made[:, :, :5] = 255
    write_clip(tmp_path / "odd.mp4", made, 4.0)
    clip = read_clip(tmp_path / "odd.mp4", 16, 3, crop=(8, 0, 0, 0))
    assert clip.frames[0].max() < 60


def test_frames_are_read_as_a_viewer_shows_them(tmp_path):
    """Held upright by a phone: stored on their side, with a note that they are to be turned clockwise."""
    stored = np.zeros((3, 24, 48, 3), np.uint8)
    stored[:, :8, :8] = 200  # its upper left is the upper right of what is shown
    write_clip(tmp_path / "phone.mp4", stored, 8.0)
    data = bytearray((tmp_path / "phone.mp4").read_bytes())
    # ISO 14496-12, 8.3.2: (p, q) is shown at (c q + x, b p), here (24 - q, p).
    matrix = data.index(b"tkhd") + 44
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 24 << 16, 0, 1 << 30)
    (tmp_path / "phone.mp4").write_bytes(data)
    (tmp_path / "phone").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    for i, picture in enumerate(stored):
        Image.fromarray(picture).save(tmp_path / "phone" / f"{i}.jpg", exif=exif, quality=95)
    for name in ("phone.mp4", "phone"):
        clip = read_clip(tmp_path / name, 24, 3, crop=(0, 0, 0, 24))
        assert clip.size == (24, 48)
        assert clip.frames[:, 1:7, 17:23].min() > 150 and clip.frames[:, :, :14].max() < 50
    layers = [Image.new("RGBA", (SIZE, SIZE), (90, 0, 0, 0)) for _ in range(2)]
    for i, layer in enumerate(layers):
        layer.putpixel((i, 0), (0, 0, 0, 255))
    layers[0].save(tmp_path / "clear.webp", save_all=True, append_images=layers[1:], lossless=True, exact=True)
    assert read_clip(tmp_path / "clear.webp", SIZE, 2).frames[:, 2:].min() == 255  # on white, as a folder's pictures


def test_a_title_in_another_encoding_does_no_harm(tmp_path):
    with av.open(str(tmp_path / "title.avi"), "w") as container:
        container.metadata["title"] = "caf\xe9"
        stream = container.add_stream("mpeg4", rate=8)
        stream.height = stream.width = SIZE
        for frame in (*frames(3), None):
            container.mux(stream.encode(None if frame is None else av.VideoFrame.from_ndarray(frame, format="rgb24")))
    data = (tmp_path / "title.avi").read_bytes()
    assert b"caf\xc3\xa9" in data
    (tmp_path / "title.avi").write_bytes(data.replace(b"caf\xc3\xa9", b"caf\xe9 "))
    assert read_clip(tmp_path / "title.avi", SIZE, 3).frames.shape == (3, SIZE, SIZE, 3)


def test_frames_of_too_many_pixels_and_flows_that_are_none(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "frames", frames(4))
    clip = read_clip(folder, SIZE, 4)
    np.savez(tmp_path / "flow.npz", flow=np.zeros((3, SIZE, SIZE, 2)))
    (tmp_path / "empty.npy").write_bytes(b"")
    np.save(tmp_path / "words.npy", np.full((3, SIZE, SIZE, 2), "left"))
    refused = {"flow.npz": "no array of numbers", "empty.npy": "cannot be read", "words.npy": "no array of numbers"}
    for name, message in refused.items():
        with pytest.raises(UserError, match=message):
            read_flow(tmp_path / name, clip)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", SIZE)
    with pytest.raises(UserError, match="cannot be read"):
        read_clip(folder, SIZE, 4)


def test_bad_clips_are_refused_in_one_line(tmp_path):
    read = lambda path, *args, **how: read_clip(path, SIZE, *(args or (4,)), **how)
    folder = write_folder(tmp_path / "frames", frames(6))
    (tmp_path / "empty").mkdir()
    one = write_folder(tmp_path / "one", frames(1))
    mixed = write_folder(tmp_path / "mixed", [*frames(2), *frames(2, 24, 32)])
    (tmp_path / "corrupt.mp4").write_bytes(b"no video at all" * 100)
    write_clip(tmp_path / "whole.mp4", frames(9), 8.0)
    cut = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(cut[: len(cut) // 2])
    (tmp_path / "corrupt.gif").write_bytes(b"GIF89a" + b"\x00" * 10)
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        sound.sample_rate, sound.time_base = 16000, Fraction(1, 16000)
        for part in (sound, None):
            container.mux(stream.encode(part))
    for message, path, args, how in (
        ("does not exist", tmp_path / "nowhere", (), {}),
        ("holds no pictures", tmp_path / "empty", (), {}),
        ("has 1 frame; a clip needs 2", one, (), {}),
        ("frames of several sizes", mixed, (), {}),
        ("cannot be decoded", tmp_path / "corrupt.mp4", (), {}),
        ("cannot be decoded", tmp_path / "cut.mp4", (), {}),
        ("cannot be decoded", tmp_path / "corrupt.gif", (), {}),
        ("has sound but no pictures", tmp_path / "sound.mp4", (), {}),
        ("at most num_frames=3 fit", folder, (4,), {"sampling_rate": 2}),
        ("too few for length=7 .* at most length=6 fit", folder, (7,), {"count_key": "length"}),
        ("start earlier", folder, (4,), {"start": 5}),
        ("num_frames=1 is refused", folder, (1,), {}),
        ("has 1 frame; a clip needs 2", one, (None,), {}),
        ("too few for 2 frames from start=5 .* start earlier", folder, (None,), {"start": 5}),
        ("leaves nothing", folder, (4,), {"crop": (16, 0, 16, 0)}),
    ):
        with pytest.raises(UserError, match=message) as caught:
            read(path, *args, **how)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="is not written"):
        write_clip(tmp_path / "clip.avi", frames(2))
    for sides, rate in (((16, 16448), 8.0), ((16, 16), 3e9)):
        with pytest.raises(UserError, match=f"an mp4 of {sides[1]} x 16 pixels at .* cannot be written"):
            write_clip(tmp_path / "clip.mp4", np.zeros((2, *sides, 3), np.uint8), rate)
    assert not (tmp_path / "clip.mp4").exists()


def test_an_mp4_says_which_colours_it_has(tmp_path):
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [200, 120, 40]], np.uint8)
    write_clip(tmp_path / "x.mp4", np.broadcast_to(np.repeat(colours, 16, axis=0), (3, 32, 64, 3)), 8.0)
    with av.open(str(tmp_path / "x.mp4")) as video:
        found = next(video.decode(video=0))
        assert (found.colorspace, found.color_range) == (5, 1)
        np.testing.assert_allclose(found.to_ndarray(format="rgb24")[16, 8::16], colours, atol=3)


def test_a_long_clip_is_known_without_reading_it_whole(tmp_path):
    write_clip(tmp_path / "x.gif", frames(6), 8.0)
    assert clips.is_longer(tmp_path / "x.gif", 5) and not clips.is_longer(tmp_path / "x.gif", 6)


@pytest.mark.parametrize("preset", ["demo", "pairs"])
def test_embedded_clips_have_exact_masks_and_motion(preset):
    """Each frame is the one before, moved by the flow, to the last bit; outside the masks nothing moves."""
    size = 64
    ys, xs = np.mgrid[:size, :size]
    for index in range(3):
        clip = moving(preset, index).clip(16, size)  # long enough to turn back
        assert clip.caption and clip.digest == moving(preset, index).clip(16, size).digest
        for f in range(15):
            dx, dy = clip.motion.flow[f].astype(int).transpose(2, 0, 1)
            warped = clip.frames[f][(ys + dy).clip(0, size - 1), (xs + dx).clip(0, size - 1)]
            valid = clip.motion.valid[f]
            assert np.array_equal(warped[valid], clip.frames[f + 1][valid])
            assert valid.mean() > 0.9
            never = ~clip.masks.any(axis=0)
            assert np.array_equal(clip.frames[f][never], clip.frames[f + 1][never])
        assert 0.03 < clip.masks.mean() < 0.5 and (clip.masks[0] != clip.masks[1]).any()


def section(**changed) -> ConfigDict:
    given = dict(path="", caption="", num_frames=4, length=0, start=0, sampling_rate=1, crop=(0, 0, 0, 0), mask_path="")
    return ConfigDict(given | dict(flow_path="", image_size=SIZE, preset="demo", index=0, seed=0) | changed)


def test_a_users_clip_has_a_caption_masks_and_flow(tmp_path):
    path = write_folder(tmp_path / "frames", frames(6))
    painted = np.zeros((6, 32, 32, 3), np.uint8)
    painted[:, :10] = 255
    masks = write_folder(tmp_path / "masks", painted)
    flow = np.zeros((3, SIZE, SIZE, 2), np.float32)
    flow[0, 0, 0] = np.nan
    flow[1, 5, SIZE - 1], flow[2, 0, 5] = (0.5, 0), (0, -1)  # to where there are no pixels
    np.save(tmp_path / "flow.npy", flow)
    given = dict(path=path, caption=" a square ", mask_path=masks, flow_path=str(tmp_path / "flow.npy"))
    clip = clip_of(section(**given))
    assert clip.caption == "a square"
    assert clip.masks[:, :10].all() and not clip.masks[:, 10:].any()
    assert np.argwhere(~clip.motion.valid).tolist() == [[0, 0, 0], [1, 5, SIZE - 1], [2, 0, 5]]
    with pytest.raises(UserError, match="data.caption is empty"):
        clip_of(section(path=path))
    for drawn, message in ((0 * painted, "marks nothing"), (painted[:, :30], "32 x 30 and the clip of 32 x 32")):
        wrong = write_folder(tmp_path / message[:6], drawn)
        with pytest.raises(UserError, match=message):
            clip_of(section(**given | dict(mask_path=wrong)))
    with pytest.raises(UserError, match="this clip needs"):
        clip_of(section(**given, num_frames=5))
    whole = clip_of(section(**given | dict(flow_path="", sampling_rate=2), num_frames=2), whole=True)
    np.testing.assert_array_equal(whole.frames, frames(6)[::2])
    assert whole.masks.shape == (3, SIZE, SIZE)
    assert len(clip_of(section(**given | dict(flow_path=""), length=5), whole=True).frames) == 5
    short = write_folder(tmp_path / "short", painted[:4])
    with pytest.raises(UserError, match="short' has 4 frames, too few for length=6 .* at most length=4 fit"):
        clip_of(section(**given | dict(flow_path="", mask_path=short), num_frames=2), whole=True)
    with pytest.raises(UserError, match="multiple of 32"):
        clip_of(section(image_size=48))
