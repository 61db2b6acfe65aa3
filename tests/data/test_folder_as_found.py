"""Folders as people have them: links, tables elsewhere, odd text, classes, a look that is remembered."""

import json
import os
import struct

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest
from data_helpers import config
from ml_collections import ConfigDict

from contextdiff_jax import data, keys
from contextdiff_jax.conditions import ClassCondition
from contextdiff_jax.data import ImageFolderSource, images, scan
from contextdiff_jax.data.augment import Augmentation
from contextdiff_jax.data.folder import _split_of
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import read_text, text_lines


def _save(path, colour=(200, 30, 30), size=(24, 24), caption=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", size, colour).save(path, **options)
    if caption:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")


def _source(folder, split="train", **options):
    return ImageFolderSource(str(folder), split, 16, **options)


def _captions(folder, **options):
    source = _source(folder, **options)
    return {source[i]["name"]: source[i]["caption"] for i in range(len(source))}


def _refused(folder, message, **options):
    with pytest.raises(UserError, match=message) as caught:
        _source(folder, **options)
    assert "\n" not in str(caught.value)


def _exif(*entries):
    """An EXIF block of (tag, kind, count, bytes)."""
    packed = b"".join(struct.pack("<HHI", *entry) + value.ljust(4, b"\0") for *entry, value in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + packed + struct.pack("<I", 0)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize(
    "exif",
    [
        _exif((0x0112, 3, 1, struct.pack("<H", 6)), (0x0128, 2, 2, b"2\0")),  # a number stored as text
        _exif((0x0112, 3, 1, struct.pack("<H", 99))),
        b"Exif\0\0II*\0" + b"\xff" * 9,
    ],
)
def test_what_passes_the_scan_is_read(tmp_path, exif):
    _save(tmp_path / "phone.jpg", size=(40, 60), exif=exif, caption="a photo")
    source = _source(tmp_path)
    assert len(source) == 1 and source[0]["image"].shape == (16, 16, 3)


def test_a_picture_that_no_decoder_takes_is_named_at_the_start(tmp_path):
    info = PIL.PngImagePlugin.PngInfo()
    info.add_text("workflow", "x" * (2 << 20), zip=True)
    _save(tmp_path / "workflow.png", pnginfo=info, caption="a graph")
    _save(tmp_path / "a.png", caption="an a")
    with pytest.warns(UserWarning, match=r"1 of 2 .* workflow.png \(Decompressed data too large"):
        assert _source(tmp_path, max_bad_fraction=0.5).names == ("a.png",)
    with pytest.raises(UserError, match="image '.*workflow.png' cannot be read .Decompressed data too large"):
        images.asked_for(tmp_path / "workflow.png", (16, 16))
    with pytest.raises(UserError, match="cannot be read .Is a directory"):
        images.asked_for(tmp_path, (16, 16))


def test_links_are_followed_once_and_not_in_circles(tmp_path):
    for i in range(3):
        _save(tmp_path / "store" / f"{i}.png", caption=f"number {i}")
    _save(tmp_path / "pictures" / "own.png", caption="mine")
    for name, target in (("store", "store"), ("again", "store"), ("circle", "pictures")):
        os.symlink(tmp_path / target, tmp_path / "pictures" / name)
    os.symlink(tmp_path / "pictures" / "self", tmp_path / "pictures" / "self")
    assert _source(tmp_path / "pictures").names == ("again/0.png", "again/1.png", "again/2.png", "own.png")
    os.symlink(tmp_path / "store" / "0.png", tmp_path / "pictures" / "linked.png")
    os.symlink(tmp_path / "store" / "0.txt", tmp_path / "pictures" / "linked.txt")
    assert _captions(tmp_path / "pictures")["linked.png"] == "number 0"


@pytest.mark.parametrize(
    "picture, table, text",
    [
        ("train/a.png", "train/metadata.jsonl", '{"file_name": "a.png", "text": "a square"}'),
        ("sub/a.png", "metadata.jsonl", r'{"file_name": "sub\\a.png", "text": "a square"}'),
        ("a.png", "metadata.csv", "file_name,text\r\na.png,a square\r\n"),
        ("sub/a.png", "sub/metadata.csv", 'caption;file_name\n"a square";a.png\n'),
        ("sub/a.png", "metadata.jsonl", '{"file_name": "./other/../sub/a.png", "text": "a square"}'),
        ("a.png", "a.png.txt", "a square"),
        ("a.png", "a.TXT", "a\u2028square"),
        ("a.png", "a.caption", "a square\n"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_captions_are_found_where_it_is_plain_what_is_meant(tmp_path, picture, table, text, encoding):
    _save(tmp_path / picture)
    (tmp_path / table).write_bytes(text.encode(encoding))
    assert _captions(tmp_path) == {picture: "a square"}


def test_whole_paths_in_a_table_and_those_that_lead_out(tmp_path):
    folder, linked = tmp_path / "x", tmp_path / "linked"
    for name in ("0.png", "cat/1.png"):
        _save(folder / name)
    linked.symlink_to(folder)
    names = (str(linked / "0.png"), "../x/cat/1.png")
    lines = [json.dumps({"file_name": name, "text": name[-5]}) for name in names]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    for way in (folder, linked):
        assert _captions(way) == {"0.png": "0", "cat/1.png": "1"}
    _save(tmp_path / "2.png")
    lines.append(json.dumps({"file_name": "../2.png", "text": "2"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    assert _captions(folder) == {"0.png": "0", "cat/1.png": "1", "../2.png": "2"}
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "text": "t"}))
    (folder / "0.png").unlink()
    _refused(folder, "a table names 0.png, which is in no class subfolder of", labels="subfolders")


@pytest.mark.parametrize(
    "files, message",
    [
        ({"metadata.json1": "{}"}, "metadata.json1 is not read; rename or convert it to metadata.jsonl"),
        ({"metadata.jsonl": '{"file_name": "x/a.png", "text": "t"}'}, r"line in metadata.jsonl \(it names x/a.png"),
        ({"a.txt": " \n"}, "a.txt is empty: write the caption into it"),
        ({"metadata.csv": "name,text\na.png,t"}, "metadata.csv line 1: has no column file_name"),
        ({"metadata.csv": "file_name,text\na.png,"}, "metadata.csv line 2: a.png has no caption"),
        ({"metadata.csv": 'file_name,text\na.png,"5 inch nail\nb.png,a cat\n'}, "is no table .*a quote in them twice"),
        ({"metadata.jsonl": "[" * 100_000}, "metadata.jsonl line 1: is not JSON .too deep"),
        ({"metadata.jsonl": r'{"file_name": "a.png", "text": "x\ud800"}'}, "line 1: the caption .* half a character"),
        ({"a.txt": b"caf\xe9"}, "a.txt line 1: is not UTF-8 text"),
        ({"metadata.jsonl": b'{}\n{"\xff": 1}'}, "metadata.jsonl line 2: is not UTF-8 text"),
        (
            {"metadata.jsonl": '{"file_name": "a.png", "text": "t"}', "metadata.csv": "file_name,text\na.png,t"},
            "metadata.jsonl line 1: a.png is already on line 2",
        ),
    ],
)
def test_what_was_found_is_named(tmp_path, files, message):
    _save(tmp_path / "a.png")
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    _refused(tmp_path, message)


def test_files_that_may_not_be_read(tmp_path, monkeypatch):
    _save(tmp_path / "a.png", caption="an a")
    denied = PermissionError(13, "Permission denied")

    def refuse(*args):
        raise denied

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.read_bytes", refuse)
        _refused(tmp_path, "a.txt cannot be read .Permission denied")
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        _refused(tmp_path, "the folder .* cannot be read .Permission denied.; make it readable")
    (tmp_path / "a.txt").unlink()
    (tmp_path / "a.txt").mkdir()
    _refused(tmp_path, "1 of 1 images .* no caption")


def test_texts_of_every_editor(tmp_path):
    path = tmp_path / "prompts.txt"
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le"):
        mark = "\ufeff" if encoding == "utf-16-le" else ""
        path.write_bytes((mark + "a red apple\r\na\u2028frog\x0c\u0085\r\x1d").encode(encoding))
        assert text_lines(read_text(path)) == ["a red apple", "a\u2028frog\x0c\u0085", "\x1d"]


def test_the_look_at_the_images_is_remembered(tmp_path, monkeypatch):
    for i in range(6):
        _save(tmp_path / f"{i}.png", caption="x")
    looked = []
    why = scan.why_unreadable
    monkeypatch.setattr(scan, "why_unreadable", lambda path: looked.append(path.name) or why(path))
    count = lambda: (looked.clear(), _source(tmp_path, max_bad_fraction=0.5), sorted(looked))[2]
    assert len(count()) == 6 and count() == []
    _save(tmp_path / "2.png", colour=(0, 0, 1), size=(30, 30))
    _save(tmp_path / "new.png", caption="x")
    assert count() == ["2.png", "new.png"] and count() == []
    (tmp_path / "3.png").write_text("no picture any more")
    with pytest.warns(UserWarning, match="3.png"):
        assert count() == ["3.png"]
    cache = scan._cache_file(tmp_path)
    whole = cache.read_text()
    cache.write_text(whole[:-20] + '\n["4.png", 1')  # cut by a kill
    os.utime(tmp_path / "3.png")
    with pytest.warns(UserWarning, match="3.png"):
        assert "0.png" not in count()
    cache.write_text("of another time\n" + whole)
    with pytest.warns(UserWarning, match="3.png"):
        assert len(count()) == 7
    with pytest.warns(UserWarning, match="3.png"):
        assert count() == ["3.png"]


def test_a_memory_that_cannot_be_written_is_said_and_does_no_harm(tmp_path, monkeypatch):
    _save(tmp_path / "pictures" / "a.png", caption="x")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot be kept in .*set XDG_CACHE_HOME"):
        assert len(_source(tmp_path / "pictures")) == 1


def test_identity_knows_names_sizes_and_captions_but_not_the_place(tmp_path):
    def made(place, caption="x", colour=(1, 2, 3), name="a.png"):
        _save(tmp_path / place / name, colour=colour, caption=caption)
        return _source(tmp_path / place).identity

    assert made("one") == made("two")
    assert len({made("one"), made("three", caption="y"), made("four", name="b.png")}) == 3
    assert made("one").startswith("folder train: 1 images (")


@pytest.fixture
def classes(tmp_path):
    for name, colour in (("dog", (250, 0, 0)), ("big_cat", (0, 250, 0))):
        for i in range(3):
            _save(tmp_path / name / "more" / f"{i}.png", colour=colour)
    (tmp_path / "dog" / "more" / "1.txt").write_text("rex")
    return tmp_path


def test_classes_are_the_first_subfolders(classes):
    source = _source(classes, labels="subfolders")
    assert source.class_names == ("big_cat", "dog") and len(source) == 6
    for record in map(source.__getitem__, range(6)):
        assert source.class_names[record["label"]] == record["name"].split("/")[0]
        assert record["image"][8, 8, 1 - record["label"]] > 200
    captions = {source[i]["name"]: source[i]["caption"] for i in range(6)}
    assert captions["big_cat/more/0.png"] == "a photo of a big cat" and captions["dog/more/1.png"] == "rex"


def test_classes_that_cannot_be(classes):
    (classes / "empty").mkdir()
    _refused(classes, "class subfolder empty of .* holds no images", labels="subfolders")
    (classes / "empty").rmdir()
    (classes / "loop").symlink_to("loop")  # no folder
    others = r"has other classes than data.class_names \(without bird; with big_cat\)"
    _refused(classes, others, labels="subfolders", class_names=("bird", "dog"))
    _save(classes / "loose.png")
    _refused(classes, "loose.png in .* is in no class subfolder", labels="subfolders")
    _refused(classes / "dog" / "more", "has no subfolders to take classes from", labels="subfolders")
    _refused(classes, "data.labels: 'folders' is unknown", labels="folders")
    os.mkdir(os.fsencode(classes) + b"/caf\xe9")
    _refused(classes, r"class subfolder b'caf.xe9' of .* is not UTF-8; rename it", labels="subfolders")


def test_a_class_that_is_held_out_whole_is_said(tmp_path):
    for i in range(24):
        _save(tmp_path / "cat" / f"{i:02}.png")
    held_out = _source(tmp_path, "val", labels="subfolders").names[0]
    (tmp_path / "dog").mkdir()
    number = next(i for i in range(100) if _split_of(f"dog/{i}.png", 25) == "val")
    _save(tmp_path / "dog" / f"{number}.png")
    with pytest.warns(UserWarning, match="no image to train on in the class subfolder dog .about 1 image in 20"):
        _source(tmp_path, labels="subfolders")
    (tmp_path / "dog" / f"{number}.png").unlink()
    (tmp_path / held_out).unlink()
    (tmp_path / "dog").rmdir()
    empty = r"23 images give an empty val split; add images \(about 1 in 20"
    _refused(tmp_path, empty, split="val", labels="subfolders")


def test_classes_are_the_same_however_a_system_spells_them(tmp_path):
    """A set that was copied from a system that decomposes names, and the run that goes on with it."""
    composed, decomposed = "caf\u00e9", "cafe\u0301"  # sorted, the one is behind "cafz", the other before it
    for place, name in (("then", composed), ("now", decomposed)):
        for i in range(2):
            _save(tmp_path / place / name / f"{i}.png", colour=(250, 0, 0))
            _save(tmp_path / place / "cafz" / f"{i}.png", colour=(0, 250, 0))
    then = _source(tmp_path / "then", labels="subfolders")
    now = _source(tmp_path / "now", labels="subfolders", class_names=then.class_names)
    assert now.class_names == then.class_names == ("cafz", composed) and now.identity == then.identity
    for i in range(4):
        assert now[i]["label"] == then[i]["label"] and (now[i]["image"] == then[i]["image"]).all()
    assert ClassCondition(then.class_names).read([decomposed, composed])["label"].tolist() == [1, 1]
    assert ClassCondition((decomposed,)).read([composed])["label"].tolist() == [0]
    saved, changed = ConfigDict({"names": (composed,)}), ConfigDict({"names": (decomposed,)})
    assert not keys.differences(saved, changed)
    (tmp_path / "words.txt").write_text(f"{composed} coffee\ncafz zoo\n", encoding="utf-8")
    words = _source(tmp_path / "now", labels="subfolders", words=str(tmp_path / "words.txt"))
    assert words.class_names == ("coffee", "zoo")
    _save(tmp_path / "now" / composed / "0.png")
    _refused(tmp_path / "now", r"the class subfolder .* twice, .*cafe\\u0301.* and .*caf\\xe9", labels="subfolders")


def test_a_class_of_underscores_alone_keeps_its_name(tmp_path):
    _save(tmp_path / "_" / "a.png")
    _save(tmp_path / "_x_" / "a.png")
    assert _captions(tmp_path, labels="subfolders") == {"_/a.png": "a photo of a _", "_x_/a.png": "a photo of a  x "}


def test_classes_have_the_words_of_a_file(classes, tmp_path_factory):
    file = tmp_path_factory.mktemp("words") / "mapping.txt"
    file.write_text("dog hound, Canis familiaris\n\nbig_cat\tbig cat\nant ant\n")
    source = _source(classes, labels="subfolders", words=str(file))
    assert source.class_names == ("big cat", "hound")
    captions = {source[i]["name"]: (source[i]["label"], source[i]["caption"]) for i in range(6)}
    assert captions["big_cat/more/0.png"] == (0, "a photo of a big cat")
    assert captions["dog/more/0.png"] == (1, "a photo of a hound")
    section = config(source="folder", path=str(classes), labels="subfolders", class_words=str(file))
    assert data.describe(section).class_names == source.class_names
    section.update(path="gone", class_names=source.class_names)
    assert data.describe(section).class_names == source.class_names
    gone = dict(labels="subfolders", words=str(classes / "gone.txt"))
    assert _source(classes, **gone, class_names=source.class_names)[0]["caption"] == "a photo of a big cat"
    file.write_text("dog crane\nbig_cat crane, bird")
    known = r"other classes than data.class_names \(without big cat, hound; with crane \(big_cat\), crane \(dog\)\)"
    _refused(classes, known, labels="subfolders", words=str(file), class_names=("big cat", "hound"))
    for text, message in {
        "dog hound": "has no line for big_cat; add it",
        "dog hound\nbig_cat": "line 2: 'big_cat' is no code with words",
        "dog hound\ndog cat": "line 2: 'dog' comes again",
    }.items():
        file.write_text(text)
        _refused(classes, message, labels="subfolders", words=str(file))
    _refused(classes, "none.txt cannot be read", labels="subfolders", words=str(classes / "none.txt"))


def test_random_crops_see_the_whole_image(tmp_path):
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, :20], pixels[:, 40:] = (255, 0, 0), (0, 0, 255)
    PIL.Image.fromarray(pixels).save(tmp_path / "wide.png")
    (tmp_path / "wide.txt").write_text("x")
    source, augment = _source(tmp_path), Augmentation(crop=0.8, mirror=False, image_size=16)
    assert source.whole(0)["image"].shape == (20, 60, 3)
    seen = np.stack([augment(source.whole(0), 0, i)["image"] for i in range(40)])
    assert not source[0]["image"][:, 2:-2].any() and (seen[..., 0] > 200).any() and (seen[..., 2] > 200).any()
    assert {image.shape for image in seen} == {(16, 16, 3)}


def test_far_larger_images_come_smaller(tmp_path):
    _save(tmp_path / "large.png", size=(400, 200), caption="x")
    assert _source(tmp_path).whole(0)["image"].shape == (34, 67, 3)


def test_metadata_in_json_lines_may_be_written_by_anything(tmp_path):
    _save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "a\u2028b"}, ensure_ascii=False))
    assert _captions(tmp_path) == {"a.png": "a\u2028b"}
