"""The programs in docs/ answer mistakes as the command line does."""

import numpy as np
import pytest

from contextdiff_jax.errors import UserError
from docs import scripts
from docs.study import noising


def test_what_a_user_got_wrong_is_one_line(capsys):
    def main():
        raise UserError("the model is\nmissing; train one")

    with pytest.raises(SystemExit) as stop:
        scripts.run(main)
    assert stop.value.code == 2 and capsys.readouterr().err == "error: the model is missing; train one\n"


def test_the_shift_s_figure_is_drawn(tmp_path):
    rows = {"without": np.zeros((2, 2, 4, 4, 3)), "with": np.ones((2, 2, 4, 4, 3))}
    noising.draw(np.array([1, 9]), rows, ["a frog", "a bear"], tmp_path / "noising.png")
    assert (tmp_path / "noising.png").stat().st_size > 1000
