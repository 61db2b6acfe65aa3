"""The programs in docs/ answer mistakes as the command line does."""

import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from configs import class2img, t2i
from contextdiff_jax.command_line import config_files
from contextdiff_jax.errors import UserError
from docs import scripts
from docs.figures import cost, guidance
from docs.study import noising


def test_what_a_user_got_wrong_is_one_line(capsys):
    def main():
        raise UserError("the model is\nmissing; train one")

    with pytest.raises(SystemExit) as stop:
        scripts.run(main)
    assert stop.value.code == 2 and capsys.readouterr().err == "error: the model is missing; train one\n"


def test_guidance_is_not_shown_of_what_nobody_judges():
    config = t2i.get_config("tiny")
    config.data.preset = "pairs"
    with pytest.raises(UserError, match="preset='pairs' has no judge of objects on backgrounds"):
        guidance.sweep(SimpleNamespace(config=config), (3.0,), 1, 2, 2)


def test_what_only_an_adapter_looks_through_is_not_loaded_without_it():
    for recipe, needed in ((class2img, False), (t2i, True)):  # the CLIP reads texts as well
        assert bool(cost.size(cost.frozen_without(recipe.get_config("tiny")))) is needed


def test_the_shift_s_figure_is_drawn(tmp_path):
    rows = {"without": np.zeros((2, 2, 4, 4, 3)), "with": np.ones((2, 2, 4, 4, 3))}
    noising.draw(np.array([1, 9]), rows, ["a frog", "a bear"], tmp_path / "noising.png")
    assert (tmp_path / "noising.png").stat().st_size > 1000


@pytest.mark.parametrize("page", ["README.md", "docs/guide.md"])
def test_the_pages_give_recipes_flags_and_keys_that_exist(page):
    from contextdiff_jax import main

    text = (Path(main.__file__).parents[1] / page).read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(r"^    python -m contextdiff_jax.main (.*)$|`(--config=configs/[^`]*)`", text, re.MULTILINE)
    known = set(main.FLAGS) | {"config"}
    for command in map("".join, commands):
        given = shlex.split(command, comments=True)
        config_files.check_config_flags(config_files.with_config_file(["main", *given]))
        flags = {flag[2:].partition("=")[0] for flag in given if flag.startswith("--")}
        assert {flag for flag in flags if not flag.startswith("config.")} <= known, command
    assert len(commands) > 10
