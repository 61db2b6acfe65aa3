"""Two sets of pictures measured against each other, in one pass over each."""

import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate import statistics
from contextdiff_jax.evaluate.feature_spaces import FeatureSpace, open_space
from contextdiff_jax.evaluate.metrics import (
    ClipScore,
    Cmmd,
    Frechet,
    InceptionScores,
    Kid,
    Metric,
    Moments,
    PrecisionAndRecall,
)
from contextdiff_jax.evaluate.metrics.base import Rows, check, indices
from contextdiff_jax.evaluate.picture_sets import Batch, PictureSet
from contextdiff_jax.files import check_writable, write_json

BATCH = 128


@dataclasses.dataclass
class Reference:
    """What is kept of the reference in one space.

    Attributes:
        moments: "pooled", and "spatial" where the space has them.
        features: [M, D]; None of a file of statistics, which has moments alone.
        about: of the pictures.
    """

    moments: dict[str, Moments]
    features: np.ndarray | None
    about: dict[str, Any]


def passes(pictures: PictureSet, title: str):
    """The batches of a set under a progress bar."""
    with tqdm(total=pictures.total, desc=title, unit="img", mininterval=1.0, disable=None) as bar:
        for images, records in pictures.batches(BATCH):
            yield images, records
            bar.update(len(images))


def observe(pictures: PictureSet, spaces: Sequence[FeatureSpace], keep: bool = True) -> list[Reference]:
    """One pass over a set: its moments in each space, and its features where `keep`."""
    found = observe_batches(passes(pictures, f"reference {pictures.path.name}"), spaces, "", keep)
    return [dataclasses.replace(reference, about=pictures.described()) for reference in found]


def observe_batches(
    batches: Iterable[Batch], spaces: Sequence[FeatureSpace], name: str, keep: bool = True
) -> list[Reference]:
    """The same of any batches of pictures and records; the name is what a result calls them."""
    found, count = [({"pooled": Moments()}, Rows()) for _ in spaces], 0
    for images, records in batches:
        count += len(images)
        for space, (moments, rows) in zip(spaces, found, strict=True):
            features = space.features(images)
            if "spatial" in features:
                moments.setdefault("spatial", Moments()).add(features["spatial"])
            moments["pooled"].add(features["pooled"])
            if keep:
                rows.add(check(features["pooled"]), indices(records, images))
    about = {"path": name, "n": count}
    return [Reference(moments, rows.values() if keep else None, about) for moments, rows in found]


def references(path: str | Path, spaces: Sequence[FeatureSpace], crop: int | None, crop_rule: str) -> list[Reference]:
    """The reference in each space, from pictures or from a file of statistics."""
    if not statistics.is_statistics(path):
        return observe(PictureSet(path, crop), spaces)
    found = []
    for space in spaces:
        read = statistics.read(path, space.described, crop_rule)
        moments = {"pooled": read.pooled} | ({"spatial": read.spatial} if read.spatial else {})
        found.append(Reference(moments, None, read.about))
    return found


def metrics_of(space: FeatureSpace, reference: Reference | None, captions: bool) -> dict[str, Metric]:
    """The metrics that a space and a reference allow, by name."""
    fid = space.described.is_fid
    found: dict[str, Metric] = {}
    if reference is not None:
        found["fid" if fid else "frechet_distance"] = Frechet(space.pooled, reference.moments["pooled"])
        if fid and "spatial" in reference.moments:
            found["sfid"] = Frechet(space.spatial, reference.moments["spatial"])
        if reference.features is not None:
            found["kid" if fid else "kernel_distance"] = Kid(space.pooled, reference.features)
            found["precision_recall"] = PrecisionAndRecall(space.pooled, reference.features)
            if space.embed_texts is not None:
                found["cmmd"] = Cmmd(space.pooled, reference.features)
    if fid:
        found["inception_score"] = InceptionScores(space.probabilities)
    if captions and space.embed_texts is not None:
        found["clip_score"] = ClipScore(space.pooled, space.embed_texts)
    return found


def measure(
    images: str | Path,
    reference: str | Path,
    spaces: Sequence[FeatureSpace],
    *,
    crop: int | None = None,
    captions: str | Path = "",
) -> dict[str, Any]:
    """Every metric that the spaces allow, with the whole protocol.

    Args:
        images: folder or npz of pictures.
        reference: the same, or an npz of statistics; "" for figures that need none.
        spaces: feature spaces, one or more.
        crop: as `PictureSet` takes it, for both sides.
        captions: of the pictures, as `PictureSet` takes them.

    Returns:
        {"images", "reference": what was measured; "spaces": {name: {"digest", "resize", "width", "figures": {metric:
        result}, "refused": {metric: why}}}}.

    Raises:
        UserError: bad input of any kind, in one line.
    """
    pictures = PictureSet(images, crop, captions)
    if captions and not any(space.embed_texts for space in spaces):
        raise UserError("captions are given, but no feature space has a text encoder; add --features=clip:FOLDER")
    found = references(reference, spaces, crop, pictures.crop_rule) if str(reference) else [None] * len(spaces)
    metrics = [metrics_of(space, ref, bool(captions)) for space, ref in zip(spaces, found, strict=True)]
    if not any(metrics):
        raise UserError("nothing to measure: --reference is not given, and no --captions for a clip space")
    for batch, records in passes(pictures, f"images {pictures.path.name}"):
        for ref in found:
            _check_same_size(pictures.shape, ref)
        for group in metrics:
            for metric in group.values():
                metric.update(batch, records)
    result: dict[str, Any] = {"images": pictures.described(), "reference": None, "spaces": {}}
    for space, ref, group in zip(spaces, found, metrics, strict=True):
        figures, refused = results(group)
        result["spaces"][space.described.name] = space.about() | {"figures": figures, "refused": refused}
        result["reference"] = ref.about if ref is not None else None
    if not any(space["figures"] for space in result["spaces"].values()):
        refused = next(iter(result["spaces"].values()))["refused"]
        raise UserError("nothing can be measured: " + "; ".join(f"{name}: {why}" for name, why in refused.items()))
    return result


def results(metrics: dict[str, Metric]) -> tuple[dict[str, Any], dict[str, str]]:
    """Figures by metric, and why others are refused."""
    figures, refused = {}, {}
    for name, metric in metrics.items():
        try:
            figures[name] = metric.result()
        except UserError as error:
            refused[name] = str(error)
    return figures, refused


def _check_same_size(shape: tuple[int, int], reference: Reference | None) -> None:
    """Pictures of two sizes are resized by two factors, and the figure would measure that."""
    other = reference.about.get("size") if reference is not None else None
    if other and tuple(other) != shape:
        raise UserError(
            f"pictures are {shape[1]} x {shape[0]} and the reference's {other[1]} x {other[0]}; "
            f"crop both to one size, e.g. --crop={min(*shape, *other)}"
        )


def measure_on_command(
    images: str, reference: str, features: Sequence[str], *, crop: int | None, captions: str, out: str
) -> None:
    """`--mode=metrics`: prints the figures, and writes the result as JSON to `out`, or prints it where there is none.

    Without a reference and with `out` an npz, the pictures' statistics go there instead.

    Raises:
        UserError: bad input of any kind, in one line.
    """
    if not images:
        raise UserError("--images is missing; give a folder or npz of pictures: --images=A --reference=B")
    if out:
        check_writable(Path(out).parent, "folder of results", "give another --out")
    if not reference and out.endswith(".npz"):
        if len(features) != 1:
            raise UserError(f"{len(features)} feature spaces for one file of statistics; give one --features")
        pictures, (space,) = PictureSet(images, crop), [open_space(spec) for spec in features]
        (found,) = observe(pictures, [space], keep=False)
        statistics.write(out, space.described, found.moments, found.about)
        print(f"statistics of {pictures.n} pictures in {space.described.name}: {out}")
        return
    if not reference and not captions:
        raise UserError("--reference is missing; give pictures or statistics, or --out=FILE.npz to write statistics")
    result = measure(images, reference, [open_space(spec) for spec in features], crop=crop, captions=captions)
    report(result)
    if out:
        write_json(result, out)
        print(f"figures with their protocol: {out}")
    else:
        print(json.dumps(result, indent=2))


def report(result: dict[str, Any]) -> None:
    """Figures for a terminal, on standard error, so that the JSON can be piped."""
    for name, space in result["spaces"].items():
        for figures in space["figures"].values():
            n = figures["n"]
            for key, value in figures.items():
                if key in ("n", "splits") or key.endswith("_stderr"):
                    continue
                error = f" +- {figures[key + '_stderr']:.2g}" if f"{key}_stderr" in figures else ""
                print(f"{name + ', ' + key:50s} {value:.6g}{error}  (n = {n})", file=sys.stderr)
        for metric, why in space["refused"].items():
            print(f"{name}, {metric} refused: {why}", file=sys.stderr)
    for side in (result["images"], result["reference"] or {}):
        if "unreadable" in side:
            left_out = side["unreadable"]
            print(f"left out of {side['path']}: {left_out['count']}, {'; '.join(left_out['first'])}", file=sys.stderr)
