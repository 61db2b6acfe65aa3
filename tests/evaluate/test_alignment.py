"""Counting hits, with a judge whose answers are written down."""

import numpy as np
import pytest

from contextdiff_jax import evaluate as ev
from contextdiff_jax.errors import UserError


class Scripted:
    """Answers what it is told to, whatever the images."""

    def __init__(self, objects, backgrounds):
        self.answer = np.array(objects), np.array(backgrounds)

    def predict(self, images):
        return self.answer


IMAGES = np.zeros((4, 8, 8, 3), np.uint8)
ASKED = dict(objects=[0, 1, 2, 3], backgrounds=[0, 0, 1, 1])
JUDGE = Scripted([0, 1, 2, 0], [0, 5, 1, 0])  # object right on 0 1 2, background on 0 2


def test_shares_and_binomial_errors():
    figures = ev.alignment(IMAGES, **ASKED, recogniser=JUDGE)
    assert figures["n"] == 4
    assert (figures["object"], figures["background"], figures["both"]) == (0.75, 0.5, 0.5)
    np.testing.assert_allclose(figures["object_stderr"], np.sqrt(0.75 * 0.25 / 4))
    np.testing.assert_allclose(figures["both_stderr"], 0.25)


def test_groups_split_by_the_asked_pair():
    groups = ev.alignment_by_group(IMAGES, **ASKED, recogniser=JUDGE, unseen=frozenset({(1, 0), (2, 1)}))
    assert groups["seen"]["n"] == groups["unseen"]["n"] == 2
    assert groups["seen"]["object"] == 0.5 and groups["unseen"]["object"] == 1.0
    assert groups["unseen"]["both"] == 0.5


def test_empty_group_has_no_figures():
    groups = ev.alignment_by_group(IMAGES, **ASKED, recogniser=JUDGE, unseen=frozenset())
    assert groups["unseen"] == {"n": 0}
    assert groups["seen"]["n"] == 4


def test_ceiling_judges_the_first_records():
    pairs = (0, 0), (1, 5), (2, 0)
    source = [dict(image=np.zeros((8, 8, 3), np.uint8), object=o, background=b) for o, b in pairs]
    figures = ev.ceiling(source, Scripted([0, 1, 2], [0, 5, 1]), 8)
    assert figures["n"] == 3 and figures["object"] == 1.0 and figures["background"] == pytest.approx(2 / 3)


def test_chance():
    assert ev.chance(12, 6) == dict(object=1 / 12, background=1 / 6, both=1 / 72)


def test_counts_must_agree():
    with pytest.raises(UserError, match="4 images with 3 objects"):
        ev.alignment(IMAGES, [0, 1, 2], [0, 0, 1, 1], JUDGE)
