"""The notebook: its cells are Python and show something; the slow test runs them from top to bottom."""

import ast
import json

import pytest

from docs import notebook


def cells(content):
    return [cell for cell in content["cells"] if cell["cell_type"] == "code"]


def test_what_is_stored_is_a_whole_run():
    stored = cells(json.loads(notebook.NOTEBOOK.read_text(encoding="utf-8")))
    assert [cell["execution_count"] for cell in stored] == list(range(1, len(stored) + 1))
    for cell in stored:
        ast.parse("".join(cell["source"]))
    kinds = [output["output_type"] for cell in stored for output in cell["outputs"]]
    assert kinds.count("execute_result") >= 4 and "stream" in kinds and "error" not in kinds


def test_what_a_cell_shows_is_what_jupyter_stores():
    outputs = notebook._execute("print('a')\nx = 2\nx + 1", {}, 7)
    assert [output["output_type"] for output in outputs] == ["stream", "execute_result"]
    assert outputs[0]["text"] == ["a\n"] and outputs[1]["data"] == {"text/plain": ["3"]}
    assert notebook._execute("x = 2", {}, 1) == []


@pytest.mark.slow
def test_it_runs_from_top_to_bottom():
    stored, now = json.loads(notebook.NOTEBOOK.read_text(encoding="utf-8")), notebook.run()
    for before, after in zip(cells(stored), cells(now), strict=True):
        assert [o["output_type"] for o in before["outputs"]] == [o["output_type"] for o in after["outputs"]]
