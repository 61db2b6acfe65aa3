"""Runs docs/quickstart.ipynb from top to bottom and stores in it what its cells show, without Jupyter.

    python -m docs.notebook                 # prints what each cell took
"""

import ast
import base64
import contextlib
import io
import json
import os
import time
from pathlib import Path
from typing import Any

from PIL import Image

NOTEBOOK = Path(__file__).with_name("quickstart.ipynb")


def run(path: Path = NOTEBOOK) -> dict[str, Any]:
    """The notebook with the outputs of this run; it works in the notebook's folder, as Jupyter does."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    names, count = {"__name__": "__main__"}, 0
    with contextlib.chdir(path.parent):
        for cell in notebook["cells"]:
            if cell["cell_type"] != "code":
                continue
            count, start = count + 1, time.monotonic()
            cell["outputs"], cell["execution_count"] = _execute("".join(cell["source"]), names, count), count
            print(f"cell {count}: {time.monotonic() - start:.0f} s", flush=True)
    return notebook


def _execute(source: str, names: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Runs a cell; what it prints, and the value of its last line, as Jupyter stores them."""
    body = ast.parse(source).body
    last = ast.Expression(body.pop().value) if body and isinstance(body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(ast.Module(body, []), "<cell>", "exec"), names)
        if last is not None:
            value = eval(compile(last, "<cell>", "eval"), names)
    outputs = []
    if text := printed.getvalue():
        outputs.append(dict(output_type="stream", name="stdout", text=text.splitlines(keepends=True)))
    if value is not None:
        outputs.append(dict(output_type="execute_result", metadata={}, execution_count=count, data=_shown(value)))
    return outputs


def _shown(value: Any) -> dict[str, Any]:
    """A picture as PNG, anything else by its repr."""
    if not isinstance(value, Image.Image):
        return {"text/plain": [repr(value)]}
    file = io.BytesIO()
    value.save(file, "PNG", optimize=True)
    image = base64.b64encode(file.getvalue()).decode()
    return {"image/png": image, "text/plain": [f"<{value.width} x {value.height}>"]}


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    NOTEBOOK.write_text(json.dumps(run(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
