"""Figures on arrays: differences against closed forms, pictures that show what they are given, tables."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate import figures
from docs.figures.store import trainings


def test_differences_are_those_of_the_seeds():
    a, b = np.array([[1.0, 2.0], [3.0, 2.0]]), np.array([[2.0, 2.0], [6.0, 2.0]])
    gain, error = figures.differences(a, b)
    np.testing.assert_allclose(gain, [2.0, 0.0])
    np.testing.assert_allclose(error, [1.0, 0.0])
    assert np.isnan(figures.differences(a[0], b[0])[1]).all()
    assert figures.spread([0.5, 0.7]) == "0.6 (0.5 to 0.7)"


def test_figures_are_drawn_with_bands_over_seeds(tmp_path):
    measured = lambda: {name: np.random.rand(3, 6) for name in ("frechet", "aligned", "clip")}
    arms = {arm: measured() for arm in ("on", "off")}
    figures.guidance(range(6), {rf"${arm}\x$": v for arm, v in arms.items()}, tmp_path / "guidance.png")  # no formula
    rows = {arm: {"bits per dimension": np.random.rand(3, 4), "recognised": np.random.rand(3, 4)} for arm in arms}
    seconds = {arm: np.cumsum(np.ones((3, 4)), axis=1) for arm in arms}
    figures.convergence([1, 2, 3, 4], seconds, rows, tmp_path / "convergence.png")
    for name, panels in (("guidance", 4), ("convergence", 3)):
        with Image.open(tmp_path / f"{name}.png") as image:
            pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
        assert image.width > 300 * panels
        for colour in figures.COLOURS[:2]:
            rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
            assert (np.abs(pixels - np.array(rgb)).max(axis=1) < 8).sum() > 100, (name, colour)
    with pytest.raises(UserError, match="give \\[K\\] and \\[seeds, K\\]"):
        figures.lines({"t": {"on": ([1, 2], [[1.0]])}}, {"t": "x"}, tmp_path / "x.png")


def test_options_of_one_figure_are_not_given_to_all():
    script = Path(__file__).parents[2] / "launch" / "figures.sh"
    done = subprocess.run(["bash", script, "--quick", "--seeds=1"], capture_output=True, text=True)
    assert done.returncode == 2 and "--quick --seeds=1 belongs to one figure" in done.stderr


def test_trainings_are_of_the_same_seeds_in_both_arms(tmp_path):
    for name in ("on-0", "on-1", "off-0"):
        (tmp_path / f"converge-{name}").mkdir()
    with pytest.raises(UserError, match=r"with the adapter \['0', '1'\], without \['0'\]; bash .* convergence"):
        trainings(tmp_path)
    (tmp_path / "converge-off-1").mkdir()
    assert [path.name for path in trainings(tmp_path)["off"]] == ["converge-off-0", "converge-off-1"]


def test_the_cost_table_is_markdown():
    row = dict(trained=8_100_000, frozen=2_000_000, seconds=0.1234, processor=0.2, gigabytes=0.5)
    lines = figures.cost_table({"demo": {"with adapter": row}})
    assert lines[-1] == "| demo | with adapter | 8.10 | 2.00 | 0.123 | 0.2 | 0.5 |"
    assert len({line.count("|") for line in lines}) == 1
