import numpy as np
import pytest

from contextdiff_jax.data import raster, vocabulary
from contextdiff_jax.data.vocabulary import SAME_DRAWING

_HALF = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72"><rect {}/></svg>'


def test_alpha_is_straight():
    # The rectangle covers half of each pixel in column 4: its colour must not be darkened there.
    image = raster.render(_HALF.format('x="36" y="0" width="36" height="72" fill="#ff8040"'), 9)
    assert (image[:, :4] == 0).all() and (image[:, 5:] == [255, 128, 64, 255]).all()
    assert np.abs(image[:, 4].astype(int) - [255, 128, 64, 128]).max() <= 1


@pytest.mark.parametrize("background", [(0, 0, 0), (255, 255, 255), (40, 95, 215), (214, 48, 49)])
def test_paste_is_the_over_operator(background):
    code, size = "1F34E", 23
    rgba = raster.render(raster._cropped_svg(code), size).astype(np.float64)
    alpha = rgba[..., 3:] / 255
    expected = np.empty((32, 32, 3))
    expected[...] = background
    expected[5 : 5 + size, 3 : 3 + size] *= 1 - alpha
    expected[5 : 5 + size, 3 : 3 + size] += rgba[..., :3] * alpha
    canvas = np.empty((32, 32, 3), np.uint8)
    canvas[...] = background
    raster.paste(canvas, code, 3, 5, size)
    np.testing.assert_array_less(np.abs(canvas - expected), 0.5 + 1e-9)
    assert 0 < alpha.mean() < 1 and len(np.unique(alpha)) > 10  # antialiased


def test_no_dark_or_light_fringe():
    """On a background of the drawing's own colour an antialiased edge disappears."""
    svg = _HALF.format('x="10" y="7" width="41" height="50" fill="#ff8040"')
    image = raster.render(svg, 16).astype(np.uint16)
    canvas = np.full((16, 16, 3), (255, 128, 64), np.uint8)
    out = (image[..., :3] * image[..., 3:] + canvas * (255 - image[..., 3:]) + 127) // 255
    assert np.abs(out.astype(int) - canvas).max() <= 1


@pytest.mark.parametrize("size", [64, 432])
def test_cropped_drawing_fills_its_square(size):
    """The extent is known to 1/4 of 72 units; views of 49.25 and of 60.5 units are rounded as the renderer does."""
    for code in vocabulary("demo").codes:
        alpha = raster.render(raster._cropped_svg(code), size)[..., 3]
        x0, y0, x1, y1 = raster.tight_box(code)
        assert 0.98 < max(x1 - x0, y1 - y0) <= 1
        columns, rows = np.flatnonzero(alpha.any(0)), np.flatnonzero(alpha.any(1))
        drawn = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        assert np.abs(drawn - size * np.array([x0, y0, x1, y1])).max() <= max(1, size / 72 / 4 + 0.5)


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_every_emoji_draws_something_and_only_known_ones_look_alike(every):
    vocab = vocabulary("single")
    seen: dict[bytes, str] = {}
    for code in vocab.codes[::every]:
        image = raster.render(raster._cropped_svg(code), 72)
        assert image[..., 3].any(), code
        other = seen.setdefault(image.tobytes(), code)
        same = {SAME_DRAWING.get(code, code), SAME_DRAWING.get(other, other)}
        assert len(same) == 1, (code, other)


def test_no_drawing_needs_a_font():
    assert not [code for code in vocabulary("single").codes if "<text" in raster._svg(code)]


def test_cache_is_bounded_and_keeps_the_recently_used():
    cache = raster.StickerCache(max_bytes=3 * 16 * 16 * 4)
    for code in ("1F34E", "2B50", "1F438"):
        cache.get(code, 16)
    cache.get("1F34E", 16)
    cache.get("26BD", 16)
    assert list(cache._items) == [("1F438", 16), ("1F34E", 16), ("26BD", 16)]
    assert cache._bytes == 3 * 16 * 16 * 4
    np.testing.assert_array_equal(cache.get("2B50", 16)[0], raster.StickerCache(10**6).get("2B50", 16)[0])
