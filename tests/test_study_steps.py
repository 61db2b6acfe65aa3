"""The second part of the study: its runner with a handful of steps, its page from the stored results."""

import dataclasses
import os
import shutil

import jax
import numpy as np
import pytest

from contextdiff_jax import config as config_lib
from contextdiff_jax.errors import UserError
from docs.study import images, plots, run, side_by_side, steps, steps_images, steps_plots, toy, work


@pytest.mark.parametrize("T", [1, 2, 4, 64, 1000])
def test_the_config_of_every_arm_passes_the_checks(T):
    arms = steps.ARMS | (steps.USERS if T == steps.MANY else {})
    for arm in arms.values():
        config_lib.check(steps.config_of(T, arm, steps.SIZE))
        config_lib.check(steps_images.config_of("digits", T, arm))


def test_the_sketch_s_networks_have_the_sketch_s_parameters():
    """36,290 each as the sketch counts them, and 64 for the class of none, which is a fifth here."""
    size = dataclasses.replace(steps.SIZE, network=toy.SketchMlp)
    config = steps.config_of(4, steps.ARMS["free"], size, steps.SKETCH)
    task = toy.ToyTask(config, toy.DATA["mixture"], size)
    params = jax.eval_shape(task.init, jax.random.key(0))
    counts = [sum(leaf.size for leaf in jax.tree.leaves(params[name])) for name in ("denoiser", "adapter")]
    assert counts == [36_354, 36_354]
    assert task.parts.process.init()["steps"].shape == (3,) and tuple(config.process.log_snr) == (6.0, -4.5)


def test_a_second_head_of_a_thousand_steps_is_drawn_by_the_sampler_that_knows_it():
    head = steps.ARMS["head"]
    for config in (steps.config_of(1000, head, steps.SIZE), steps_images.config_of("digits", 1000, head)):
        assert steps.ways_of(config) == {"ddpm 1000": {"sampler": "ddpm", "num_steps": 1000}}
    free = steps.ways_of(steps.config_of(1000, steps.ARMS["free"], steps.SIZE), (4,))
    assert list(free) == ["dpmpp_2m 4", "ddim 4"]


@pytest.mark.parametrize("arm", [*steps.ARMS, *steps.USERS])
def test_every_arm_of_a_thousand_steps_can_be_drawn_as_it_is_said(arm):
    of = (steps.ARMS | steps.USERS)[arm]
    size = dataclasses.replace(toy.quick(steps.SIZE), sampling_steps=steps.MANY)
    task = toy.ToyTask(steps.config_of(steps.MANY, of, size), toy.DATA["mixture"], size)
    params, ways = jax.eval_shape(task.init, jax.random.key(0)), steps.ways_of(task.config, (4,))
    for changes in ways.values():
        sample = task.config.sample.copy_and_resolve_references()
        sample.update(changes)
        drawn = jax.eval_shape(lambda p, sample=sample: toy.draw(task, p, sample=sample, size=size), params)
        assert drawn.shape == (4, size.num_samples, toy.DIM)


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


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["plain", "head"])
def test_pictures_of_a_thousand_steps_are_trained_drawn_in_few_and_tabled(tmp_path, monkeypatch, arm):
    small = images.SIZES["digits"].overrides | {"model.channels": 16, "model.head_dim": 16, "data.batch_size": 8}
    size = dataclasses.replace(images.SIZES["digits"], overrides=small, num_test=6, num_t=2, num_samples=20)
    monkeypatch.setitem(steps_images.SIZES, "digits", size)
    monkeypatch.setattr(steps_images, "MANY_STEPS", (2, 4))
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        steps.study("digits", [steps.MANY], [arm], [0], tmp_path, training=steps.Training(2))
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
    stored = run.load(tmp_path / "steps-digits-2.json")
    figures = stored["runs"]["1000"][arm]["0"]
    ways = ["ddpm 1000"] if arm == "head" else ["dpmpp_2m 2", "dpmpp_2m 4", "ddim 2", "ddim 4"]
    assert list(figures["drawn"]) == ways and all(0 <= way["accuracy"] <= 1 for way in figures["drawn"].values())
    assert len(figures["per_image"]) == 6 and sum(figures["terms"]) == pytest.approx(figures["bound"], rel=1e-3)
    assert figures["process"] == {} and "quality" not in figures
    rows = [row for row in steps_plots.table("digits", stored).splitlines() if " of 1000 " in row]
    assert len(rows) == len(ways) and f"{figures['bound']:.3f}" in rows[0]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system says nothing about cores")
def test_trainings_side_by_side_have_a_core_each_and_their_errors_are_raised(monkeypatch):
    monkeypatch.setattr("jax.default_backend", lambda: "cpu")
    found = dict(side_by_side.results(os.sched_getaffinity, [(0,)] * 2, 2))
    assert [len(cores) for cores in found.values()] == [1]
    with pytest.raises(ZeroDivisionError):
        dict(side_by_side.results(divmod, [(7, 2), (1, 0)], 1))


def test_every_run_that_is_missing_is_a_job_and_the_arms_take_turns(monkeypatch):
    handed = []
    monkeypatch.setattr("jax.default_backend", lambda: "cpu")
    monkeypatch.setattr(side_by_side, "results", lambda work, jobs, processes: handed.extend(jobs) or iter(()))
    missing = [(4, "plain", [0, 1]), (4, "free", [2]), (8, "free", [])]
    assert list(steps_images.runs("digits", missing, 2)) == []
    assert handed == [(4, "plain", (0,)), (4, "free", (2,)), (4, "plain", (1,))]


def test_on_an_accelerator_a_job_is_an_arm_with_all_its_seeds(monkeypatch):
    of = lambda T, arm, seeds: [(seed, {"bound": T + seed}) for seed in seeds]
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    monkeypatch.setattr(side_by_side, "results", lambda work, jobs, processes: ((job, of(*job)) for job in jobs))
    done = list(steps_images.runs("digits", [(4, "plain", [0, 1]), (8, "free", [])], 2))
    assert done == [((4, "plain", 0), {"bound": 4}), ((4, "plain", 1), {"bound": 5})]


def test_another_training_has_a_file_of_its_own(monkeypatch, tmp_path):
    of = lambda *training: steps_images.config_of("digits", 8, steps.ARMS["plain"], steps.Training(*training))
    assert (of().train.num_steps, of(40).train.num_steps) == (600, 40)
    assert (of().optim.lr_multipliers, of(0, 7.0).optim.lr_multipliers) == ((("process/", 20),), (("process/", 7),))
    named = lambda *training: steps.stored_in(tmp_path, "digits", steps.Training(*training)).name
    assert named() == "steps-digits.json" and named(40) == "steps-digits-40.json"
    assert named(0, 7.0) == "steps-digits-rate7.json" and named(40, 7.0) == "steps-digits-40-rate7.json"
    for option, said in {"--num_steps=40": "are for pictures", "--rate=0": "are for pictures"}.items():
        monkeypatch.setattr("sys.argv", ["steps", option, "--data=mixture", f"--results={tmp_path}"])
        with pytest.raises(UserError, match=said):
            steps.main()
    monkeypatch.setattr("sys.argv", ["steps", "--rate=0", "--data=digits", f"--results={tmp_path}"])
    with pytest.raises(UserError, match="--rate=0 must be positive"):
        steps.main()


def test_plots_and_tables_are_those_of_the_stored_results(tmp_path):
    page = tmp_path / "study.md"
    shutil.copy(plots.PAGE, page)
    steps_plots.main(folder=tmp_path, page=page)
    assert page.read_text() == plots.PAGE.read_text()
    assert (tmp_path / "steps.png").stat().st_size > 10_000


def test_every_arm_of_a_thousand_steps_has_its_rows_and_a_diverged_sampler_is_no_error():
    quality = {"dpmpp_2m 4": {"accuracy": 0.5, "frechet": 2.0}, "ddim 4": {"accuracy": None, "frechet": None}}
    found = {"bound": 2.0, "per_image": [1.9, 2.1], "terms": [0.1, 1.4, 0.5], "drawn": quality, "parameters": 2000}
    runs = {arm: {seed: found for seed in "01"} for arm in ("plain", "plain_simple", "free")}
    rows = steps_plots.table("digits", {"reference": {}, "runs": {"1000": runs}}).splitlines()[2:]
    assert len(rows) == 6 and rows[0] == (
        "| 4 of 1000 | plain, Eq. 4, T = 1000, DPM-Solver++(2M) | 2 k | 2 | 2.000 (2.000 to 2.000) | 0 "
        "| 50.0 (50.0 to 50.0) | 2.00 (2.00 to 2.00) | 1.400 |"
    )
    assert "contextual, r free, T = 1000, DDIM" in rows[5] and "nan" in rows[5]


def test_a_run_of_a_thousand_steps_that_was_drawn_by_no_solver_has_no_rows_and_is_run_again(tmp_path, monkeypatch):
    """So the version before stored those of pictures."""
    figures = {"bound": 2.0, "quality": {"accuracy": 0.5, "frechet": 2.0}, "parameters": 2000}
    stored = {"reference": {"floor": {"accuracy": 1.0, "frechet": 0.3}}, "runs": {"1000": {"plain": {"0": figures}}}}
    stored["runs"]["8"] = {"free": {"0": figures}}
    assert " of 1000 " not in steps_plots.table("digits", stored | {"runs": {"1000": stored["runs"]["1000"]}})
    run.save(stored, tmp_path / "steps-digits.json")
    asked = []
    monkeypatch.setattr(steps_images, "runs", lambda name, missing, *how: asked.extend(missing) or iter(()))
    steps.study("digits", [8, 1000], ["free", "plain"], [0], tmp_path)
    assert asked == [(8, "plain", [0]), (1000, "free", [0]), (1000, "plain", [0])]


@pytest.mark.slow
def test_a_step_s_work_is_counted_once_for_each_evaluation_of_a_network():
    of = lambda arm: work.counted(*work.task_of("mixture", steps.ARMS[arm]))
    shares = of("free") / of("plain")  # an adapter as large as the denoiser, at t and at s
    np.testing.assert_allclose(shares, [4.0, 3.0], rtol=0.02)


def test_a_step_s_work_is_told_as_a_multiple_of_the_plain_one_s():
    rows = work.table({"mixture": {"plain": np.array([2.0, 1.0]), "free": np.array([8.0, 3.0])}}).splitlines()
    assert rows[2:] == ["| plain | 1.00 | 1.00 |", "| contextual, r free | 4.00 | 3.00 |"]


def test_what_no_table_would_show_is_refused_before_it_is_trained(monkeypatch, tmp_path):
    for option, said in {"--T=2000": "--T=2000", "--arms=plain_simple": "for --T=1000 alone"}.items():
        monkeypatch.setattr("sys.argv", ["steps", option, f"--results={tmp_path}"])
        with pytest.raises(UserError, match=said):
            steps.main()


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


def _pictures(bits, distance, seeds=3):
    """Runs of so many seeds: a bound that is so much higher on every second image."""
    quality = {"accuracy": 0.5, "frechet": distance}
    found = {"bound": bits, "per_image": [bits, bits + 0.1] * 4, "terms": [0.1, 1.4], "quality": quality}
    return {str(seed): found | {"parameters": 2000} for seed in range(seeds)}


def test_gains_are_told_beside_what_there_is_to_gain():
    runs = {"4": {"plain": _pictures(2.0, 3.0), "free": _pictures(1.9, 2.5)}, "8": {"plain": _pictures(1.75, 2.0)}}
    runs["16"] = {"plain": _pictures(1.8, 2.0), "scale": _pictures(1.8, 2.5)}
    points = {"4": {arm: {"0": {"above": v, "blocks": [v, v]}} for arm, v in {"plain": 0.4, "free": 0.3}.items()}}
    rows = steps_plots.gains_table({"mixture": {"runs": points}, "digits": {"runs": runs}}).splitlines()[2:]
    assert rows == [
        "| mixture | 4 | 0.400 | 0.400 | - | - | **-0.100 ± 0.000 (images alone)** | - | - |",
        "| digits | 4 | 2.000 | 0.250 | - | - | **-0.100 ± 0.000** | - | - |",
        "| digits | 16 | 1.800 | ? | - | - | - | - | +0.000 ± 0.000 |",
    ]


def test_distances_are_bold_where_every_seed_is_better():
    mixed = _pictures(1.9, 2.0) | {"2": _pictures(1.9, 3.5)["0"]}
    runs = {"4": {"plain": _pictures(2.0, 3.0), "free": _pictures(1.9, 2.5), "head": mixed}, "8": {"plain": {}}}
    rows = steps_plots.distances_table({"digits": {"runs": runs}}).splitlines()[2:]
    assert rows == ["| digits | 4 | 3.00 | - | - | **2.50** | 2.50 | - |"]


def test_several_trainings_are_rows_and_one_is_none(tmp_path):
    of = lambda gain: {"4": {"plain": _pictures(2.0, 3.0), "free": _pictures(2.0 - gain, 2.5)}}
    run.save({"runs": of(0.1)}, tmp_path / "steps-fashion14.json")
    assert len(steps_plots.trainings_table("fashion14", tmp_path).splitlines()) == 2
    run.save({"runs": of(0.2)}, tmp_path / "steps-fashion14-1600.json")
    rows = steps_plots.trainings_table("fashion14", tmp_path).splitlines()[2:]
    assert [row.split(" | ")[2] for row in rows] == ["800 steps", "1600 steps"] and "-0.200 ± 0.000" in rows[1]
