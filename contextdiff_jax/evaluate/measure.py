"""Two sets of pictures measured against each other, in one pass over each."""

import dataclasses
import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from contextdiff_jax.data.listing import listed
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
    across_processes,
)
from contextdiff_jax.evaluate.metrics.base import Records, Rows, check, indices, shown
from contextdiff_jax.evaluate.metrics.distributed import joined
from contextdiff_jax.evaluate.picture_sets import Batch, PictureSet, has_pictures, stamp
from contextdiff_jax.evaluate.unfinished import Journal, not_seen
from contextdiff_jax.files import check_file, write_json
from contextdiff_jax.training.distributed import is_primary, together

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
    off = None if is_primary() else True  # None: where standard error is no terminal
    with tqdm(total=pictures.total, desc=title, unit="img", mininterval=1.0, disable=off) as bar:
        for images, records in pictures.batches(BATCH):
            yield images, records
            bar.update(len(images))


def observe(
    pictures: PictureSet, spaces: Sequence[FeatureSpace], keep: bool = True, journal: Journal | None = None
) -> list[Reference]:
    """One pass over a set: its moments in each space, and its features where `keep`."""
    batches = passes(pictures, f"reference {pictures.path.name}")
    return observe_batches(batches, spaces, pictures.described, keep, journal)


def observe_batches(
    batches: Iterable[Batch],
    spaces: Sequence[FeatureSpace],
    described: Callable[[], dict[str, Any]],
    keep: bool = True,
    journal: Journal | None = None,
) -> list[Reference]:
    """The same of any batches of pictures and records; `described` says afterwards what they were. Of several
    processes, which all call it with the same batches, each looks at its share of them."""
    found = [({"pooled": Moments(), "spatial": Moments()}, Rows()) for _ in spaces]
    parts = {f"{i}/{name}": part for i, (moments, _) in enumerate(found) for name, part in moments.items()}
    parts |= {f"{i}/features": rows for i, (_, rows) in enumerate(found) if keep}
    with together():
        for images, records in not_seen(own_share(batches), journal, "reference", parts):
            for space, (moments, rows) in zip(spaces, found, strict=True):
                features = space.features(images)
                check_finite(space, features, records)
                for name in moments.keys() & features.keys():
                    moments[name].add(features[name])
                if keep:
                    rows.add(check(features["pooled"]), indices(records, images))
    references = []
    for moments, rows in found:
        whole = {name: joined(part) for name, part in moments.items()}
        features = joined(rows).values() if keep else None
        references.append(Reference({name: m for name, m in whole.items() if m.n}, features, described()))
    return references


def own_share(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Every n-th batch, of n processes that share the work."""
    for i, batch in enumerate(batches):
        if i % jax.process_count() == jax.process_index():
            yield batch


def check_finite(space: FeatureSpace, features: dict[str, np.ndarray], records: Records) -> None:
    """Raises UserError for features that are not finite; it names the pictures."""
    fine = np.all([np.isfinite(values).all(axis=1) for values in features.values()], axis=0)
    if not fine.all():
        bad = [str(r.get("name", r["index"])) for r, is_fine in zip(records, fine, strict=True) if not is_fine]
        raise UserError(
            f"features in {space.described.name} are not finite for {len(bad)} of {len(fine)} pictures "
            f"({listed(bad)}); look at those pictures and leave them out"
        )


def references(
    path: str | Path, spaces: Sequence[FeatureSpace], crop: int | None, crop_rule: str, journal: Journal | None = None
) -> list[Reference]:
    """The reference in each space, from pictures, from a file of statistics, or from one that has both, as ADM's
    reference batches do: their statistics are FID's, of more pictures than they hold."""
    if not statistics.is_statistics(path):
        return observe(PictureSet(path, crop), spaces, journal=journal)
    seen = observe(PictureSet(path, crop), spaces, journal=journal) if has_pictures(path) else [None] * len(spaces)
    found = []
    for space, own in zip(spaces, seen, strict=True):
        if own is not None and not space.described.is_fid:
            found.append(own)
            continue
        read = statistics.read(path, space.described, crop_rule)
        moments = {"pooled": read.pooled} | ({"spatial": read.spatial} if read.spatial else {})
        about = read.about if own is None else read.about | {"size": own.about["size"], "pictures": own.about}
        found.append(Reference(moments, own.features if own is not None else None, about))
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
            features = check(reference.features, "features of the reference")  # in float64 once for all of them
            found["kid" if fid else "kernel_distance"] = Kid(space.pooled, features)
            found["precision_recall"] = PrecisionAndRecall(space.pooled, features)
            if space.embed_texts is not None:
                found["cmmd"] = Cmmd(space.pooled, features)
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
    journal: Journal | None = None,
) -> dict[str, Any]:
    """Every metric that the spaces allow, with the whole protocol. Several processes share the work; all call it.

    Args:
        images: folder or npz of pictures.
        reference: the same, or an npz of statistics; "" for figures that need none.
        spaces: feature spaces, one or more.
        crop: as `PictureSet` takes it, for both sides.
        captions: of the pictures, as `PictureSet` takes them.
        journal: of a single process; what it holds of the same measurement is not looked at again.

    Returns:
        {"images", "reference": what was measured; "spaces": {name: {"digest", "resize", "width", "reference": this
        space's, "figures": {metric: result}, "refused": {metric: why}}}}.

    Raises:
        UserError: bad input of any kind, in one line.
    """
    pictures = PictureSet(images, crop, captions)
    if captions and not any(space.embed_texts for space in spaces):
        raise UserError("captions are given, but no feature space has a text encoder; add --features=clip:FOLDER")
    check_names(spaces)
    found: Sequence[Reference | None] = [None] * len(spaces)
    if str(reference):
        found = references(reference, spaces, crop, pictures.crop_rule, journal)
    metrics = [metrics_of(space, ref, bool(captions)) for space, ref in zip(spaces, found, strict=True)]
    if not any(metrics):
        raise UserError("nothing to measure: --reference is not given, and no --captions for a clip space")
    parts = {f"{i}/{name}": metric.kept for i, group in enumerate(metrics) for name, metric in group.items()}
    with together():
        batches = own_share(passes(pictures, f"images {pictures.path.name}"))
        for batch, records in not_seen(batches, journal, "images", parts):
            for ref in found:
                _check_same_size(pictures.shape, ref)
            for space, group in zip(spaces, metrics, strict=True):
                check_finite(space, space.features(batch), records)
                for metric in group.values():
                    metric.update(batch, records)
    for metric in itertools.chain.from_iterable(group.values() for group in metrics):
        across_processes(metric)
    result: dict[str, Any] = {"images": pictures.described(), "reference": None, "spaces": {}}
    for space, ref, group in zip(spaces, found, metrics, strict=True):
        figures, refused = results(group)
        about = ref.about if ref is not None else None
        result["spaces"][space.described.name] = space.about() | {
            "reference": about,
            "figures": figures,
            "refused": refused,
        }
    abouts = [space["reference"] for space in result["spaces"].values()]
    result["reference"] = abouts[0] if all(about == abouts[0] for about in abouts) else "one for each space"
    if not any(space["figures"] for space in result["spaces"].values()):
        refused = next(iter(result["spaces"].values()))["refused"]
        raise UserError("nothing can be measured: " + "; ".join(f"{name}: {why}" for name, why in refused.items()))
    return result


def check_names(spaces: Sequence[FeatureSpace]) -> None:
    """Raises UserError for two spaces of one name: a result has one entry for each name."""
    names = [space.described.name for space in spaces]
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise UserError(f"two feature spaces are called {twice[0]!r}; measure in one at a time, or rename a folder")


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

    Without a reference and with `out` an npz, the pictures' statistics go there instead. With `out` a measurement that
    was cut off goes on where it was, in one process.

    Raises:
        UserError: bad input of any kind, in one line.
    """
    if not images:
        raise UserError("--images is missing; give a folder or npz of pictures: --images=A --reference=B")
    if out:
        check_file(out)
    if out.endswith(".npz") and (reference or captions):
        given = "--reference" if reference else "--captions"
        raise UserError(
            f"--out={out} with {given}: an npz takes the statistics of --images alone; name a .json for figures, or "
            f"leave {given} out"
        )
    if out.endswith(".npz"):
        if len(features) != 1:
            raise UserError(f"{len(features)} feature spaces for one file of statistics; give one --features")
        pictures, (space,) = PictureSet(images, crop), [open_space(spec) for spec in features]
        journal = _journal(out, [space], images, "", "", crop)
        (found,) = observe(pictures, [space], keep=False, journal=journal)
        if is_primary():
            _keep_statistics(out, space, found)
            print(f"statistics of {pictures.n} pictures in {space.described.name}: {out}")
        if journal is not None:
            journal.end()
        return
    if not reference and not captions and not any(spec.startswith("inception:") for spec in features):
        raise UserError("--reference is missing; give pictures or statistics, or --out=FILE.npz to write statistics")
    spaces = [open_space(spec) for spec in features]
    journal = _journal(out, spaces, images, reference, captions, crop)
    result = measure(images, reference, spaces, crop=crop, captions=captions, journal=journal)
    if not is_primary():
        return
    report(result)
    if not out:
        print(json.dumps(result, indent=2))
        return
    try:
        write_json(result, out)
    except OSError as error:
        print(json.dumps(result, indent=2))
        raise UserError(f"{out} cannot be written ({error.strerror or error}); it is printed instead") from error
    if journal is not None:
        journal.end()
    print(f"figures with their protocol: {out}")


def _journal(
    out: str, spaces: Sequence[FeatureSpace], images: str, reference: str, captions: str, crop: int | None
) -> Journal | None:
    """What the same measurement has left beside `out`, if it was cut off; None where nothing is kept of it: without
    `out`, and of several processes, each of which sees a share of the pictures."""
    if not out or jax.process_count() > 1:
        return None
    files = {"images": stamp(images), "reference": stamp(reference), "captions": stamp(captions)}
    about = files | {"crop": crop, "batch": BATCH, "spaces": [dataclasses.asdict(space.described) for space in spaces]}
    path = Path(out).expanduser()
    journal = Journal(path.with_name(f".{path.name}.unfinished.npz"), json.dumps(about, sort_keys=True, default=str))
    if journal.found:
        print(f"going on with the measurement that was cut off, for {out}", file=sys.stderr)
    return journal


def _keep_statistics(out: str, space: FeatureSpace, found: Reference) -> None:
    """Writes statistics; where that fails after all, they go into a folder for temporary files, and are not lost.

    Raises:
        UserError: they are there.
    """
    try:
        statistics.write(out, space.described, found.moments, found.about)
    except OSError as error:
        elsewhere = Path(tempfile.mkdtemp(prefix="statistics-")) / Path(out).name
        statistics.write(elsewhere, space.described, found.moments, found.about)
        raise UserError(
            f"{out} cannot be written ({error.strerror or error}); the statistics are in {elsewhere}: move them"
        ) from error


def report(result: dict[str, Any]) -> None:
    """Figures for a terminal, on standard error, so that the JSON can be piped."""
    for name, space in result["spaces"].items():
        for figures in space["figures"].values():
            n = figures["n"]
            for key, value in shown(figures).items():
                error = f" +- {figures[key + '_stderr']:.2g}" if f"{key}_stderr" in figures else ""
                print(f"{name + ', ' + key:50s} {value:.6g}{error}  (n = {n})", file=sys.stderr)
        for metric, why in space["refused"].items():
            print(f"{name}, {metric} refused: {why}", file=sys.stderr)
    references = [space["reference"] for space in result["spaces"].values() if space["reference"]]
    unknown = [about["path"] for about in references if about.get("resize") == statistics.UNKNOWN]
    if unknown:
        print(
            f"{unknown[0]} does not say how its pictures were resized and cropped; here they are resized as TensorFlow "
            "1 does it, and another resize moves the FID",
            file=sys.stderr,
        )
    for side in (result["images"], *(about for i, about in enumerate(references) if about not in references[:i])):
        if "grids_left_out" in side:
            grids = ", ".join(side["grids_left_out"])
            print(f"left out of {side['path']}: {grids}, which shows other pictures together", file=sys.stderr)
        if "unreadable" in side:
            left_out = side["unreadable"]
            print(f"left out of {side['path']}: {left_out['count']}, {'; '.join(left_out['first'])}", file=sys.stderr)
