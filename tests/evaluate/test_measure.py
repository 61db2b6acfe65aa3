"""Two sets of pictures against each other: files in, figures with their protocol out, bad input in one line."""

import dataclasses
import errno
import functools
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from measure_helpers import SIDE, colours, pictures

from contextdiff_jax import command_line
from contextdiff_jax.data import OpenMojiSource
from contextdiff_jax.encoders import ASSETS
from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate import feature_spaces, measure_command, metrics, picture_sets, statistics, unfinished
from contextdiff_jax.evaluate import measure as measure_module
from contextdiff_jax.evaluate.feature_spaces import Described, FeatureSpace, open_space
from contextdiff_jax.evaluate.measure import measure, observe
from contextdiff_jax.evaluate.measure_command import report
from contextdiff_jax.evaluate.metrics.base import shown
from contextdiff_jax.evaluate.picture_sets import PictureSet
from contextdiff_jax.evaluate.unfinished import Journal
from contextdiff_jax.models.recogniser import load_recogniser


def folder(path, images: np.ndarray, start: int = 0):
    path.mkdir(exist_ok=True)
    for i, image in enumerate(images, start):
        PIL.Image.fromarray(image).save(path / f"{i:03d}.png")
    return path


def test_folders_and_npz_give_the_figures_of_the_arrays(tmp_path):
    a, b = pictures(40, 0), pictures(50, 1)
    folder(tmp_path / "a", a), folder(tmp_path / "b", b)
    np.savez(tmp_path / "a.npz", arr_0=a, arr_1=np.arange(40))  # as ADM's samplers write pictures and classes
    np.savez_compressed(tmp_path / "b.npz", b)
    space = colours(is_fid=True)
    x, y = (space.features(z)["pooled"] for z in (a, b))
    results = [measure(tmp_path / i, tmp_path / j, [space]) for i, j in (("a", "b"), ("a.npz", "b.npz"))]
    for result in results:
        figures = result["spaces"]["colours"]["figures"]
        assert figures["fid"]["fid"] == pytest.approx(metrics.frechet(x, y), rel=1e-6)
        assert figures["kid"]["kid"] == pytest.approx(metrics.kid(x, y), rel=1e-5)
        assert set(figures) == {"fid", "sfid", "kid", "precision_recall", "inception_score"}
        assert result["spaces"]["colours"]["digest"] == "0123"
        assert (result["images"]["n"], result["reference"]["n"]) == (40, 50)
        assert result["images"]["size"] == [SIDE, SIDE] and result["images"]["crop"] == "none"
    assert results[0]["images"]["digest"] == results[1]["images"]["digest"] != results[0]["reference"]["digest"]


def test_only_fids_own_features_give_fid(tmp_path):
    folder(tmp_path / "a", pictures(20, 0))
    space = measure(tmp_path / "a", tmp_path / "a", [colours()])["spaces"]["colours"]
    assert set(space["figures"]) == {"frechet_distance", "kernel_distance", "precision_recall"} and not space["refused"]
    other = colours()
    other.not_fid = "w.safetensors does not say of which release its weights are"
    assert "of which release" in measure(tmp_path / "a", tmp_path / "a", [other])["spaces"]["colours"]["refused"]["fid"]


def test_every_figure_is_printed_under_its_own_name(tmp_path, capsys):
    a = folder(tmp_path / "a", pictures(20, 0))
    names = {}
    for fid in (True, False):
        report(result := measure(a, a, [colours(is_fid=fid)]))
        names[fid] = [line.split()[1] for line in capsys.readouterr().err.splitlines() if line.startswith("colours, ")]
        assert result["spaces"]["colours"]["how"].keys() == result["spaces"]["colours"]["figures"].keys()
    scores = [f"inception_score_{kind}" for kind in ("all", "split_mean", "split_std")]
    assert names[True] == ["fid", "sfid", "kid", "precision", "recall", *scores]
    assert names[False] == ["frechet_distance", "kernel_distance", "precision", "recall"]
    assert shown("fid", {"frechet": 1.0, "n": 3}) == {"fid": (1.0, None)}  # of an older version
    assert shown("kernel_distance", {"kid": 1.0, "kid_stderr": 0.5}) == {"kernel_distance": (1.0, 0.5)}


def test_pictures_reach_the_network_in_whole_batches_and_once():
    calls = []

    def run(params, images):
        calls.append(images.shape)  # once per compilation
        return {"pooled": images.astype(jnp.float32).mean((1, 2))}

    space = FeatureSpace(Described("mean", "", "", 3), run, {})
    images = pictures(70, 0)
    np.testing.assert_allclose(space.pooled(images), images.mean((1, 2)), rtol=1e-5)
    assert space.pooled(images) is space.pooled(images)
    assert calls == [(32, SIDE, SIDE, 3)]


def test_statistics_stand_in_for_pictures(tmp_path):
    a, b = folder(tmp_path / "a", pictures(40, 0)), folder(tmp_path / "b", pictures(50, 1))
    space = colours(is_fid=True)
    (found,) = observe(PictureSet(b), [space])
    statistics.write(tmp_path / "ours.npz", space.described, found.moments, found.about)
    y = space.features(pictures(50, 1))["pooled"].astype(np.float64)
    np.savez(tmp_path / "pytorch_fid.npz", mu=y.mean(0), sigma=np.cov(y.T))
    with np.load(tmp_path / "ours.npz") as file:  # and the other way round: they find theirs in ours
        np.testing.assert_allclose(file["mu"], y.mean(0), rtol=1e-6)
        np.testing.assert_allclose(file["sigma"], np.cov(y.T), rtol=1e-5, atol=1e-9)
        assert {"mu_s", "sigma_s"} <= set(file.files)
    theirs = measure(a, b, [space])["spaces"]["colours"]["figures"]
    for name, kept in (
        ("ours.npz", {"fid", "sfid", "inception_score"}),
        ("pytorch_fid.npz", {"fid", "inception_score"}),
    ):
        result = measure(a, tmp_path / name, [space])
        figures = result["spaces"]["colours"]["figures"]
        assert set(figures) == kept  # kernel distance, precision and recall need the pictures themselves
        refused = result["spaces"]["colours"]["refused"]
        assert set(refused) == {"fid", "sfid", "kid", "precision_recall", "inception_score"} - kept
        assert "has no single pictures" in refused["kid"]
        assert figures["fid"]["fid"] == pytest.approx(theirs["fid"]["fid"], rel=1e-6)
        assert result["reference"]["n"] == (50 if name == "ours.npz" else None)


@pytest.mark.parametrize(
    "space, crop, words",
    [
        (colours(is_fid=True, digest="4567"), None, "another feature space: digest '0123' there, '4567' here"),
        (colours(is_fid=True, resize="299"), None, "another feature space: resize"),
        (colours(is_fid=True, width=7), None, "another feature space: 6 features there, 7"),
        (colours(is_fid=True), 16, "crop 'none' and the pictures with 'centre square, Lanczos, 16'"),
    ],
)
def test_statistics_of_another_space_are_refused(tmp_path, space, crop, words):
    a, own = folder(tmp_path / "a", pictures(20, 0)), colours(is_fid=True)
    (found,) = observe(PictureSet(a), [own])
    statistics.write(tmp_path / "s.npz", own.described, found.moments, found.about)
    with pytest.raises(UserError, match=words):
        measure(a, tmp_path / "s.npz", [space], crop=crop)


def with_byte(path, place: float) -> None:
    """Turns one byte of a file around, at this share of its length."""
    raw = bytearray(path.read_bytes())
    raw[int(place * len(raw))] ^= 255
    path.write_bytes(raw)


def test_damaged_statistics_are_one_line(tmp_path):
    a, own = folder(tmp_path / "a", pictures(20, 0)), colours(is_fid=True)
    (found,) = observe(PictureSet(a), [own])
    about = found.about
    for name, change in {"n": {"n": 0}, "size": {"size": "large"}, "space": {"space": {}}}.items():
        statistics.write(tmp_path / f"{name}.npz", own.described, found.moments, about | change)
    np.savez_compressed(tmp_path / "byte.npz", mu=np.zeros(6), sigma=np.random.default_rng(0).random((6, 6)))
    with_byte(tmp_path / "byte.npz", 0.5)
    statistics.write(tmp_path / "short.npz", own.described, found.moments, about)
    (tmp_path / "short.npz").write_bytes((tmp_path / "short.npz").read_bytes()[:-200])
    (tmp_path / "nothing.npz").write_bytes(b"")
    np.savez(tmp_path / "texts.npz", mu=np.array(["a"] * 6), sigma=np.eye(6))
    np.savez(tmp_path / "complex.npz", mu=np.zeros(6), sigma=np.eye(6) + 1e-3j)
    for name, words in {
        "n": "n 0 and size",
        "size": "'large' are no numbers",
        "space": "has no name",
        "byte": "cannot be read",
        "short": "no npz file",
        "nothing": "no npz file",
        "texts": "cannot be read",
        "complex": "sigma is of type complex128",
    }.items():
        with pytest.raises(UserError, match=words) as caught:
            measure(a, tmp_path / f"{name}.npz", [own])
        assert "\n" not in str(caught.value), name


def test_a_damaged_archive_is_one_line(tmp_path):
    np.savez(tmp_path / "a.npz", arr_0=pictures(20, 0))
    with_byte(tmp_path / "a.npz", 0.5)
    with pytest.raises(UserError, match="a.npz' is (damaged|no npz file) .*CRC"):
        measure(tmp_path / "a.npz", folder(tmp_path / "b", pictures(20, 0)), [colours()])


def test_captions_of_other_encodings_and_no_texts(tmp_path):
    a, lines = folder(tmp_path / "a", pictures(3, 0)), "one\r\ntwo\r\nthree\r\n"
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "c.txt").write_bytes(lines.encode(encoding))
        assert PictureSet(a, captions=tmp_path / "c.txt").captions == ["one", "two", "three"]
    rows = [json.dumps({"file_name": f"{i:03d}.png", "text": 7 if i == 1 else "x"}) for i in range(3)]
    (tmp_path / "m.jsonl").write_text("\n".join(rows))
    with pytest.raises(UserError, match="m.jsonl line 2: 001.png has no caption"):
        PictureSet(a, captions=tmp_path / "m.jsonl")
    (tmp_path / "m.jsonl").write_text("\n".join(rows[:1]))
    with pytest.raises(UserError, match="none for 2 of 3 pictures, the first is 001.png"):
        PictureSet(a, captions=tmp_path / "m.jsonl")
    (tmp_path / "m.jsonl").write_text("[1]\n")
    with pytest.raises(UserError, match="m.jsonl line 1: has no .file_name."):
        PictureSet(a, captions=tmp_path / "m.jsonl")


def test_tables_of_captions_are_read_as_those_of_training_pictures(tmp_path):
    (tmp_path / "a" / "sub").mkdir(parents=True)
    for name in ("sub/a.png", "cafe\u0301.png"):
        PIL.Image.fromarray(pictures(1, 0)[0]).save(tmp_path / "a" / name)
    rows = [{"file_name": "caf\u00e9.png", "text": "coffee"}, {"file_name": "sub\\a.png", "caption": "below"}]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "m.csv").write_text("file_name;text\n" + "\n".join(";".join(row.values()) for row in rows))
    for table in ("m.jsonl", "m.csv"):
        assert PictureSet(tmp_path / "a", captions=tmp_path / table).captions == ["coffee", "below"]
    (tmp_path / "m.csv").write_text("coffee\nbelow\n")
    with pytest.raises(UserError, match="m.csv line 1: has no column file_name"):
        PictureSet(tmp_path / "a", captions=tmp_path / "m.csv")


def test_lines_are_refused_where_numbers_and_letters_order_the_pictures_otherwise(tmp_path):
    a, lines = tmp_path / "a", "\n".join(f"caption {i}" for i in range(12))
    folder(a, pictures(12, 0))
    (tmp_path / "c.txt").write_text(lines)
    assert PictureSet(a, captions=tmp_path / "c.txt").captions[10] == "caption 10"
    for i in range(12):
        (a / f"{i:03d}.png").rename(a / f"{i}.png")
    with pytest.raises(UserError, match="one line a picture, but 10.png comes before 2.png by letters"):
        PictureSet(a, captions=tmp_path / "c.txt")
    # Of names that differ in more than numbers, and of hashes, the order of the letters is the only one.
    hashes = [("3f10b.png", "3f2a9.png", "c0ffee.png"), ("12a34567.png", "123a4567.png", "123b4567.png")]
    for i, names in enumerate(hashes):
        of_hashes = folder(tmp_path / f"hashes{i}", pictures(3, 0))
        for old, new in zip(sorted(of_hashes.iterdir()), names, strict=True):
            old.rename(of_hashes / new)
        (tmp_path / "three.txt").write_text("one\ntwo\nthree\n")
        assert PictureSet(of_hashes, captions=tmp_path / "three.txt").captions == ["one", "two", "three"]
    rows = [{"file_name": f"{i}.png", "text": f"caption {i}"} for i in range(12)]
    (tmp_path / "m.JSONL").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "m.tsv").write_text("file_name\ttext\n" + "\n".join("\t".join(row.values()) for row in rows))
    for name in ("m.JSONL", "m.tsv"):
        assert PictureSet(a, captions=tmp_path / name).captions[2] == "caption 10"


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("m.json", "one\ntwo\nthree\n", "are JSON; give one object a line"),
        ("m.txt", '{"file_name": "000.png", "text": "x"}\n' * 3, "are JSON; .* name it .jsonl"),
        ("m.txt", "file_name;text\n000.png;x\n001.png;y\n", "a column file_name; name it .csv"),
    ],
)
def test_tables_under_other_names_are_no_captions(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=words):
        PictureSet(folder(tmp_path / "a", pictures(3, 0)), captions=tmp_path / name)


def test_arrays_of_other_layouts_are_read(tmp_path):
    rgb, read = pictures(9, 0), lambda name: np.concatenate([b for b, _ in PictureSet(tmp_path / name).batches(4)])
    grey, alpha = rgb[..., 0], np.concatenate([rgb, np.full((9, SIDE, SIDE, 1), 255, np.uint8)], axis=-1)
    alpha[:, 0, 0, 3] = 0
    white = rgb.copy()
    white[:, 0, 0] = 255
    in_grey = np.repeat(grey[..., None], 3, axis=-1)
    for name, stored, expected in (
        ("fortran", np.asfortranarray(rgb), rgb),
        ("grey", np.repeat(grey, 2, axis=2), np.repeat(in_grey, 2, axis=2)),
        ("one", grey[..., None], in_grey),
        ("alpha", alpha, white),
    ):
        np.savez(tmp_path / f"{name}.npz", arr_0=stored)
        np.testing.assert_array_equal(read(f"{name}.npz"), expected)
    masks = dict(arr_0=grey[..., None], arr_1=grey.repeat(2, axis=2), arr_2=alpha)
    for name, stored, expected in (("of_all", masks | dict(arr_3=rgb), rgb), ("without_rgb", masks, white)):
        np.savez(tmp_path / f"{name}.npz", **stored)
        np.testing.assert_array_equal(read(f"{name}.npz"), expected)
    np.savez(tmp_path / "two.npz", a=rgb, b=rgb, mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(UserError, match=r"has 2 arrays of pictures \(a, b\); keep one"):
        PictureSet(tmp_path / "two.npz")
    with pytest.raises(UserError, match=r"two.npz' has 2 arrays of pictures"):  # nor is it a file of statistics alone
        measure(tmp_path / "of_all.npz", tmp_path / "two.npz", [colours()])
    np.save(tmp_path / "array.npy", rgb)
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    with pytest.raises(UserError, match="array.npz' is no npz file"):
        measure(tmp_path / "array.npz", tmp_path / "array.npz", [colours()])
    assert not statistics.is_statistics(tmp_path / "array.npz")


def test_locked_archives_are_one_line(tmp_path):
    np.savez(tmp_path / "a.npz", arr_0=pictures(3, 0))
    raw = bytearray((tmp_path / "a.npz").read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flag of encryption in both of its headers
        raw[raw.index(mark) + place] |= 1
    (tmp_path / "a.npz").write_bytes(raw)
    with pytest.raises(UserError, match="is no npz file .*encrypted"):
        PictureSet(tmp_path / "a.npz")
    assert not statistics.is_statistics(tmp_path / "a.npz")


def test_files_with_several_frames_are_named(tmp_path, capsys):
    a, images = folder(tmp_path / "a", pictures(20, 0)), [PIL.Image.fromarray(p) for p in pictures(3, 1)]
    for name in ("film.gif", "pages.tiff"):
        images[0].save(a / name, save_all=True, append_images=images[1:])
    result = measure(a, a, [colours()])
    assert result["images"]["first_of_several_frames"] == {"count": 2, "first": ["film.gif", "pages.tiff"]}
    report(result)
    assert "of 2 files the first frame alone was read: film.gif, pages.tiff" in capsys.readouterr().err


def test_large_pictures_come_a_few_at_a_time(tmp_path, monkeypatch):
    a, read, decoded = folder(tmp_path / "a", pictures(40, 0)), PictureSet._read, []
    monkeypatch.setattr(PictureSet, "_read", lambda self, name: decoded.append(name) or read(self, name))
    monkeypatch.setattr(picture_sets, "BATCH_BYTES", 5 * SIDE * SIDE * 3)
    sizes = []
    for images, _ in PictureSet(a).batches(128):
        sizes.append(len(images))
        assert len(decoded) <= sum(sizes) + picture_sets.AHEAD
    assert sizes == [5] * 8
    np.savez(tmp_path / "a.npz", pictures(40, 0))
    assert [len(images) for images, _ in PictureSet(tmp_path / "a.npz").batches(128)] == [5] * 8
    space = colours()
    whole = space.pooled(images := pictures(70, 0))
    monkeypatch.setattr(feature_spaces, "FORWARD_BYTES", 4 * images[0].nbytes)
    np.testing.assert_allclose(space.pooled(images.copy()), whole, rtol=1e-6)


def test_folders_that_cannot_be_read_are_not_the_trainings(tmp_path, monkeypatch):
    a = folder(tmp_path / "a", pictures(3, 0))
    monkeypatch.setattr("os.scandir", lambda path: (_ for _ in ()).throw(PermissionError(errno.EACCES, "denied")))
    with pytest.raises(UserError, match="^pictures: the folder .* cannot be read"):
        PictureSet(a)


def test_statistics_that_name_no_space_are_fids(tmp_path):
    np.savez(tmp_path / "s.npz", mu=np.zeros(6), sigma=np.eye(6))
    with pytest.raises(UserError, match="do not say in which features"):
        measure(folder(tmp_path / "a", pictures(20, 0)), tmp_path / "s.npz", [colours()])


def test_corrupt_pictures_are_counted_and_named(tmp_path):
    a = folder(tmp_path / "a", pictures(20, 0))
    (a / "005.png").write_bytes(b"not a picture")
    (a / "007.png").write_bytes((a / "007.png").read_bytes()[:60])
    about = measure(a, a, [colours()])["images"]
    assert about["n"] == 18 and about["unreadable"]["count"] == 2
    assert [line.split(":")[0] for line in about["unreadable"]["first"]] == ["005.png", "007.png"]


def test_few_pictures_refuse_the_frechet_distance_and_keep_the_others(tmp_path):
    a, b = folder(tmp_path / "a", pictures(6, 0)), folder(tmp_path / "b", pictures(50, 1))
    space = measure(a, b, [colours(is_fid=True)])["spaces"]["colours"]
    assert re.search("6 pictures in 6 features .* kid", space["refused"]["fid"])
    assert {"kid", "precision_recall"} <= space["figures"].keys()


def test_crop_brings_mixed_sizes_together(tmp_path):
    a = folder(folder(tmp_path / "a", pictures(20, 0)).parent / "a", pictures(3, 1, side=12), start=20)
    result = measure(a, a, [colours()], crop=8)
    assert result["images"]["n"] == 23 and result["images"]["crop"] == "centre square, Lanczos, 8"


def test_captions_beside_the_pictures(tmp_path):
    a = folder(tmp_path / "a", pictures(3, 0))
    for i in range(3):
        (a / f"{i:03d}.txt").write_text(f"picture {i}")
    assert PictureSet(a, captions=a).captions == ["picture 0", "picture 1", "picture 2"]
    (a / "001.txt").unlink()
    with pytest.raises(UserError, match="none for 1 of 3 pictures, the first is 001.png"):
        PictureSet(a, captions=a)


def bad(tmp_path, name: str):
    """(images, reference, options) of one kind of bad input."""
    fine = folder(tmp_path / "fine", pictures(20, 0))
    (tmp_path / "empty").mkdir()
    (tmp_path / "captions.txt").write_text("one\ntwo\n")
    (tmp_path / "blank.txt").write_text("one\n" * 10 + "\n" + "two\n" * 9)
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "floats.npz", arr_0=np.zeros((3, 8, 8, 3)))
    whole = tmp_path / "whole.npz"
    np.savez(whole, arr_0=pictures(20, 0))
    mixed = folder(folder(tmp_path / "mixed", pictures(3, 0)), pictures(1, 0, side=12), start=3)
    return {
        "nothing there": (tmp_path / "none", fine, {}, "do not exist"),
        "empty folder": (tmp_path / "empty", fine, {}, "holds no pictures; accepted: .bmp"),
        "empty reference": (fine, tmp_path / "empty", {}, "holds no pictures"),
        "one picture": (folder(tmp_path / "one", pictures(1, 0)), fine, {}, "1 pictures in 6 .*kernel_distance"),
        "mixed sizes": (mixed, fine, {}, "mixes sizes: 000.png is 8 x 8 and 003.png is 12 x 12; .*--crop=8"),
        "two sizes": (fine, folder(tmp_path / "large", pictures(9, 0, side=12)), {}, "pictures are 8 x 8 .* 12 x 12"),
        "no archive": (tmp_path / "text.npz", fine, {}, "is no npz file"),
        "no pictures in it": (tmp_path / "floats.npz", fine, {}, "no array of pictures; expected uint8"),
        "captions too few": (fine, fine, dict(captions=tmp_path / "captions.txt"), "2 lines for 20 pictures"),
        "a blank caption": (fine, fine, dict(captions=tmp_path / "blank.txt"), "none for 1 of 20 .* 010.png"),
        "captions without clip": (fine, fine, dict(captions=tmp_path / "full.txt"), "no feature space has a text enc"),
        "tiny crop": (fine, fine, dict(crop=2), "crop=2 pixels; give 8"),
    }[name]


BAD = [
    "nothing there",
    "empty folder",
    "empty reference",
    "one picture",
    "mixed sizes",
    "two sizes",
    "no archive",
    "no pictures in it",
    "captions too few",
    "a blank caption",
    "captions without clip",
    "tiny crop",
]


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(tmp_path, name):
    (tmp_path / "full.txt").write_text("a picture\n" * 20)
    images, reference, options, words = bad(tmp_path, name)
    with pytest.raises(UserError, match=words) as caught:
        measure(images, reference, [colours()], **options)
    assert "\n" not in str(caught.value)


def test_pictures_with_nan_features_are_named(tmp_path):
    images = pictures(20, 0)
    images[7] = 0
    a, b = folder(tmp_path / "a", images), folder(tmp_path / "b", pictures(20, 0))
    ratio = lambda p, x: {"pooled": (x / x.sum((1, 2, 3), keepdims=True)).mean((1, 2))}
    space = FeatureSpace(Described("ratio", "", "", 3), ratio, {})
    for sides in ((a, b), (b, a)):
        with pytest.raises(UserError, match=r"in ratio are not finite for 1 of 20 pictures \(007.png\)"):
            measure(*sides, [space])


def test_an_npz_of_statistics_and_pictures_gives_both(tmp_path):
    """As ADM's reference batches, whose statistics are FID's and of more pictures than they hold."""
    a, images = folder(tmp_path / "a", pictures(40, 0)), pictures(50, 1)
    b, fid = folder(tmp_path / "b", images), colours(is_fid=True)
    wider = fid.features(pictures(90, 2))["pooled"].astype(np.float64)
    np.savez(tmp_path / "both.npz", arr_0=images, mu=wider.mean(0), sigma=np.cov(wider.T))
    of = lambda reference, space: measure(a, reference, [space])["spaces"]["colours"]["figures"]
    assert of(tmp_path / "both.npz", colours()) == of(b, colours())
    both, own = of(tmp_path / "both.npz", fid), of(b, fid)
    assert both["kid"] == own["kid"] and both["precision_recall"] == own["precision_recall"]
    assert both["fid"]["fid"] == pytest.approx(metrics.frechet(fid.features(pictures(40, 0))["pooled"], wider))
    assert measure(a, tmp_path / "both.npz", [fid])["reference"]["pictures"]["n"] == 50
    plain = colours(name="plain")
    for spaces in ([fid, plain], [plain, fid]):  # each has its own
        result = measure(a, tmp_path / "both.npz", spaces)
        assert result["spaces"]["plain"]["reference"]["n"] == 50 and result["reference"] == "one for each space"
        about = result["spaces"]["colours"]["reference"]
        assert about["sha256"] == hashlib.sha256((tmp_path / "both.npz").read_bytes()).hexdigest()
        assert (about["n"], about["resize"], about["crop"]) == (None, "unknown", "unknown")


def test_grids_of_samples_are_left_out_and_named(tmp_path, capsys):
    a, b = folder(tmp_path / "a", pictures(20, 0)), folder(tmp_path / "b", pictures(20, 0))
    folder(tmp_path / "a", pictures(1, 1, side=30), start=999)
    (a / "999.png").rename(a / "grid.png")
    result = measure(a, b, [colours()])
    assert result["images"]["digest"] == result["reference"]["digest"] and result["images"]["n"] == 20
    report(result)
    assert f"left out of {a}: grid.png" in capsys.readouterr().err


def test_two_spaces_of_one_name_are_refused(tmp_path):
    a = folder(tmp_path / "a", pictures(20, 0))
    with pytest.raises(UserError, match="two feature spaces are called 'colours'"):
        measure(a, a, [colours(), colours(digest="4567")])


def test_the_home_folder_may_be_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    a = folder(tmp_path / "a", pictures(3, 0))
    (tmp_path / "c.txt").write_text("one\ntwo\nthree\n")
    np.savez(tmp_path / "s.npz", mu=np.zeros(6), sigma=np.eye(6))
    (tmp_path / "model").symlink_to(ASSETS / "clip_mini")
    assert PictureSet("~/a", captions="~/c.txt").captions == PictureSet(a, captions=tmp_path / "c.txt").captions
    assert statistics.is_statistics("~/s.npz")
    assert statistics.read("~/s.npz", colours(is_fid=True).described, "none").pooled.mean.shape == (6,)
    ours, shipped = open_space("clip:~/model").described, open_space("clip:builtin:clip_mini").described
    assert ours == shipped and ours.digest != hashlib.sha256().hexdigest()[:16]
    with pytest.raises(UserError, match=f"{tmp_path}/no"):
        open_space("inception:~/no")


def test_an_inception_score_needs_no_reference(tmp_path, monkeypatch):
    monkeypatch.setattr(measure_command, "open_space", lambda spec: colours(is_fid=True))
    a, out = folder(tmp_path / "a", pictures(60, 0)), tmp_path / "o.json"
    command_line.run("metrics", None, command_line.Options("", images=str(a), features=("inception:x",), out=str(out)))
    assert set(json.loads(out.read_text())["spaces"]["colours"]["figures"]) == {"inception_score"}


@pytest.mark.parametrize("spec", ["vgg", "efficientnet:x", "clip", "inception:", "clip:builtin:none", "dinov2:nowhere"])
def test_unknown_spaces_are_named(spec):
    with pytest.raises(UserError, match="accepted|do not exist|does not exist"):
        open_space(spec)
    with pytest.raises(UserError, match="hf download facebook/dinov2-none"):
        open_space("dinov2:facebook/dinov2-none")


def test_the_judges_features_are_a_space():
    images, judge = pictures(3, 0).astype(np.uint8), load_recogniser("demo")
    space = open_space("judge:demo")
    np.testing.assert_allclose(space.pooled(images), judge.features(images), atol=1e-5)
    assert space.described.width == 32 and not space.described.is_fid


def test_command_line(tmp_path):
    source = OpenMojiSource("demo", "test", 32)
    records = [source[i] for i in range(60)]
    a = folder(tmp_path / "a", np.stack([r["image"] for r in records[:30]]))
    folder(tmp_path / "b", np.stack([r["image"] for r in records[30:]]))
    (tmp_path / "captions.txt").write_text("\n".join(r["caption"] for r in records[:30]) + "\n")
    lines = [{"file_name": f"{i:03d}.png", "text": r["caption"]} for i, r in enumerate(records[:30])]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, reversed(lines))))
    options = command_line.Options(
        "", images=str(a), features=("clip:builtin:clip_mini",), out=str(tmp_path / "out.json")
    )
    options = dataclasses.replace(options, reference=str(tmp_path / "b"))
    command_line.run("metrics", None, dataclasses.replace(options, captions=str(tmp_path / "metadata.jsonl")))
    with open(tmp_path / "out.json") as file:
        ours = json.load(file)["spaces"]["clip clip_mini"]
    assert {"kernel_distance", "precision_recall", "cmmd", "clip_score"} == ours["figures"].keys()
    assert "128 features" in ours["refused"]["frechet_distance"]
    how = ours["how"]["clip_score"]
    assert (how["prefix"], how["captions_cut"], how["max_length"]) == ("", 0, 32) and "centre crop, 32" in how["resize"]
    assert how["prefix"] != (other := "See: ")
    named = dataclasses.replace(options, captions=str(tmp_path / "captions.txt"), caption_prefix=other, reference="")
    command_line.run("metrics", None, dataclasses.replace(named, out=str(tmp_path / "named.json")))
    named = json.loads((tmp_path / "named.json").read_text())["spaces"]["clip clip_mini"]
    assert named["how"]["clip_score"]["prefix"] == other
    assert named["figures"]["clip_score"]["clip_score"] != ours["figures"]["clip_score"]["clip_score"]
    flags = [f"--images={a}", f"--reference={options.reference}", f"--captions={tmp_path / 'captions.txt'}"]
    command = [sys.executable, "-m", "contextdiff_jax.main", "--mode=metrics", "--features=clip:builtin:clip_mini"]
    done = subprocess.run([*command, *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # Standard output is the JSON alone; the captions are the same in the other order and layout.
    assert json.loads(done.stdout)["spaces"]["clip clip_mini"]["figures"]["clip_score"] == ours["figures"]["clip_score"]


def test_command_line_says_what_is_missing(tmp_path):
    a = str(folder(tmp_path / "a", pictures(20, 0)))
    for options, words in (
        ({}, "--images is missing"),
        (dict(images=a), "--reference is missing"),
        (dict(images=a, reference=a, caption_prefix=""), "--caption_prefix='' cannot act without captions"),
        (dict(images=a, out="s.npz", features=("efficientnet", "efficientnet")), "2 feature spaces for one file"),
        (dict(images=a, reference=a, out=f"{a}/000.png/o.json"), "folder of results .* cannot be written"),
        (dict(images=a, reference=a, out=a), "--out=.* is a folder"),
        (dict(images=a, num_processes=2), "need a coordinator"),
        (dict(images=a, reference=a, out=f"{a}/s.npz"), "s.npz with --reference: an npz takes the statistics"),
        (dict(images=a, captions=a, out=f"{a}/s.npz"), "s.npz with --captions: an npz takes the statistics"),
    ):
        with pytest.raises(UserError, match=words):
            command_line.run("metrics", None, command_line.Options("", **options))


def test_statistics_from_the_command_line(tmp_path, capsys):
    a, out = folder(tmp_path / "a", pictures(200, 0)), tmp_path / "s.npz"
    options = dict(images=str(a), features=("clip:builtin:clip_mini",), crop=32)
    few = folder(tmp_path / "few", pictures(100, 0))
    (few / "bad.png").write_bytes(b"no picture")
    command_line.run("metrics", None, command_line.Options("", out=str(out), **options | {"images": str(few)}))
    said = capsys.readouterr().err
    assert "WARNING: a Frechet distance of 100 pictures in 128 features" in said and "bad.png: not an image" in said
    command_line.run("metrics", None, command_line.Options("", out=str(out), **options))
    assert "WARNING" not in capsys.readouterr().err
    command_line.run(
        "metrics", None, command_line.Options("", reference=str(out), out=str(tmp_path / "o.json"), **options)
    )
    with open(tmp_path / "o.json") as file:
        figures = json.load(file)["spaces"]["clip clip_mini"]["figures"]
    assert figures == {"frechet_distance": {"frechet_distance": pytest.approx(0.0, abs=1e-5), "n": 200}}


def test_a_measurement_goes_on_where_it_was_cut_off(tmp_path, monkeypatch, capsys):
    """Of 3 batches of the reference and 3 of the pictures none is looked at twice; the figures are the same bits."""
    a, b = folder(tmp_path / "a", pictures(20, 0)), folder(tmp_path / "b", pictures(24, 1))
    seen, cuts = [], []

    class Cut(Journal):
        def tick(self):
            super().tick()
            seen.append(1)
            if len(seen) in cuts:
                raise KeyboardInterrupt

    monkeypatch.setattr(measure_command, "open_space", lambda spec: colours(is_fid=True))
    monkeypatch.setattr(measure_module, "BATCH", 8)
    monkeypatch.setattr(unfinished, "PATIENCE", 0)
    monkeypatch.setattr(measure_command, "Journal", functools.partial(Cut, every=0.0))
    run = lambda out, reference=str(b): command_line.run(
        "metrics",
        None,
        command_line.Options("", images=str(a), reference=reference, features=("x",), out=str(tmp_path / out)),
    )
    run("whole.json")
    assert len(seen) == 6
    seen.clear()
    cuts += [2, 5]
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run("cut.json")
        assert not (tmp_path / "cut.json").exists()
    run("cut.json")
    assert len(seen) == 6 and "going on with the measurement" in capsys.readouterr().err
    assert (tmp_path / "cut.json").read_text() == (tmp_path / "whole.json").read_text()
    cuts[:] = [len(seen) + 1]  # statistics alone, and pictures that change meanwhile
    with pytest.raises(KeyboardInterrupt):
        run("s.npz", "")
    folder(a, pictures(1, 5), start=20)
    run("s.npz", "")
    assert statistics.read(tmp_path / "s.npz", colours(is_fid=True).described, "none").about["n"] == 21
    assert len(seen) == 6 + 1 + 3 and not list(tmp_path.glob(".*unfinished*"))
    folder(a, pictures(1, 5, side=12), start=21)  # refused in the second batch
    with pytest.raises(UserError, match="mixes sizes"):
        run("m.json")
    assert not list(tmp_path.glob(".*unfinished*"))


def test_what_was_computed_is_not_lost_with_its_file(tmp_path, monkeypatch, capsys):
    a, write = folder(tmp_path / "a", pictures(20, 0)), statistics.write
    monkeypatch.setattr(measure_command, "open_space", lambda spec: colours())
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)

    def refuse(path, *args):
        if Path(path).parent == tmp_path:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, *args)

    options = command_line.Options("", images=str(a), features=("efficientnet",), out=str(tmp_path / "s.npz"))
    monkeypatch.setattr(statistics, "write", refuse)
    with pytest.raises(UserError, match=r"s.npz cannot be written \(No space left.*are in .*s.npz") as caught:
        command_line.run("metrics", None, options)
    kept = re.search(r"are in (\S+):", str(caught.value))[1]
    assert statistics.read(kept, colours().described, "none").about["n"] == 20
    monkeypatch.setattr(measure_command, "write_json", lambda value, path: refuse(path))
    options = dataclasses.replace(options, reference=str(a), out=str(tmp_path / "m.json"))
    with pytest.raises(UserError, match="m.json cannot be written .*printed instead"):
        command_line.run("metrics", None, options)
    assert json.loads(capsys.readouterr().out)["images"]["n"] == 20
