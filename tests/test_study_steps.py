"""The second part of the study: its runner with a handful of steps, its page from the stored results."""

import dataclasses
import os
import shutil

import jax
import numpy as np
import pytest

from contextdiff_jax import config as config_lib
from contextdiff_jax.errors import UserError
from docs.study import plots, run, side_by_side, steps, steps_images, steps_plots, toy


@pytest.mark.parametrize("T", [1, 2, 4, 64, 1000])
def test_the_config_of_every_arm_passes_the_checks(T):
    arms = steps.ARMS | (steps.USERS if T == steps.MANY else {})
    for arm in arms.values():
        config_lib.check(steps.config_of(T, arm, steps.SIZE))


@pytest.mark.slow
def test_a_run_is_stored_with_all_its_figures_and_not_run_again(tmp_path, monkeypatch):
    size = dataclasses.replace(toy.quick(steps.SIZE), num_test=64)
    jax.config.update("jax_disable_most_optimizations", True)  # nearly all the time goes into compiling
    try:
        steps.study("mixture", [2], ["free"], [0], tmp_path, size)
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
    stored = run.load(tmp_path / "steps-mixture.json")
    figures = stored["runs"]["2"]["free"]["0"]
    assert len(figures["terms"]) == 3 and len(figures["blocks"]) == steps.BLOCKS and len(figures["r_rms"]) == 2
    assert figures["above"] == pytest.approx(np.mean(figures["blocks"]), rel=1e-3) and figures["above"] > 0
    assert np.shape(figures["arrows"]) == (2, 8, 4) and np.diff(figures["process"]["log_snr"])[0] < 0
    assert all(value > 0 for value in figures["energy"].values())

    def trained_again(*args, **options):
        raise AssertionError("a stored run was trained again")

    monkeypatch.setattr(steps, "run", trained_again)
    steps.study("mixture", [2], ["free"], [0], tmp_path, size)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system says nothing about cores")
def test_trainings_side_by_side_have_a_core_each_and_their_errors_are_raised():
    found = dict(side_by_side.results(os.sched_getaffinity, [(0,)] * 2, 2))
    assert [len(cores) for cores in found.values()] == [1]
    with pytest.raises(ZeroDivisionError):
        dict(side_by_side.results(divmod, [(7, 2), (1, 0)], 1))


def test_every_run_that_is_missing_is_a_job_and_the_arms_take_turns(monkeypatch):
    handed = []
    monkeypatch.setattr(side_by_side, "results", lambda work, jobs, processes: handed.extend(jobs) or iter(()))
    missing = [(4, "plain", [0, 1]), (4, "free", [2]), (8, "free", [])]
    assert list(steps_images.runs("digits", missing, 2)) == []
    assert handed == [(4, "plain", 0), (4, "free", 2), (4, "plain", 1)]


def test_a_training_of_another_length_has_a_file_of_its_own(monkeypatch, tmp_path):
    of = lambda num_steps: steps_images.config_of("digits", 8, steps.ARMS["plain"], num_steps).train.num_steps
    assert (of(0), of(40)) == (600, 40)
    assert steps.stored_in(tmp_path, "digits").name == "steps-digits.json"
    assert steps.stored_in(tmp_path, "digits", 40).name == "steps-digits-40.json"
    monkeypatch.setattr("sys.argv", ["steps", "--num_steps=40", "--data=mixture", f"--results={tmp_path}"])
    with pytest.raises(UserError, match="num_steps=40 is for pictures"):
        steps.main()


def test_plots_and_tables_are_those_of_the_stored_results(tmp_path):
    page = tmp_path / "study.md"
    shutil.copy(plots.PAGE, page)
    steps_plots.main(folder=tmp_path, page=page)
    assert page.read_text() == plots.PAGE.read_text()
    assert (tmp_path / "steps.png").stat().st_size > 10_000


def test_a_paired_difference_is_taken_point_by_point_and_seed_by_seed():
    rng = np.random.default_rng(0)
    points = rng.normal(size=16)
    run_of = lambda gap, noise: {"blocks": (points + gap + noise * rng.normal(size=16)).tolist()}
    runs = {
        "plain": {str(seed): run_of(0.0, 0.0) for seed in range(3)},
        "free": {str(seed): run_of(-0.2, 1e-3) for seed in range(3)},
    }
    mean, error = steps_plots.paired({"runs": {"4": runs}}, 4, "free").split(" ± ")
    assert float(mean) == pytest.approx(-0.2, abs=2e-3) and float(error) < 2e-3
