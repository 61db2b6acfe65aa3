"""Reference statistics in npz files: `mu` and `sigma` as pytorch-fid has them, and `mu_s` and `sigma_s` as ADM has.

Ours say besides in which space they were taken ("contextdiff", a JSON text that other readers leave alone).
"""

import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate.feature_spaces import Described
from contextdiff_jax.evaluate.metrics.frechet import Moments
from contextdiff_jax.evaluate.npz_pictures import DAMAGED, OF_STATISTICS
from contextdiff_jax.files import atomic, user_path

ABOUT = OF_STATISTICS[-1]
UNKNOWN = "unknown"  # what others' files do not say


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Moments of a reference.

    Attributes:
        pooled: of the features.
        spatial: of sFID's, where there are any.
        about: what was measured: n, digest, crop and the space; of others' files the path and its SHA-256.
    """

    pooled: Moments
    spatial: Moments | None
    about: dict[str, Any]


def is_statistics(path: str | Path) -> bool:
    """Whether a file is an npz with a mean and a covariance."""
    path = user_path(path)
    if path.suffix != ".npz" or not path.is_file() or not zipfile.is_zipfile(path):
        return False
    try:
        with np.load(path, allow_pickle=False) as file:
            return {"mu", "sigma"} <= set(file.files)
    except DAMAGED:
        return False


def write(path: str | Path, space: Described, moments: Mapping[str, Moments], about: Mapping[str, Any]) -> None:
    """Writes an npz that pytorch-fid, ADM's evaluator and `read` take.

    Args:
        path: the file.
        space: where the features come from.
        moments: "pooled", and "spatial" where there are any.
        about: of the pictures.
    """
    arrays = {"mu": moments["pooled"].mean, "sigma": moments["pooled"].covariance}
    if "spatial" in moments:
        arrays |= {"mu_s": moments["spatial"].mean, "sigma_s": moments["spatial"].covariance}
    text = json.dumps({"space": dataclasses.asdict(space), "n": moments["pooled"].n} | dict(about))
    with atomic(path) as temporary:
        np.savez(temporary, **arrays, **{ABOUT: np.array(text)})


def read(path: str | Path, space: Described, crop_rule: str) -> Statistics:
    """Statistics for comparison in a space.

    Args:
        path: the file.
        space: in which the pictures are measured.
        crop_rule: of the pictures.

    Raises:
        UserError: damaged; of another space, resize or crop; or another's, whose space is not named, outside FID's.
    """
    path = user_path(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in OF_STATISTICS if name in file.files}
        about = _checked(json.loads(str(arrays.pop(ABOUT)))) if ABOUT in arrays else {"n": None}
        if unreal := [name for name, value in arrays.items() if value.dtype.kind not in "fiu"]:
            raise ValueError(f"{unreal[0]} is of type {arrays[unreal[0]].dtype}, and statistics are real numbers")
        arrays = {name: value.astype(np.float64) for name, value in arrays.items()}
        if arrays["mu"].ndim != 1:
            raise ValueError(f"the mean has shape {arrays['mu'].shape}")
    except DAMAGED as error:
        raise UserError(f"statistics {str(path)!r} cannot be read ({error}); write them again") from error
    _check_space(path, arrays["mu"], about, space, crop_rule)
    n = about["n"]
    if "space" not in about:
        about |= {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "resize": UNKNOWN, "crop": UNKNOWN}
    pair = lambda mu, sigma: Moments.from_statistics(arrays[mu], arrays[sigma], n)
    spatial = pair("mu_s", "sigma_s") if {"mu_s", "sigma_s"} <= arrays.keys() else None
    return Statistics(pair("mu", "sigma"), spatial, {"path": str(path)} | about)


def _checked(about: Any) -> dict[str, Any]:
    """What a file of ours says of itself; ValueError where it does not."""
    if not isinstance(about, dict) or not isinstance(about.get("space"), dict):
        raise ValueError("it does not say in which space it was taken")
    n, size = about.get("n"), about.get("size", [1, 1])
    if not isinstance(size, list) or len(size) != 2 or not all(isinstance(v, int) and v > 0 for v in (n, *size)):
        raise ValueError(f"n {n!r} and size {size!r} are no numbers of pictures and pixels")
    if missing := [key for key in ("name", "digest", "resize") if key not in about["space"]]:
        raise ValueError(f"the space has no {missing[0]}")
    return about | {"crop": about.get("crop")}


def _check_space(path: str | Path, mu: np.ndarray, about: dict[str, Any], space: Described, crop_rule: str) -> None:
    """Figures across spaces mean nothing."""
    if mu.shape != (space.width,):
        raise UserError(
            f"statistics {str(path)!r} are of another feature space: {mu.size} features there, {space.width} in "
            f"{space.name}; take both in one"
        )
    if "space" not in about:
        if not space.is_fid:
            raise UserError(
                f"statistics {str(path)!r} do not say in which features they were taken, so they count as FID's; "
                f"measure in those, --features=inception:FILE of a file that was converted as encoders/inception.py "
                f"says, or write statistics in {space.name} with --mode=metrics --out"
            )
        return
    asked = dataclasses.asdict(space)
    for key in ("name", "digest", "resize"):
        if about["space"][key] != asked[key]:
            raise UserError(
                f"statistics {str(path)!r} were taken in another feature space: {key} {about['space'][key]!r} there, "
                f"{asked[key]!r} here; take both in one"
            )
    if about["crop"] != crop_rule:
        raise UserError(
            f"statistics {str(path)!r} were taken with crop {about['crop']!r} and the pictures with {crop_rule!r}; "
            "crop both alike"
        )
