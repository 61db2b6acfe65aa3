"""Boxes drawn beside pictures, and shares with their errors."""

import numpy as np

from contextdiff_jax.evaluate.conditions import share, with_boxes


def test_boxes_are_drawn_beside_the_picture():
    images = np.full((1, 8, 8, 3), 60, np.uint8)
    drawn = with_boxes(images, [[(0, (0.25, 0.5, 0.75, 1.0))]])
    assert drawn.shape == (1, 8, 16, 3)
    np.testing.assert_array_equal(drawn[:, :, :8], images)
    marked = (drawn[0, :, 8:] == (255, 0, 255)).all(-1)
    expected = np.zeros((8, 8), bool)
    expected[4:8, 2:6] = True
    expected[5:7, 3:5] = False
    np.testing.assert_array_equal(marked, expected)


def test_a_share_has_a_binomial_error():
    assert share(np.array([True, True, False, True])) == {"object": 0.75, "object_stderr": np.sqrt(0.75 / 16), "n": 4}
