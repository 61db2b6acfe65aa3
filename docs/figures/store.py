"""Where the figures and the numbers behind them are kept."""

import sys
from pathlib import Path
from typing import Any

from contextdiff_jax.evaluate.suite import hardware
from contextdiff_jax.files import write_json

FOLDER = Path(__file__).parent
QUICK = Path("runs/figures")  # what a quick setting gives is no result to keep


def place(quick: bool) -> Path:
    """The folder of the results."""
    return QUICK if quick else FOLDER


def keep(name: str, quick: bool, values: dict[str, Any]) -> None:
    """Writes NAME.json with the hardware."""
    write_json({"hardware": hardware(), **values}, place(quick) / f"{name}.json")


def shown(name: str, quick: bool) -> Path:
    """Where a figure's PNG goes."""
    return place(quick) / f"{name}.png"


def say(text: str) -> None:
    """A line of progress on standard error."""
    print(text, file=sys.stderr, flush=True)
