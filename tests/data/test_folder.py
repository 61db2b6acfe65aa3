import errno
import json
import unicodedata
import warnings

import numpy as np
import PIL.Image
import pytest

from contextdiff_jax import files
from contextdiff_jax.data import ImageFolderSource, images
from contextdiff_jax.data.images import read_image
from contextdiff_jax.errors import UserError


def _save(path, size=(24, 24), colour=(200, 30, 30), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new(mode, size, colour).save(path, **options)


def _with_texts(folder, names):
    for name in names:
        _save(folder / name)
        (folder / name).with_suffix(".txt").write_text(f"caption of {name}", encoding="utf-8")


def _metadata(folder, lines):
    text = "\n".join(
        line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines
    )
    (folder / "metadata.jsonl").write_text(text, encoding="utf-8")


def _refused(folder, message, split="train", **options):
    with pytest.raises(UserError, match=message) as caught:
        ImageFolderSource(str(folder), split, 16, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_texts_beside_images_and_in_subfolders(tmp_path):
    _with_texts(tmp_path, ["b.png", "a.jpg", "sub/c.webp"])
    (tmp_path / ".hidden.jpg").write_bytes(b"")
    (tmp_path / "notes.md").write_text("no image")
    source = ImageFolderSource(str(tmp_path), "train", 16)
    assert source.names == ("a.jpg", "b.png", "sub/c.webp") and len(source) == 3 and not source.skipped
    record = source[2]
    assert (
        record["caption"] == "caption of sub/c.webp"
        and record["index"] == 2
        and record["name"] == "sub/c.webp"
    )
    assert record["image"].shape == (16, 16, 3) and record["image"].dtype == np.uint8
    assert np.abs(source[1]["image"].astype(int) - [200, 30, 30]).max() <= 1
    with pytest.raises(IndexError):
        source[3]


def test_metadata_with_text_or_caption(tmp_path):
    for name in ("a.png", "sub/b.png", "c.png"):
        _save(tmp_path / name)
    lines = [
        {"file_name": "c.png", "text": "a third", "extra": 1},
        "",
        {"file_name": "./a.png", "caption": "a first"},
        {"file_name": "sub/b.png", "text": "  a second "},
    ]
    _metadata(tmp_path, lines)
    source = ImageFolderSource(str(tmp_path), "train", 16)
    assert [source[i]["caption"] for i in range(3)] == ["a first", "a third", "a second"]


def test_metadata_with_byte_order_mark_and_windows_lines(tmp_path):
    _save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_bytes(b'\xef\xbb\xbf{"file_name": "a.png", "text": "an a"}\r\n\r\n')
    assert ImageFolderSource(str(tmp_path), "train", 16)[0]["caption"] == "an a"


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"file_name": "b.png", "text": ', r"line 2: is not JSON \(.*column"),
        ("[1, 2]", 'line 2: has no "file_name"'),
        ('{"text": "b"}', 'line 2: has no "file_name"'),
        ('{"file_name": "b.png"}', "line 2: b.png has no caption"),
        ('{"file_name": "b.png", "text": " "}', "line 2: b.png has no caption"),
        ('{"file_name": "b.png", "text": 3}', "line 2: b.png has no caption"),
        ('{"file_name": "a.png", "text": "again"}', "line 2: a.png is already on line 1"),
    ],
)
def test_bad_metadata_names_the_line(tmp_path, line, message):
    _save(tmp_path / "a.png")
    _save(tmp_path / "b.png")
    _metadata(tmp_path, [{"file_name": "a.png", "text": "an a"}, line])
    _refused(tmp_path, message)


def test_metadata_that_is_not_utf8(tmp_path):
    _save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_bytes(b'{"file_name": "a.png", "text": "caf\xe9"}')
    _refused(tmp_path, "line 1: is not UTF-8")


def test_missing_captions(tmp_path):
    _with_texts(tmp_path, ["a.png", "b.png"])
    _save(tmp_path / "c.png")
    _refused(tmp_path, r"1 of 3 images .* have no caption, the first is c.png; give each a .txt file")
    (tmp_path / "c.txt").write_text(" \n")
    _refused(tmp_path, "1 of 3 images")
    _metadata(tmp_path, [{"file_name": "a.png", "text": "an a"}])
    _refused(tmp_path, r"2 of 3 images .* first is b.png; give each a line in metadata.jsonl")


def test_missing_and_empty_folders(tmp_path, caplog):
    _refused(tmp_path / "none", "none does not exist")
    (tmp_path / "a.heic").write_text("")
    _refused(tmp_path, "holds no images")
    assert "pictures of kinds that are not read are left out (1): a.heic" in caplog.text
    (tmp_path / "file").write_text("x")
    _refused(tmp_path / "file", "is a file, not a folder")
    with pytest.raises(UserError, match="data.path: is empty"):
        ImageFolderSource("", "train", 16)


def test_bad_values(tmp_path):
    _with_texts(tmp_path, ["a.png"])
    _refused(tmp_path, "split 'test' is unknown for folder; accepted: train, val", split="test")
    _refused(tmp_path, "max_bad_fraction: 2", max_bad_fraction=2)
    _refused(tmp_path, "its 1 images give an empty val split", split="val")


def test_unreadable_images_are_skipped_counted_and_named(tmp_path):
    _with_texts(tmp_path, [f"{i}.jpg" for i in range(8)] + ["cut.jpg", "text.jpg", "empty.png", "cut.png"])
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    PIL.Image.fromarray(noise).save(tmp_path / "cut.jpg")
    PIL.Image.fromarray(noise).save(tmp_path / "cut.png")
    for name in ("cut.jpg", "cut.png"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) * 2 // 3])
    (tmp_path / "text.jpg").write_text("this is no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.warns(UserWarning) as caught:
        source = ImageFolderSource(str(tmp_path), "train", 16, max_bad_fraction=0.5)
    assert len(caught) == 1
    message = str(caught[0].message)
    assert "4 of 12 train images" in message and "text.jpg (not an image)" in message
    assert {name for name, _ in source.skipped} == {"cut.jpg", "cut.png", "text.jpg", "empty.png"}
    assert all(name in message and reason for name, reason in source.skipped)
    assert len(source) == 8
    assert [source[i]["caption"] for i in range(8)] == [f"caption of {i}.jpg" for i in range(8)]
    _refused(
        tmp_path, r"4 of 12 .* more than data.max_bad_fraction=0.25 allows: cut.jpg \(", max_bad_fraction=0.25
    )
    assert "\n" not in message


def test_a_long_list_of_unreadable_images_is_cut(tmp_path):
    _with_texts(tmp_path, [f"{i:02}.png" for i in range(15)])
    for i in range(13):
        (tmp_path / f"{i:02}.png").write_text("no")
    message = _refused(tmp_path, "13 of 15")
    assert "09.png (not an image), and 3 more" in message and "11.png" not in message


def test_nothing_readable_is_an_error_at_any_share(tmp_path):
    _with_texts(tmp_path, ["a.png"])
    (tmp_path / "a.png").write_text("no")
    _refused(tmp_path, "1 of 1", max_bad_fraction=1.0)


def test_a_file_that_metadata_lists_but_the_folder_lacks_counts_as_unreadable(tmp_path):
    _save(tmp_path / "a.png")
    _metadata(tmp_path, [{"file_name": name, "text": "x"} for name in ("a.png", "gone.png")])
    with pytest.warns(UserWarning, match=r"1 of 2 .* gone.png \(no such file\)"):
        source = ImageFolderSource(str(tmp_path), "train", 16, max_bad_fraction=0.5)
    assert source.names == ("a.png",)


def test_a_file_lost_during_training_is_named(tmp_path):
    _with_texts(tmp_path, ["a.png", "b.png"])
    source = ImageFolderSource(str(tmp_path), "train", 16)
    (tmp_path / "b.png").unlink()
    with pytest.raises(UserError, match="b.png: cannot be read any more: no such file"):
        source[1]


def test_a_disk_that_fails_for_a_moment_is_asked_again(tmp_path, monkeypatch):
    _with_texts(tmp_path, ["a.png", "b.png"])
    source, read, failures = ImageFolderSource(str(tmp_path), "train", 16), images.read_image, []
    monkeypatch.setattr(files, "_WAITS", (0.0, 0.0))

    def flaky(path, size):
        if len(failures) < left:
            failures.append(path)
            raise OSError(errno.ESTALE, "Stale file handle")
        return read(path, size)

    monkeypatch.setattr(images, "read_image", flaky)
    left = 2
    np.testing.assert_array_equal(source[1]["image"], read(tmp_path / "b.png", 16))
    assert len(failures) == 2
    left = 5
    with pytest.raises(UserError, match="b.png: cannot be read any more: Stale file handle"):
        source[1]
    assert len(failures) == 5, "it has been tried three times"


def test_non_ascii_names_in_either_normal_form(tmp_path):
    composed, decomposed = (
        unicodedata.normalize(form, "pomme\u0301 été 苹果.png") for form in ("NFC", "NFD")
    )
    assert composed != decomposed
    _save(tmp_path / decomposed)
    _metadata(tmp_path, [{"file_name": composed, "text": "une pomme d'été"}])
    source = ImageFolderSource(str(tmp_path), "train", 16)
    assert source[0]["caption"] == "une pomme d'été" and source.names == (decomposed,)


def test_split_is_disjoint_deterministic_and_stable(tmp_path):
    names = [f"{i:03}.png" for i in range(200)]
    _with_texts(tmp_path, names)
    train, val = (ImageFolderSource(str(tmp_path), split, 8).names for split in ("train", "val"))
    assert sorted(train + val) == names and not set(train) & set(val)
    assert 2 <= len(val) <= 25
    _with_texts(tmp_path, [f"new{i:03}.png" for i in range(50)])
    assert set(train) <= set(ImageFolderSource(str(tmp_path), "train", 8).names)
    assert set(val) <= set(ImageFolderSource(str(tmp_path), "val", 8).names)


@pytest.mark.parametrize(
    "mode, colour, expected",
    [
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("LA", (100, 255), (100, 100, 100)),
        ("LA", (100, 0), (255, 255, 255)),
        ("RGBA", (10, 200, 30, 255), (10, 200, 30)),
        ("RGBA", (10, 200, 30, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 128), (127, 127, 127)),
        ("I;16", 128 * 257, (128, 128, 128)),
        ("I;16", 65535, (255, 255, 255)),
    ],
)
def test_modes(tmp_path, mode, colour, expected):
    path = tmp_path / "a.png"
    _save(path, mode=mode, colour=colour)
    np.testing.assert_array_equal(read_image(path, 16), np.broadcast_to(np.uint8(expected), (16, 16, 3)))


@pytest.mark.parametrize("pixels, words", [(np.float32(0.5), "floating-point"), (np.int32(200), "32 bits")])
def test_pixels_whose_white_is_not_known_are_refused(tmp_path, pixels, words):
    PIL.Image.fromarray(np.full((24, 24), pixels)).save(tmp_path / "a.tiff")
    with pytest.raises(ValueError, match=words):
        read_image(tmp_path / "a.tiff", 16)


def test_palette_with_transparency_and_cmyk(tmp_path):
    image = PIL.Image.new("P", (24, 24), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(1, (12, 0, 24, 24))
    image.save(tmp_path / "p.png", transparency=0)
    pixels = read_image(tmp_path / "p.png", 24)
    assert (pixels[:, :12] == 255).all() and (pixels[:, 12:] == [200, 100, 50]).all()
    _save(tmp_path / "c.jpg", mode="CMYK", colour=(0, 255, 255, 0))
    assert np.abs(read_image(tmp_path / "c.jpg", 16).astype(int) - [255, 0, 0]).max() <= 3


def test_exif_rotation_is_applied(tmp_path):
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16] = 255  # top half white as stored
    image = PIL.Image.fromarray(pixels)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to view: the top goes to the right
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    seen = read_image(tmp_path / "a.jpg", 16).mean(-1)
    assert seen[:, 10:].min() > 230 and seen[:, :6].max() < 25


@pytest.mark.parametrize("size", [(96, 32), (32, 96)])
def test_center_crop(tmp_path, size):
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    middle = (slice(None), slice(32, 64)) if size[0] > size[1] else (slice(32, 64), slice(None))
    pixels[middle] = (0, 255, 0)
    PIL.Image.fromarray(pixels).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", 16)
    assert (image[3:-3, 3:-3] == [0, 255, 0]).all()  # Lanczos looks a little beyond the crop
    assert np.abs(image.astype(int) - [0, 255, 0]).max() < 40


def test_small_images_are_enlarged(tmp_path):
    _save(tmp_path / "a.png", size=(3, 5))
    assert read_image(tmp_path / "a.png", 16).shape == (16, 16, 3)


def test_no_warning_without_cause(tmp_path):
    _with_texts(tmp_path, ["a.png"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ImageFolderSource(str(tmp_path), "train", 16)
