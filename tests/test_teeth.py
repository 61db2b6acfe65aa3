"""The metrics have teeth: each way of spoiling real renders moves the figures that should see it, and no others."""

import pytest

from contextdiff_jax.evaluate.feature_spaces import open_space
from contextdiff_jax.models.recogniser import load_recogniser
from docs import teeth

COUNT = 250


@pytest.fixture(scope="module")
def rows():
    space = open_space("clip:builtin:clip_mini")
    reference = teeth.renders(COUNT, skip=COUNT)
    return teeth.table(teeth.small_space(space, reference, load_recogniser("demo")), COUNT)


def moved(rows, name: str, figure: str, times: float = 4.0) -> bool:
    """Whether a figure lies further from that of other real renders than so many of its errors."""
    row, real = rows[name], rows["other real renders"]
    return abs(row[figure] - real[figure]) > times * max(row[f"{figure}_stderr"], real[f"{figure}_stderr"])


@pytest.mark.parametrize("name", ["blurred", "noise", "JPEG"])
def test_spoilt_pictures_move_distances_and_quality(rows, name):
    assert rows[name]["frechet_distance"] > 2 * rows["other real renders"]["frechet_distance"]
    assert moved(rows, name, "kernel_distance")
    assert rows[name]["cmmd"] > 2 * rows["other real renders"]["cmmd"]
    assert moved(rows, name, "precision")
    assert not moved(rows, name, "both", times=2)  # the drawings are still what they were


@pytest.mark.parametrize("name", ["duplicates", teeth.ONE_CLASS])
def test_missing_variety_moves_coverage_and_not_quality(rows, name):
    assert rows[name]["frechet_distance"] > 3 * rows["other real renders"]["frechet_distance"]
    assert moved(rows, name, "recall", times=8)
    assert not moved(rows, name, "precision")
    assert not moved(rows, name, "both", times=2)
    assert rows[name]["clip_score"] > 0.95 * rows["other real renders"]["clip_score"]


def test_shuffled_captions_move_the_alignment_alone(rows):
    row, real = rows["shuffled captions"], rows["other real renders"]
    assert moved(rows, "shuffled captions", "clip_score", times=20)
    assert row["both"] < 0.2 < 0.9 < real["both"]
    for figure in ("frechet_distance", "kernel_distance", "precision", "recall", "cmmd"):
        assert row[figure] == real[figure]


def test_other_real_renders_are_the_floor(rows):
    floor = rows["other real renders"]
    assert abs(floor["kernel_distance"]) < 4 * floor["kernel_distance_stderr"]
    assert floor["precision"] > 0.8 and floor["recall"] > 0.8
