"""Where the figures and the numbers behind them are kept."""

import sys
from pathlib import Path
from typing import Any

from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate.suite import hardware
from contextdiff_jax.files import write_json

FOLDER = Path(__file__).parent
QUICK = Path("runs/figures")  # what a quick setting gives is no result to keep
MODEL_HELP = "default runs/demo, of bash launch/demo.sh; with --quick the model that ships"


def place(quick: bool) -> Path:
    """The folder of the results."""
    return QUICK if quick else FOLDER


def model_of(asked: str, quick: bool) -> str:
    """The model whose figures are drawn; those that are kept are the demo's.

    Raises:
        UserError: it has not been trained.
    """
    if asked or quick:
        return asked or "builtin:demo"
    if not Path("runs/demo").is_dir():
        raise UserError("runs/demo is missing, whose figures these are; bash launch/demo.sh trains it")
    return "runs/demo"


def trainings(folder: Path) -> dict[str, list[Path]]:
    """{"on", "off": the runs of every seed} that the figure of convergence has left in a folder, with and without the
    adapter.

    Raises:
        UserError: there are none of a kind, or not of the same seeds.
    """
    found = {arm: sorted(folder.glob(f"converge-{arm}-*")) for arm in ("on", "off")}
    seeds = [[path.name.rpartition("-")[2] for path in paths] for paths in found.values()]
    if not seeds[0] or seeds[0] != seeds[1]:
        said = f"with the adapter {seeds[0]}, without {seeds[1]}"
        raise UserError(f"--trained={folder}: seeds {said}; bash launch/figures.sh convergence trains both")
    return found


def keep(name: str, quick: bool, values: dict[str, Any]) -> None:
    """Writes NAME.json with the hardware."""
    write_json({"hardware": hardware(), **values}, place(quick) / f"{name}.json")


def shown(name: str, quick: bool) -> Path:
    """Where a figure's PNG goes."""
    return place(quick) / f"{name}.png"


def say(text: str) -> None:
    """A line of progress on standard error."""
    print(text, file=sys.stderr, flush=True)
