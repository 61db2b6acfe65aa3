"""Boxes drawn beside pictures, and shares with their errors."""

import numpy as np
import pytest

from configs import cifar10_nll, t2i
from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate.conditions import check_judge, share, with_boxes


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


@pytest.mark.parametrize(
    "box, column", [((0.99, 0.1, 1, 0.5), 7), ((0, 0.1, 0.01, 0.5), 0), ((0.5, 0.1, 0.501, 0.5), 4)]
)
def test_boxes_of_less_than_a_pixel_are_drawn_where_they_are(box, column):
    drawn = with_boxes(np.zeros((1, 8, 8, 3), np.uint8), [[(0, box)]])[0, :, 8:]
    np.testing.assert_array_equal(np.argwhere(drawn[..., 0]), [[row, column] for row in (1, 2, 3)])


@pytest.mark.parametrize("make", [t2i, cifar10_nll])
def test_a_judge_that_is_not_there_is_said_before_the_training(make, tmp_path):
    config = make.get_config("tiny")
    check_judge(config)  # none is named
    config.eval.recogniser, config.eval.judge_steps = str(tmp_path / "none"), 5
    with pytest.raises(UserError, match="none"):
        check_judge(config)


def test_a_share_has_a_binomial_error():
    assert share(np.array([True, True, False, True])) == {"object": 0.75, "object_stderr": np.sqrt(0.75 / 16), "n": 4}
