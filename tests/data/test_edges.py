"""Canny's edges of drawn pictures."""

import numpy as np
import PIL.Image
import pytest
from PIL import ImageDraw

from contextdiff_jax.data.edges import edges
from contextdiff_jax.errors import UserError


def test_edges_are_thin_lines_on_the_outline():
    image = PIL.Image.new("RGB", (64, 48), "black")
    ImageDraw.Draw(image).rectangle((16, 12, 47, 35), fill="white")
    found = edges(image)
    assert found.shape == (48, 64, 3) and set(np.unique(found)) == {0.0, 1.0}
    rows, columns = np.nonzero(found[..., 0])
    distance = np.minimum.reduce([abs(rows - 12), abs(rows - 35), abs(columns - 16), abs(columns - 47)])
    assert distance.max() <= 1
    perimeter = 2 * (32 + 24)
    assert 0.8 * perimeter < len(rows) < 1.1 * perimeter
    drawn, (inside_rows, inside_columns) = found[..., 0], (slice(16, 32), slice(20, 44))
    assert (drawn[inside_rows, :32].sum(1) == 1).all() and (drawn[inside_rows, 32:].sum(1) == 1).all()
    assert (drawn[:24, inside_columns].sum(0) == 1).all() and (drawn[24:, inside_columns].sum(0) == 1).all()


def test_weak_edges_count_where_they_lead_on_from_strong_ones():
    ramp = np.zeros((40, 40), np.uint8)
    ramp[:, 20:] = np.linspace(45, 120, 40).astype(np.uint8)[:, None]  # one edge, weak above and strong below
    alone = ramp.copy()
    alone[20:] = 0
    joined = edges(PIL.Image.fromarray(ramp), low=100, high=300, blur=0.5)[..., 0]
    apart = edges(PIL.Image.fromarray(alone), low=100, high=500, blur=0.5)[..., 0]
    assert joined[3].any() and joined[35].any() and not apart[3].any()
    with pytest.raises(UserError, match="low=3.0, high=2.0"):
        edges(PIL.Image.fromarray(ramp), low=3.0, high=2.0)
