"""Where outputs go: into a run or an export, else below runs/; never over what lies there."""

import os
from pathlib import Path

import pytest

from contextdiff_jax import command_line
from contextdiff_jax.command_line.options import Options
from contextdiff_jax.errors import UserError
from contextdiff_jax.pipeline.export import CONFIG
from contextdiff_jax.pipeline.places import check_place, home_of


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "checkpoints" / "5").mkdir(parents=True)
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / CONFIG).write_text("{}")
    (tmp_path / "sd" / "unet").mkdir(parents=True)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "v1.5 pruned.safetensors").write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    "model, home",
    [
        ("mine", "mine"),
        ("exported", "exported"),
        ("builtin:demo", "runs/builtin-demo"),
        ("org/name", "runs/org-name"),
        ("sd", "runs/sd"),
        ("./sd/", "runs/sd"),
        ("models/v1.5 pruned.safetensors", "runs/v1.5-pruned"),
    ],
)
def test_only_a_run_or_an_export_is_written_into(model, home):
    assert home_of(model) == Path(home)


def test_a_run_that_has_the_name_is_left_alone():
    Path("runs/sd/checkpoints/1").mkdir(parents=True)
    assert home_of("sd") == Path("runs/sd-model") and home_of("runs/sd") == Path("runs/sd")


MADE = ("0007.png", "12345.png", "grid.png", "clip.png", "heatmaps.json", "sample.json", "metadata.jsonl")


@pytest.mark.parametrize("name", MADE)
def test_what_an_earlier_call_has_made_stays(name):
    out = Path("out")
    out.mkdir()
    (out / "notes.txt").write_text("")
    assert check_place("out", Path("runs/x")) == out
    (out / name).write_bytes(b"")
    with pytest.raises(UserError, match=f"--out=out holds {name}"):
        check_place("out", Path("runs/x"))
    assert check_place("", Path("runs/x")) == Path("runs/x") and not Path("runs").exists()


@pytest.mark.parametrize("mode", ["sample", "heatmaps", "eval"])
def test_places_are_tried_before_a_model_is_read(mode, here, monkeypatch):
    monkeypatch.setattr(command_line.shared, "pipeline_of", lambda config, options: pytest.fail("read"))
    (here / "runs").write_text("a file in the way")
    with pytest.raises(UserError, match="output folder 'runs/.*' cannot be written"):
        command_line.MODES[mode](None, Options("builtin:demo"))
    assert not os.path.exists("builtin:demo")
