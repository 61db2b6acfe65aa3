"""The study of the objective: its runner with a handful of steps, its plots from the stored results, its measures."""

import dataclasses
import json
import shutil
from pathlib import Path

import gaussian_toy
import jax
import numpy as np
import pytest
from PIL import Image

from contextdiff_jax.process import schedule
from docs.study import linear, measure, plots, run, toy
from docs.study.variants import REFERENCE, VARIANTS

FOLDER = Path(run.__file__).parent


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A run of five steps under two seeds."""
    folder = tmp_path_factory.mktemp("results")
    jax.config.update("jax_disable_most_optimizations", True)  # nearly all the time goes into compiling
    try:
        run.study("mixture", ["simple_free"], [0, 1], folder, toy.quick(toy.Size()))
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
    return folder


def test_a_run_is_stored_with_all_its_figures_and_not_run_again(results, monkeypatch):
    stored = run.load(results / "mixture.json")
    figures = stored["runs"]["simple_free"]
    assert figures.keys() == {"0", "1"}
    for of_seed in figures.values():
        assert np.isfinite(of_seed["bound"]["per_image"]).all() and np.isfinite(of_seed["quality"]["energy"])
        assert max(of_seed["r_rms"]) > 0 and len(of_seed["lipschitz"]) == measure.NUM_TIMES
    assert figures["0"]["bound"]["mean"] != figures["1"]["bound"]["mean"]
    # The exact likelihood that is quoted, against the textbook mixture density
    size = toy.quick(toy.Size())
    task = toy.ToyTask(toy.config_of(size), toy.DATA["mixture"], size)
    test = task.batch(toy.stream(0, "test"), size.num_test)
    for x, label, exact in zip(test["image"], test["label"], stored["reference"]["exact"], strict=True):
        density = np.mean([np.exp(-((x - m) ** 2).sum() / 2 / 0.08**2) for m in task.data.means[label]]) / (
            2 * np.pi * 0.08**2
        )
        assert -np.log(density) == pytest.approx(exact, abs=1e-3)

    def trained_again(*args):
        raise AssertionError("a stored run was trained again")

    monkeypatch.setattr(toy, "run", trained_again)
    run.study("mixture", ["simple_free"], [0, 1], results, size)


def test_plots_and_tables_are_those_of_the_stored_results(tmp_path):
    page = tmp_path / "study.md"
    shutil.copy(plots.PAGE, page)
    plots.main(run.RESULTS, tmp_path, page)
    assert page.read_text() == plots.PAGE.read_text(), "rebuild the page: bash launch/study.sh --plots"
    for name in {path.name for path in FOLDER.glob("*.png") if not path.name.startswith(("steps", "noising"))}:
        assert f"study/{name}" in page.read_text()
        with Image.open(tmp_path / name) as new, Image.open(FOLDER / name) as committed:
            assert new.size == committed.size and np.std(np.asarray(new.convert("L"))) > 5


def test_the_page_can_be_built_from_results_of_one_seed_and_without_the_reference(results, tmp_path):
    one = json.loads((results / "mixture.json").read_text())
    del one["runs"]["simple_free"]["1"]
    rows = plots.table(one).splitlines()
    assert REFERENCE not in one["runs"] and VARIANTS["simple_free"].label in rows[2]
    assert len({row.count("|") for row in rows}) == 1


@pytest.mark.parametrize("a", [0.0, 0.7, -0.4])
def test_closed_form_of_the_linear_adapter_is_that_of_the_joint_gaussians(a):
    s, m, v = schedule.cosine(30), 0.3, 0.25
    model = dataclasses.replace(gaussian_toy.toy(s, m=m, v=v, a=a).with_optimal_denoiser(), variance="beta")
    nodes, weights = np.polynomial.hermite_e.hermegauss(4)  # exact for the quadratic bound
    expected = weights @ model.bound(m + np.sqrt(v) * nodes) / weights.sum()
    loss, bound = linear.objective_and_bound(s, a, m, v)
    assert bound == pytest.approx(expected, abs=1e-5) and bound > linear.entropy(v)
    assert loss == pytest.approx(model.optimal_loss()[1:].mean(), rel=1e-5)


@pytest.mark.parametrize("t", [1, 300, 900])
def test_the_best_plain_denoiser_is_the_posterior_mean(t):
    data, s, label = toy.DATA["mixture"], schedule.cosine(1000), 1
    xt = np.array([[0.2, 0.5]], np.float32)
    # On a grid: p(x0 | xt) ~ p(x0) N(xt; sqrt(ab) x0, 1 - ab)
    ab = float(s.alpha_bar[t])
    side = np.linspace(-1.3, 1.3, 1001) if t > 1 else xt.T / np.sqrt(ab) + np.linspace(-0.08, 0.08, 1001)
    grid = np.stack(np.meshgrid(*np.broadcast_to(side, (2, 1001)), indexing="ij"), axis=-1)
    squares = ((grid[:, :, None] - data.means[label]) ** 2).sum(-1)
    log_p = np.logaddexp.reduce(-squares / 2 / data.std**2, axis=-1)
    log_p = log_p - ((xt[0] - np.sqrt(ab) * grid) ** 2).sum(-1) / 2 / (1 - ab)
    p = np.exp(log_p - log_p.max())
    expected = (p[..., None] * grid).sum((0, 1)) / p.sum()
    found = data.denoise(s, xt, np.array([t]), np.array([label]))
    np.testing.assert_allclose(np.asarray(found)[0], expected, atol=2e-4)


def test_distances_know_equal_from_shifted_sets():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 2000, 2))
    assert abs(measure.energy_distance(x, y)) < 0.01 and abs(measure.frechet(x, y)) < 0.02
    # Two normals of equal covariance: the squared distance of their means
    assert measure.frechet(x, 2 * y + [3.0, 0.0]) == pytest.approx(9 + 2, rel=0.1)
    # One dimension, far apart: 2 |m| - 2 E|X - X'| = 2 (20 - 2 / sqrt(pi))
    assert measure.energy_distance(x[:, :1], y[:, :1] + 20.0) == pytest.approx(2 * (20 - 2 / np.pi**0.5), rel=0.02)
