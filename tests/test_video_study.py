"""The study of video editing: what is stored is not run again, and the table says what is stored."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from contextdiff_jax import config as config_lib
from contextdiff_jax.errors import UserError
from docs.video import base, guidance, memory, run, table


def test_what_is_stored_is_not_run_again(tmp_path, monkeypatch):
    """A study that is killed goes on where it was; methods that tune alike share a run, others do not."""
    tuned, edited = [], []
    monkeypatch.setattr(run, "CLIPS", {15: ("frog", "green"), 9: ("pumpkin", "purple")})
    monkeypatch.setattr(base.task_lib, "build", lambda config: config)
    state = SimpleNamespace(step=60)
    monkeypatch.setattr(base.training, "train", lambda task, workdir: tuned.append(workdir.name) or state)

    def edit(config, workdir, targets, shown):
        if len(edited) == 9:
            raise KeyboardInterrupt
        edited.append(workdir.name)
        return {kind: {"judge_object": 1.0} for kind in targets}

    monkeypatch.setattr(run, "edited", edit)
    asked = (["contextdiff", "ddim", "tune_a_video"], [15, 9], [0], ["adapter", "plain"])
    with pytest.raises(KeyboardInterrupt):
        run.study(*asked, tmp_path, tmp_path / "runs")
    assert len(list(tmp_path.glob("*.json"))) == 5
    monkeypatch.setattr(run, "edited", lambda *args: edited.append(args[1].name) or {})
    run.study(*asked, tmp_path, tmp_path / "runs")
    # 2 clips, with and without adapter, 3 methods, of which one takes three recipes; 2 networks.
    assert len(edited) == 20 and len(set(edited)) == 8
    assert len(set(edited[:4])) == 1 and edited[3] != edited[4]
    kept = json.loads((tmp_path / "contextdiff-adapter-clip15-seed0.json").read_text())
    assert kept["targets"] == {
        "object": "a frog on a blue background",
        "background": "a pumpkin on a green background",
        "both": "a frog on a green background",
    }
    for method, share in (("contextdiff", 0.5), ("fatezero", 0.8)):  # both, without a mask: the method's own shares
        preset, changed, kinds = run.recipes_of(method, 9)[-1]
        edit = run.config_of(preset, "adapter", 9, 0, **changed).edit
        assert kinds == ("both",) and not edit.self_blend and not edit.latent_blend
        assert edit.cross_replace_steps == edit.self_replace_steps == share
    state.step = 45
    with pytest.raises(UserError, match="was stopped; run the same command"):
        run.study(["ddim"], [9], [1], ["adapter"], tmp_path, tmp_path / "runs")
    with pytest.raises(UserError, match="--methods=dream is unknown"):
        run.chosen("methods", "ddim,dream", ["ddim"])


def test_the_base_that_never_had_an_adapter_is_made_once_and_whole(tmp_path, monkeypatch):
    """And only for runs that are missing; a training that was stopped leaves none."""
    encoded, written, step = [], [], 1900
    monkeypatch.setattr(base.command_line, "encode", lambda config, options: encoded.append(config.space.latents))
    monkeypatch.setattr(base.task_lib, "build", lambda config: config)
    monkeypatch.setattr(base.training, "train", lambda config, workdir: SimpleNamespace(step=step))
    monkeypatch.setattr(base.Pipeline, "load", lambda workdir: SimpleNamespace(task=workdir, params=0, step=step))
    monkeypatch.setattr(base.export, "write", lambda task, params, step, out, half: written.append(task) or out.mkdir())
    monkeypatch.setattr(run, "PLAIN", tmp_path / "plain")
    monkeypatch.setattr(run, "tuned", lambda config, runs: Path(config.model.pretrained))
    monkeypatch.setattr(run, "edited", lambda config, workdir, targets, shown: {"object": {"psnr": len(workdir.parts)}})
    asked = ["ddim"], [9], [0], ["never"], tmp_path, tmp_path / "runs"
    step = 45
    with pytest.raises(UserError, match="was stopped; run the same command"):
        run.study(*asked)
    assert not written and not (tmp_path / "plain" / "model").exists()
    step = 1900
    run.study(*asked)
    assert {"unet", "scheduler", "vae"} <= {path.name for path in (tmp_path / "plain" / "start").iterdir()}
    (tmp_path / "ddim-never-clip9-seed0.json").unlink()
    run.study(*asked)
    assert written == [tmp_path / "plain" / "run"] and encoded == [str(tmp_path / "plain" / "latents")] * 2
    config = run.config_of("ddim", "never", 9, 0)
    assert config.model.pretrained == str(tmp_path / "plain" / "model") and not config.adapter.enabled
    assert not base.config_of(tmp_path).adapter.enabled


def test_memory_is_asked_of_another_model_with_a_clip_or_with_the_one_that_ships():
    for clip, expected in (("", "builtin:clip_mini"), ("CLIP", "CLIP")):
        config = memory.config_of("SD", clip, 256)
        assert config.encoder.clip == expected and config.adapter.enabled
        assert (config.model.pretrained, config.data.image_size) == ("SD", 256)
        config_lib.check(config)


def test_the_table_says_what_is_stored(tmp_path):
    for clip, seed, named, kept in ((0, 0, 1.0, 30.0), (0, 1, 0.5, 26.0), (1, 0, 0.0, 28.0)):
        rows = {
            "object": dict(judge_object=named, background_psnr=kept),
            "both": dict(judge_object=1.0),
            "background": dict(background_psnr=1.0, judge_background=1.0),
            "autoencoder alone": dict(background_psnr=kept + 3),
            "inversion alone": dict(background_psnr=kept),
        }
        for arm in ("adapter", "plain"):
            for method in ("ddim", "fatezero"):
                rows["inversion alone"] = dict(background_psnr=kept + (arm == "adapter") + (method == "ddim"))
                stored = dict(method=method, arm=arm, clip=clip, seed=seed, rows=rows)
                (tmp_path / f"{method}-{arm}-{clip}-{seed}.json").write_text(json.dumps(stored))
    page = tmp_path / "page.md"
    page.write_text("before\n" + table.BEGIN + "old\n" + table.END + "after\n")
    table.write(page, tmp_path)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    row = next(line for line in text.splitlines() if line.startswith("| ddim | with | 3 (2, 2) |"))
    # Named: 100, 75 and 50 % of the object swaps and the swaps of both; what else was to change does not count.
    assert row.split(" | ")[3:6] == ["75 ± 25", "100 ± 0", "28.0 ± 2.0"]
    # The bounds are measured in every run: of a clip and a seed they are one value, and the adapter's where it has one.
    bounds = [line.split(" | ") for line in text.splitlines() if " alone | " in line]
    assert [(row[1].strip(), row[2], row[5]) for row in bounds] == [
        ("", "3 (2, 2)", "31.0 ± 2.0"),
        ("with", "3 (2, 2)", "29.5 ± 2.0"),
        ("without", "3 (2, 2)", "28.5 ± 2.0"),
    ]


def test_what_the_adapter_changes_is_of_the_same_clips_and_seeds():
    gained = {(0, 0): 1.0, (0, 1): 3.0, (1, 0): 0.0, (1, 1): -2.0}
    run = lambda clip, seed, arm, kept: dict(
        method="ddim", arm=arm, clip=clip, seed=seed, rows={"object": dict(background_psnr=kept)}
    )
    runs = [run(*pair, "adapter", 20.0 + by) for pair, by in gained.items()]
    runs += [run(*pair, "plain", 20.0) for pair in gained] + [run(*pair, "never", 25.0) for pair in gained]
    runs.append(run(7, 0, "adapter", 99.0))
    runs += [run | {"method": "fatezero"} for run in runs if run["clip"] == 0]  # one clip has no error over clips
    found = table.differences(runs)
    assert len(found) == 4
    # Means of clips 2 and -1; three pairs differ, of which two are higher.
    assert found[2].split(" | ")[:6] == ["| ddim", "without", "4 (2, 2)", "-", "-", "+0.5 ± 1.5 (2 of 3)"]
    assert found[3].split(" | ")[:6] == ["| ddim", "never had one", "4 (2, 2)", "-", "-", "-4.5 ± 1.5 (0 of 4)"]


def test_guidance_is_compared_on_the_pairs_that_both_arms_have(tmp_path, monkeypatch):
    monkeypatch.setattr(guidance, "SCALES", (1.5, 3.0))
    monkeypatch.setattr(guidance.base, "plain_base", lambda folder: None)
    asked = []

    def measured(arm, index, seed, runs):
        asked.append((arm, index, seed))
        row = dict(judge_object=1.0 - 0.5 * (arm == "never"), clip_text=0.1 * index, background_psnr=20.0 + seed)
        return {"1.5": row, "3": row | {"background_psnr": 10.0}}

    monkeypatch.setattr(guidance, "measured", measured)
    guidance.study([5, 9], [0, 1], tmp_path, tmp_path / "runs")
    assert len(asked) == 8
    (tmp_path / "never-clip9-seed1.json").unlink()  # what the other arm has of it does not count
    found = guidance.over_clips(tmp_path)
    assert {arm: {clip: len(runs) for clip, runs in clips.items()} for arm, clips in found.items()} == {
        "adapter": {5: 2, 9: 1},
        "never": {5: 2, 9: 1},
    }
    # Clip 5 is at 20.5, clip 9 at 20.
    assert guidance.lines(found)[2:] == [
        "| with | 1.5 | 100 ± 0 | 0.700 ± 0.200 | 20.2 ± 0.2 |",
        "| with | 3 | 100 ± 0 | 0.700 ± 0.200 | 10.0 ± 0.0 |",
        "| never had one | 1.5 | 50 ± 0 | 0.700 ± 0.200 | 20.2 ± 0.2 |",
        "| never had one | 3 | 50 ± 0 | 0.700 ± 0.200 | 10.0 ± 0.0 |",
    ]
    guidance.draw(found, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 1000
    guidance.study([5, 9], [0, 1], tmp_path, tmp_path / "runs")
    assert asked[8:] == [("never", 9, 1)]
