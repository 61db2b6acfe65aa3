"""What the pages say: paired differences against closed forms, charts, escaped texts, runs that lack something."""

import dataclasses
import errno
import json
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from page_helpers import make_run

from contextdiff_jax import command_line
from contextdiff_jax.editing.result import NO_EDITS
from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate.groups import Seen
from contextdiff_jax.evaluate.kept import read_kept, write_kept
from contextdiff_jax.evaluate.metrics.marks import Marks
from contextdiff_jax.evaluate.pages import compare_page, write_compare, write_report_page
from contextdiff_jax.evaluate.pages.charts import Curve, chart
from contextdiff_jax.evaluate.pages.pairs import compared, measured, same_noise
from contextdiff_jax.evaluate.pages.report_page import main_figures
from contextdiff_jax.evaluate.pages.run import Run
from contextdiff_jax.evaluate.paired import Difference, holm, p_value, paired


def test_a_paired_difference_forgets_what_both_share():
    rng = np.random.default_rng(0)
    hard, gain = rng.normal(0, 10, 400), rng.normal(1, 0.1, 400)
    d = paired(hard, hard + gain)
    assert d.n == 400 and d.mean == pytest.approx(gain.mean()) and d.stderr == pytest.approx(gain.std(ddof=1) / 20)
    with_gap = paired(np.array([0.0, np.nan, 1.0]), np.array([1.0, 1.0, 3.0]))
    assert with_gap == (1.5, 0.5, 2)
    assert np.isnan(paired([1.0], [2.0]).stderr)
    with pytest.raises(UserError, match="as many of both"):
        paired([1.0], [1.0, 2.0])


def test_p_values_are_students_and_holms():
    a, b = np.random.default_rng(0).normal([[0.0], [0.4]], 1, (2, 12))
    assert p_value(paired(a, b)) == pytest.approx(scipy.stats.ttest_rel(b, a).pvalue)
    assert p_value(paired(np.zeros(4), np.ones(4))) == 0.125 and p_value(paired(a, a)) == 1.0  # as a test of signs
    tenths = np.arange(1, 6) / 10
    assert paired(tenths, tenths + 0.1).stderr > 0 and p_value(paired(tenths, tenths + 0.1)) == 2.0**-4  # but rounding
    assert np.isnan(p_value(paired([1.0], [2.0])))
    # 0.01 x 4, 0.02 x 3, 0.03 x 2 = 0.06 and 0.04 x 1 raised to the one before.
    adjusted = holm({"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.02})
    assert adjusted == pytest.approx({"b": 0.04, "d": 0.06, "c": 0.06, "a": 0.06})


def test_marks_have_means_and_errors_of_any_partition():
    values = np.random.default_rng(1).random(50)
    judge = lambda images, records: {"iou": np.array([values[r["index"]] for r in records])}
    whole, parts = Marks(judge, ["iou"]), [Marks(judge, ["iou"]) for _ in range(2)]
    records = [{"index": i} for i in range(50)]
    whole.update(np.zeros((50, 1, 1, 3)), records)
    parts[0].update(np.zeros((20, 1, 1, 3)), records[30:])
    parts[1].update(np.zeros((30, 1, 1, 3)), records[:30])
    parts[0].merge(parts[1])
    assert parts[0].result() == whole.result()
    assert whole.result()["iou"] == pytest.approx(values.mean(), rel=1e-6)
    assert whole.result()["iou_stderr"] == pytest.approx(values.std() / 50**0.5, rel=1e-6)


def test_what_an_evaluation_keeps_is_read_back(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (2, 4, 4, 3), np.uint8)
    seen = Seen("layouts", "", ["a", "b"], [0, 2], images, {"iou": np.array([0.25, np.nan, 1.0])})
    write_kept([seen], {"adapter on": np.array([1.5])}, 7, 3, tmp_path)
    (again,), bits, about = read_kept(tmp_path)
    assert (again.group, again.captions, again.places) == ("layouts", ["a", "b"], [0, 2])
    np.testing.assert_array_equal(again.images, images)
    np.testing.assert_array_equal(again.marks["iou"], seen.marks["iou"])
    assert bits["adapter on"] == [1.5] and about == {"step": 7, "seed": 3}
    whole = (tmp_path / "pictures.npz").read_bytes()
    spoilt = bytearray(whole)
    spoilt[len(whole) // 3 : len(whole) // 2] = bytes(len(whole) // 2 - len(whole) // 3)
    for damaged in (b"cut", whole[: len(whole) // 2], bytes(spoilt)):
        (tmp_path / "pictures.npz").write_bytes(damaged)
        with pytest.raises(UserError, match="is damaged"):
            read_kept(tmp_path)
    (tmp_path / "pictures.npz").write_bytes(whole)
    index = json.loads((tmp_path / "marks.json").read_text())
    (tmp_path / "marks.json").write_text(json.dumps(index | {"bits_per_dim": [1]}))
    with pytest.raises(UserError, match="is damaged"):
        read_kept(tmp_path)


def test_a_page_that_fails_ends_nothing_and_differences_come_before_theirs(tmp_path, monkeypatch, capsys):
    a, b = (make_run(tmp_path / name, i, shown=2) for i, name in enumerate("ab"))
    (a / "eval" / "pictures.npz").write_bytes(b"PK" + bytes(40))
    command_line.shared.write_page(a)
    assert re.search(r"NOT WRITTEN: .*report.html \(.*eval is damaged", capsys.readouterr().out)
    with pytest.raises(UserError, match="eval is damaged"):
        command_line.run("compare", None, command_line.Options("", runs=(str(a), str(b)), out=str(tmp_path / "c.html")))

    def refuse(*args, **how):
        raise OSError(errno.ENOSPC, "No space left on device")

    c = make_run(tmp_path / "c", 2, shown=2)
    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(UserError, match="No space left on device: .*c.html.; make room"):
        command_line.run("compare", None, command_line.Options("", runs=(str(b), str(c)), out=str(tmp_path / "c.html")))
    assert "c - b " in capsys.readouterr().out


def test_a_chart_maps_values_to_pixels():
    svg = chart("a < b", {"one": Curve([0, 10], [1.0, 3.0])}, "step")
    (x0, y0), (x1, y1) = (map(float, p.split(",")) for p in re.search(r'points="([^"]+)"', svg).group(1).split())
    assert "a &lt; b" in svg and x0 < x1 and y0 > y1  # up is more
    ticks = [float(v) for v in re.findall(r'text-anchor="end">([\d.]+)<', svg)]
    assert ticks[0] <= 1 and ticks[-1] >= 3 and len(set(np.diff(ticks).round(9))) == 1
    heights = [float(v) for v in re.findall(r'class="grid"[^>]*y1="([\d.]+)"', svg)]
    expected = np.interp(1.0, ticks, heights)
    assert y0 == pytest.approx(expected, abs=0.11)
    assert chart("none", {"one": Curve([0], [float("nan")])}, "step") == ""
    assert "polygon" in chart("band", {"one": Curve([0, 1], [1, 1], [0, 0], [2, 2])}, "step")


def test_lines_of_a_chart_are_told_apart_without_their_colours():
    for points in (2, 1):
        svg = chart("many", {f"run {i}": Curve(range(points), [i] * points) for i in range(12)}, "step")
        looks = re.findall(r"<li><svg[^>]*>(.*?)</svg>", svg)
        without = {re.sub(r"\b[cf]\d", "", look) for look in looks}
        assert len(looks) == 12 == len(set(looks)) and len(without) == (12 if points > 1 else 8)
        drawn = svg.split('<ul class="legend">')[0]
        for look in looks:
            kind = re.search(r'class="([^"]+)"', look).group(1)
            assert kind in drawn


def test_a_report_needs_no_evaluation_and_no_config(tmp_path):
    run = make_run(tmp_path / "run", shown=2)
    (run / "config.json").unlink()
    assert "What was trained" in write_report_page(run).read_text()
    trained = make_run(tmp_path / "trained", shown=2)
    (trained / "eval.json").unlink()
    (trained / "eval" / "marks.json").unlink()
    page = write_report_page(trained).read_text()
    assert "has not been evaluated" in page and "Protocol" not in page and "no result" in page
    # The video shows the source, the inversion and the edits; other rows of the table are not in it.
    (trained / "edit").mkdir()
    rows = {name: {"psnr": 20.0} for name in (*NO_EDITS, "a frog", "a bear")}
    (trained / "edit" / "edit.json").write_text(json.dumps({"source_prompt": "a star", "rows": rows}))
    (trained / "edit" / "edit.mp4").write_bytes(b"video")
    page = write_report_page(trained).read_text()
    assert "Side by side: source, reconstruction, then a frog, a bear.<" in page and page.count(NO_EDITS[-1]) == 1
    (tmp_path / "empty").mkdir()
    for folder, words in ((tmp_path / "none", "does not exist"), (tmp_path / "empty", "holds no run")):
        with pytest.raises(UserError, match=words):
            write_report_page(folder)


def test_texts_of_a_run_are_no_markup(tmp_path):
    run = make_run(tmp_path / "run", shown=2)
    seen, bits, about = read_kept(run / "eval")
    evil = "<script>alert(1)</script>"
    seen = [Seen(s.group, s.setting, [evil] * len(s.captions), s.places, s.images, s.marks) for s in seen]
    write_kept(seen, bits, about["step"], about["seed"], run / "eval")
    page = write_report_page(run).read_text()
    assert "<script" not in page and page.count("&lt;script&gt;") >= 2
    assert not re.search(r'(src|href)="(?!data:|#)', page) and "url(" not in page


def test_runs_are_paired_prompt_by_prompt(tmp_path, capsys):
    a, b = make_run(tmp_path / "a", 0, 0.9, shown=2), make_run(tmp_path / "b", 1, 0.5, shown=2)
    rows, left_out = measured(Run.read(a), Run.read(b))
    found = {(shown, measure): d for shown, measure, d in rows}
    marks = [Run.read(folder).seen[0].marks["both"] for folder in (a, b)]
    d = found["seen combinations, adapter on", "both"]
    assert d.mean == pytest.approx((marks[1] - marks[0]).mean()) and d.n == 40 and not left_out
    bits = [Run.read(folder).bits["adapter off"] for folder in (a, b)]
    assert found["held-out images, adapter off", "bits per dimension"].mean == pytest.approx(np.mean(bits[1] - bits[0]))
    command_line.run("compare", None, command_line.Options("", runs=(str(a), str(b)), out=str(tmp_path / "c.html")))
    assert "b - a  seen combinations, adapter on, both" in capsys.readouterr().out
    assert (tmp_path / "c.html").read_text().count("<table") >= 5


def test_a_run_without_an_adapter_is_compared_with_the_adapter_on(tmp_path):
    a, b = make_run(tmp_path / "a", 0, shown=2), make_run(tmp_path / "b", 1, shown=2)
    seen, bits, about = read_kept(b / "eval")
    alone = [Seen(s.group, "", s.captions, s.places, s.images, s.marks) for s in seen if s.setting == "adapter on"]
    write_kept(alone, {"adapter off": bits["adapter off"]}, about["step"], about["seed"], b / "eval")
    for runs, sign in (((a, b), 1), ((b, a), -1)):
        rows, _ = measured(*map(Run.read, runs))
        found = {(shown.removesuffix(", adapter on"), measure): d.mean for shown, measure, d in rows}
        marks = [Run.read(folder).seen[0].marks["both"].mean() for folder in (a, b)]
        assert found["unseen combinations", "both"] == found["unseen combinations", "object"]
        assert found["seen combinations", "both"] == pytest.approx(sign * (marks[1] - marks[0]))


def rewrite(file, **change):
    """Entries of a JSON file, an entry of a mapping written section__key."""
    content = json.loads(file.read_text())
    for name, value in change.items():
        *sections, key = name.split("__")
        place = content[sections[0]] if sections else content
        place[key] = value
    file.write_text(json.dumps(content))


def test_bits_are_paired_on_the_same_images_alone(tmp_path):
    a, b = make_run(tmp_path / "a", 0, shown=2), make_run(tmp_path / "b", 1, shown=2)
    bits = json.loads((b / "eval" / "marks.json").read_text())["bits_per_dim"]
    rewrite(b / "eval" / "marks.json", bits_per_dim={"adapter off": bits["adapter off"]})
    of_bits = lambda *runs: {what: d for what, name, d in measured(*map(Run.read, runs))[0] if "bits" in name}
    forth, back = of_bits(a, b), of_bits(b, a)
    assert set(forth) == set(back) == {"held-out images, adapter on", "held-out images, adapter off"}
    assert all(forth[what].mean == pytest.approx(-back[what].mean) for what in forth)
    rewrite(b / "eval" / "marks.json", bits_per_dim={"adapter off": bits["adapter off"][:5]})
    other_count = "bits per dimension, adapter on: 16 images against 5; evaluate both again with --mode=eval"
    assert other_count in measured(Run.read(a), Run.read(b))[1]
    rewrite(b / "config.json", data__seed=7)
    assert not of_bits(a, b)
    assert any("or the bound differ (data.seed)" in line for line in measured(Run.read(a), Run.read(b))[1])


def test_bits_of_other_images_or_another_bound_are_no_pairs(tmp_path):
    """As many of both, and yet others: 64 of 64 chosen are not the first 64 of 100."""
    a, b = make_run(tmp_path / "a", 0, shown=2), make_run(tmp_path / "b", 1, shown=2)
    protocol = {"chosen": 16, "batch_size": 16, "timesteps": 4, "dequantize": False}
    for change in ({}, {"chosen": 20}, {"batch_size": 8}, {"timesteps": "all"}, {"dequantize": True}):
        for run, own in ((a, protocol), (b, protocol | change)):
            bits = json.loads((run / "eval.json").read_text())["bits_per_dim"]
            rewrite(run / "eval.json", bits_per_dim={name: row | {"protocol": own} for name, row in bits.items()})
        rows, left_out = measured(Run.read(a), Run.read(b))
        assert any("bits" in name for _, name, _ in rows) == (not change)
        assert all(f"the bound's {key}" in " ".join(left_out) for key in change)


def test_every_run_has_a_name_and_bounds_of_its_own(tmp_path):
    runs = [make_run(tmp_path / experiment / "seed0" / "run", i, shown=2) for i, experiment in enumerate("xy")]
    assert compare_page.names_of(list(map(Run.read, runs))) == ["x/seed0/run", "y/seed0/run"]
    bound = "ceiling: real renders, seen"
    page = compare_page.figures(list(map(Run.read, runs)))
    assert f"x/seed0/run: {bound}" not in page
    rows = json.loads((runs[0] / "eval.json").read_text())["alignment"]
    rewrite(runs[0] / "eval.json", alignment=rows | {bound: rows[bound] | {"both": 0.5}})
    page = compare_page.figures(list(map(Run.read, runs)))
    assert f"x/seed0/run: {bound}" in page and f"y/seed0/run: {bound}" in page


def test_one_pair_finds_nothing():
    assert "one pair" in compare_page._cells("bits per dimension", Difference(0.1, np.nan, 1), np.nan)[1]


def test_a_difference_is_found_among_all_of_the_page(tmp_path):
    """Of twenty measures one lies just beyond two errors, as one in twenty does."""
    runs = [make_run(tmp_path / name, shown=2) for name in "ab"]
    spread = np.tile([1.0, -1.0], 20)
    for size, run in enumerate(runs):
        seen, _, about = read_kept(run / "eval")
        marks = {str(i): size * spread for i in range(20)} | {"0": size * (spread + 2.2 / 39**0.5)}  # t = 2.2
        kept = dataclasses.replace(seen[0], marks=marks)
        write_kept([kept], {}, about["step"], about["seed"], run / "eval")
    read = list(map(Run.read, runs))
    ((run,), count) = compared(read, ["a", "b"])
    p = {measure: p for _, measure, _, p in run.rows}
    d = next(d for _, measure, d, _ in run.rows if measure == "0")
    assert count == 20 and d.mean > 2 * d.stderr and p_value(d) < 0.05 < p["0"] == pytest.approx(20 * p_value(d))
    page = compare_page.differences(read)
    assert "Of 20 differences" in page and "better" not in page and "worse" not in page


def test_runs_that_were_measured_otherwise_are_told(tmp_path, capsys):
    a, b = (make_run(tmp_path / name, i, shown=2) for i, name in enumerate("ab"))
    assert "not measured alike" not in compare_page.differences([Run.read(a), Run.read(b)])
    judge = {"name": "recogniser_demo", "digest": "01"}
    # Counts of a figure that one run has alone, and what changes no figure.
    options = {"num_samples": 8, "bpd_timesteps": 4, "reference": 9, "features": (), "recogniser": ""}
    others = options | {"bpd_timesteps": 16, "features": ("x",), "recogniser": "x", "reference": 7}
    sample, bits = (json.loads((b / "eval.json").read_text())[name] for name in ("sample", "bits_per_dim"))
    rewrite(a / "eval.json", eval=options, judge=judge, bits_per_dim={})
    rewrite(b / "eval.json", eval=others, judge=judge, sample=sample | {"batch_size": 3})
    read = [Run.read(a), Run.read(b)]
    assert "not measured alike" not in compare_page.differences(read)
    assert "<code>eval.recogniser</code>" in compare_page.measured_how(read)
    rewrite(a / "eval.json", bits_per_dim=bits)
    rewrite(b / "eval.json", judge=judge | {"digest": "02"})
    said = compare_page.differences([Run.read(a), Run.read(b)])
    assert "not measured alike (judge.digest, eval.bpd_timesteps)" in said
    for run in (a, b):
        rewrite(run / "eval.json", eval=options, sample=sample)
    rewrite(b / "eval.json", sample=sample | {"num_steps": 3}, step=7, hardware="8 x gpu", judge=judge | {"path": "x"})
    command_line.run("compare", None, command_line.Options("", runs=(str(a), str(b)), out=str(tmp_path / "c.html")))
    assert "WARNING: these runs were not measured alike (step, sample.num_steps)" in capsys.readouterr().out
    page = (tmp_path / "c.html").read_text()
    assert 'class="warning"' in page and "<code>hardware</code>" in page and "8 x gpu" in page
    assert page.index('class="warning"') < page.index("b minus a")
    rewrite(b / "eval.json", judge=judge | {"digest": "02"})
    rows, left_out = measured(Run.read(a), Run.read(b))
    assert {name for _, name, _ in rows} == {"bits per dimension"}
    assert "the judges differ: recogniser_demo 01 of a, recogniser_demo 02 of b" in left_out[0]


def test_noise_of_another_size_is_other_noise(tmp_path):
    a, b = make_run(tmp_path / "a", 0, shown=2), make_run(tmp_path / "b", 1, shown=2)
    seen, bits, about = read_kept(b / "eval")
    large = [dataclasses.replace(s, images=s.images.repeat(2, axis=1).repeat(2, axis=2)) for s in seen]
    large[0].marks["object"][:] = np.nan
    write_kept(large, bits, about["step"], about["seed"], b / "eval")
    rows, left_out = measured(Run.read(a), Run.read(b))
    assert all("from other noise" in what for what, name, _ in rows if "bits" not in name)
    # In latents their shape counts, not where anything lies.
    first, other = (Run.read(a), Run.read(a))
    latents = lambda run, **keys: dataclasses.replace(run, config={"space": {"kind": "latents"} | keys})
    autoencoder = lambda run, channels, **more: dataclasses.replace(
        run, frozen={"vae": {"settings": {"block_out_channels": "(8, 8)", "latent_channels": channels} | more}}
    )
    alike = lambda one, two: same_noise(one, two, one.seen[0], two.seen[0])
    assert not alike(first, latents(other))
    first, other = latents(first, latents="x"), latents(other, latents="y", max_latents=3, rgb_map="z")
    assert alike(first, other)
    assert alike(autoencoder(first, "4"), autoencoder(other, "3", vq_embed_dim="4"))
    assert not alike(autoencoder(first, "4"), autoencoder(other, "3", vq_embed_dim="None"))
    other.config["model"] = {"pretrained": "another"}
    assert alike(autoencoder(first, "4"), autoencoder(other, "4")) and not alike(first, autoencoder(other, "4"))
    assert "no picture has a value of object in both" in left_out[0]


def test_groups_with_other_prompts_are_named(tmp_path):
    a, b = make_run(tmp_path / "a", 0, shown=2), make_run(tmp_path / "b", 1, shown=2)
    index = json.loads((b / "eval" / "marks.json").read_text())
    index["groups"][0]["captions"][0] = "another prompt"
    rewrite(b / "eval" / "marks.json", groups=index["groups"])
    rows, left_out = measured(Run.read(a), Run.read(b))
    assert left_out == ["seen combinations, adapter on: a and b were not asked the same prompts"]
    assert "unseen combinations, adapter on" in {what for what, _, _ in rows}


def test_figures_in_feature_spaces_are_on_the_pages(tmp_path):
    figures = {"frechet_distance": {"frechet": 12.5, "n": 40}}
    reference = {"n": 50, "size": [8, 9]}
    space = {"digest": "0123", "resize": "none", "reference": reference, "samples": {"figures": figures, "refused": {}}}
    space["samples"]["how"] = {"frechet_distance": {"estimator": "ddof 1"}}
    folders = [make_run(tmp_path / name, i, shown=2) for i, name in enumerate("ab")]
    for run in folders:  # of a version that called the speed of such a run plain
        rewrite(run / "eval.json", spaces={"colours": space}, samples_per_second={"plain": 1.0})
        rewrite(run / "eval.json", alignment={}, judge_features={}, bits_per_dim={})
        rewrite(run / "eval.json", judge={"name": "recogniser_demo", "digest": "45"})
    page = write_compare(folders, tmp_path / "c.html").read_text()
    assert "a: colours: digest 0123" in page and "b: colours: digest 0123" in page
    assert "frechet_distance, samples" in page  # by its metric, also where an older version named the figure otherwise
    assert "All of the protocol of b: colours" in page
    page = write_report_page(folders[0]).read_text()
    rewrite(folders[1] / "eval.json", judge_features={"samples": {"frechet": 2.0, "n": 9, "too_few": "9 pictures"}})
    assert "2 (too few pictures)" in main_figures(Run.read(folders[1]))["judge Frechet distance"][0]
    assert "colours: frechet distance" in page and "; no result" not in page and "frechet_distance, samples" in page
    assert "8 x 9" in page and "ddof 1" in page and "recogniser_demo" in page  # how, and who judged


def test_what_cannot_be_paired_is_said(tmp_path):
    a, b, c = (make_run(tmp_path / name, i, shown=2) for i, name in enumerate("abc"))
    index = json.loads((b / "eval" / "marks.json").read_text())
    (b / "eval" / "marks.json").write_text(json.dumps(index | {"seed": 5}))
    (c / "eval" / "marks.json").unlink()
    assert "the noise differs: seed 0 of a, 5 of b" in measured(Run.read(a), Run.read(b))[1][0]
    assert "c has no kept marks" in measured(Run.read(a), Run.read(c))[1][0]
    for folders, words in (
        ([a], "1 runs"),
        ([a, a], "two or more different"),
        ([a, tmp_path / "no"], "does not exist"),
    ):
        with pytest.raises(UserError, match=words):
            write_compare(folders, tmp_path / "page.html")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="folder of results .* cannot be written"):
        write_compare([a, b], tmp_path / "file" / "page.html")
