"""What an evaluation keeps for the pages and for comparisons: pictures, and what was said of every one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate.groups import Seen
from contextdiff_jax.evaluate.npz_pictures import DAMAGED
from contextdiff_jax.files import atomic, read_object, write_json

INDEX, PICTURES = "marks.json", "pictures.npz"


def write_kept(seen: Sequence[Seen], bits: Mapping[str, np.ndarray], step: int, seed: int, folder: Path) -> None:
    """Writes marks.json and pictures.npz.

    Args:
        seen: of each group and setting.
        bits: bits per dimension of each held-out image, by setting.
        step: of the training.
        seed: of the pictures' noise.
        folder: where they go.
    """
    groups = [
        {
            "group": kept.group,
            "setting": kept.setting,
            "captions": kept.captions,
            "places": kept.places,
            "marks": kept.marks,
        }
        for kept in seen
    ]
    with atomic(folder / PICTURES) as temporary:
        np.savez_compressed(temporary, **{str(i): kept.images for i, kept in enumerate(seen)})
    write_json({"step": step, "seed": seed, "groups": groups, "bits_per_dim": dict(bits)}, folder / INDEX)


def read_kept(folder: str | Path) -> tuple[list[Seen], dict[str, np.ndarray], dict[str, Any]]:
    """(what was seen, bits of each image by setting, {"step", "seed"}) of an evaluation's folder; ([], {}, {}) of none.

    Raises:
        UserError: damaged files.
    """
    folder = Path(folder)
    if not (folder / INDEX).is_file():
        return [], {}, {}
    index = read_object(folder / INDEX, "evaluate the run again")
    column = lambda values: np.array([np.nan if v is None else v for v in values], np.float64)
    try:
        with np.load(folder / PICTURES, allow_pickle=False) as pictures:
            seen = [
                Seen(
                    group["group"],
                    group["setting"],
                    group["captions"],
                    group["places"],
                    pictures[str(i)],
                    {measure: column(values) for measure, values in group["marks"].items()},
                )
                for i, group in enumerate(index["groups"])
            ]
        bits = {setting: column(values) for setting, values in index["bits_per_dim"].items()}
        return seen, bits, {"step": index["step"], "seed": index["seed"]}
    except (*DAMAGED, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder} is damaged ({error}); evaluate the run again") from error
