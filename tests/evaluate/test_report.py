"""Grids and reports as files: sizes, wrapping, atomicity."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageFont

from contextdiff_jax import pictures as captions
from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate import report
from contextdiff_jax.files import atomic, write_json

FONT = ImageFont.load_default(size=12)


def test_grid_shows_each_image_at_a_whole_factor(tmp_path):
    images = np.zeros((3, 32, 32, 3), np.uint8)
    images[..., 0] = np.array([10, 100, 200])[:, None, None]
    captions.caption_grid(images, ["one", "two", "three"], tmp_path / "deep" / "grid.png", columns=2)
    grid = np.asarray(Image.open(tmp_path / "deep" / "grid.png"))
    assert grid.shape[1] == captions.PAD + 2 * (128 + captions.PAD)
    middle = captions.PAD + 64
    assert tuple(grid[middle, middle]) == (10, 0, 0)
    assert tuple(grid[middle, middle + 128 + captions.PAD]) == (100, 0, 0)
    below = captions.PAD + 128 + 60
    assert tuple(grid[below, middle]) == (200, 0, 0)  # the third is in the second row
    assert (grid[captions.PAD + 128 : captions.PAD + 146, captions.PAD : 128].min(-1) < 90).any()  # "one"


def test_nearest_keeps_the_pixels(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (1, 60, 60, 3), np.uint8)
    grid = np.asarray(captions.draw_grid(images, [""], resample="nearest"))
    tile = grid[captions.PAD : captions.PAD + 120, captions.PAD : captions.PAD + 120]
    np.testing.assert_array_equal(tile[2:-2:2, 2:-2:2], images[0, 1:-1, 1:-1])  # the rim is the frame


def test_float_and_uint8_agree_and_nan_is_grey():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1)
    np.testing.assert_array_equal(captions.to_uint8(levels / 127.5 - 1.0), levels)
    np.testing.assert_array_equal(captions.to_uint8(np.full((1, 2, 2, 3), np.nan)), 128)
    np.testing.assert_array_equal(captions.to_uint8(np.full((1, 2, 2, 3), 7.0)), 255)


@pytest.mark.parametrize("text", ["a red apple on a blue ground", "x" * 60, "word " * 60, "", "two  spaces"])
def test_wrapped_lines_fit(text):
    lines = captions.wrap(text, FONT, 96).split("\n")
    assert len(lines) <= captions.MAX_LINES
    assert all(FONT.getlength(line) <= 96 for line in lines)
    if not lines[-1].endswith("..."):
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_marks_colour_the_bar():
    images = np.zeros((2, 120, 120, 3), np.uint8)
    grid = np.asarray(captions.draw_grid(images, ["", ""], correct=[True, False]))
    right, wrong = grid[captions.PAD + 120 + 3, [captions.PAD + 60, 2 * captions.PAD + 180]]
    assert right[1] > right[0] and wrong[0] > wrong[1]


@pytest.mark.parametrize(
    ("shape", "texts", "match"),
    [
        ((2, 8, 8, 3), ["one"], "2 images with 1 cap"),
        ((0, 8, 8, 3), [], "0 images"),
        ((8, 8, 3), ["x"], "shape"),
    ],
)
def test_bad_grids_are_refused(shape, texts, match):
    with pytest.raises(UserError, match=match):
        captions.draw_grid(np.zeros(shape, np.uint8), texts)


def test_report_is_one_picture(tmp_path):
    shares = dict(object=0.9, background=1.0, both=0.9)
    row = shares | {f"{name}_stderr": 0.03 for name in shares} | dict(n=128)
    figures = dict(
        title="runs of $5 and \\frac $x^$: step 1",  # no formula of matplotlib's, which would end in an error
        alignment={"seen $_$": row, "chance": shares, "unseen": dict(n=0)},
        bits_per_dim={"contextual": dict(mean=3.6, stderr=0.03, prior=1e-4), "adapter off": dict(mean=3.7)},
        samples_per_second=7.1,
        sampler="ddim",
    )
    grid = np.zeros((9, 32, 32, 3), np.float32), ["caption"] * 9
    report.write_report(figures, {"Seen": grid, "Unseen": (*grid, [True] * 9)}, tmp_path / "report.png")
    with Image.open(tmp_path / "report.png") as image:
        assert image.width >= report.MIN_WIDTH and image.height > 700
    report.write_report({}, {}, tmp_path / "empty.png")
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["empty.png", "report.png"]


def test_report_names_every_plain_figure():
    row = dict(frechet=0.5, precision=0.25, recall=0.75, n=9, too_few="9 pictures in 32 features")
    figures = dict(title="t", samples_per_second={"on": 7.123456}, parameters=3_800_000, sampler="ddim")
    facts = dict(report._facts(figures | dict(judge_features={"on": row})))
    said = facts.pop("judge Frechet distance, on")
    assert said == "0.5 (too few pictures)   (precision 0.25, recall 0.75, 9 images)"
    assert facts == {"samples per second, on": "7.123", "parameters": "3,800,000", "sampler": "ddim"}


def test_json_takes_array_scalars_and_stays_strict(tmp_path):
    value = dict(a=np.float32(0.5), b=jnp.arange(2), c=float("nan"), d=(1, "x"), e={0: None})
    write_json(value, tmp_path / "eval.json")
    found = json.loads((tmp_path / "eval.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert found == dict(a=0.5, b=[0, 1], c=None, d=[1, "x"], e={"0": None})


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_columns_are_what_the_rows_measure():
    layouts = {"layouts, adapter on": {"object": 0.5, "iou": 0.4, "n": 4}, "floor": {"object": 0.1, "iou": 0.2}}
    assert report.columns_of(layouts) == ("object", "iou")
    assert report.columns_of({"seen": {"n": 0}}) == ("object", "background", "both")
