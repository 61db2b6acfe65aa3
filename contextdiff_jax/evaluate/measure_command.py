"""`--mode=metrics`: files in, figures on the terminal and as JSON, or statistics in an npz, out."""

import contextlib
import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate import statistics
from contextdiff_jax.evaluate.feature_spaces import FeatureSpace, open_space
from contextdiff_jax.evaluate.measure import BATCH, Reference, cut_captions, measure, observe
from contextdiff_jax.evaluate.metrics.base import shown
from contextdiff_jax.evaluate.metrics.frechet import too_few
from contextdiff_jax.evaluate.picture_sets import PictureSet, stamp
from contextdiff_jax.evaluate.unfinished import Journal
from contextdiff_jax.files import check_file, user_path, write_json
from contextdiff_jax.training.distributed import is_primary


def measure_on_command(
    images: str,
    reference: str,
    features: Sequence[str],
    *,
    crop: int | None,
    captions: str,
    out: str,
    prefix: str | None = None,
) -> None:
    """`--mode=metrics`: prints the figures, and writes the result as JSON to `out`, or prints it where there is none.

    Without a reference and with `out` an npz, the pictures' statistics go there instead. With `out` a measurement that
    was cut off goes on where it was, in one process.

    Raises:
        UserError: bad input of any kind, in one line.
    """
    if not images:
        raise UserError("--images is missing; give a folder or npz of pictures: --images=A --reference=B")
    if prefix is not None and not captions:
        raise UserError(f"--caption_prefix={prefix!r} cannot act without captions; add --captions")
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
        journal = _journal(out, [space], images, "", "", crop=crop)
        with _over_if_refused(journal):
            (found,) = observe(pictures, [space], keep=False, journal=journal)
        if is_primary():
            _keep_statistics(out, space, found)
            print(f"statistics of {pictures.n} pictures in {space.described.name}: {out}")
            _say_of_statistics(space, found)
        if journal is not None:
            journal.end()
        return
    if not reference and not captions and not any(spec.startswith("inception:") for spec in features):
        raise UserError("--reference is missing; give pictures or statistics, or --out=FILE.npz to write statistics")
    spaces = [open_space(spec) for spec in features]
    journal = _journal(out, spaces, images, reference, captions, crop=crop, prefix=prefix)
    with _over_if_refused(journal):
        result = measure(images, reference, spaces, crop=crop, captions=captions, prefix=prefix, journal=journal)
    if is_primary():
        report(result)
        _write(result, out)
    if journal is not None:
        journal.end()


def _write(result: dict[str, Any], out: str) -> None:
    """The result as JSON into `out`, or printed where there is none or it cannot be written."""
    if not out:
        print(json.dumps(result, indent=2))
        return
    try:
        write_json(result, out)
    except OSError as error:
        print(json.dumps(result, indent=2))
        raise UserError(f"{out} cannot be written ({error.strerror or error}); it is printed instead") from error
    print(f"figures with their protocol: {out}")


@contextlib.contextmanager
def _over_if_refused(journal: Journal | None) -> Iterator[None]:
    """A measurement that is refused leaves nothing to go on from: the same one would be refused again."""
    try:
        yield
    except UserError:
        if journal is not None:
            journal.end()
        raise


def _journal(
    out: str, spaces: Sequence[FeatureSpace], images: str, reference: str, captions: str, **how: Any
) -> Journal | None:
    """What the same measurement has left beside `out`, if it was cut off; None where nothing is kept of it: without
    `out`, and of several processes, each of which sees a share of the pictures."""
    if not out or jax.process_count() > 1:
        return None
    files = {"images": stamp(images), "reference": stamp(reference), "captions": stamp(captions)}
    about = files | how | {"batch": BATCH, "spaces": [dataclasses.asdict(space.described) for space in spaces]}
    path = user_path(out)
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


def _say_of_statistics(space: FeatureSpace, found: Reference) -> None:
    """What is to be known of statistics that were written: what they leave out, and whether they will do."""
    if few := too_few(space.described.width, found.moments["pooled"].n, found.moments["pooled"].n, instead=""):
        print(f"WARNING: {few}; with this file as its reference a Frechet distance is refused", file=sys.stderr)
    _say_what_was_read(found.about)


def report(result: dict[str, Any]) -> None:
    """Figures for a terminal, on standard error, so that the JSON can be piped."""
    for name, space in result["spaces"].items():
        for metric, figures in space["figures"].items():
            for key, (value, stderr) in shown(metric, figures).items():
                error = "" if stderr is None else f" +- {stderr:.2g}"
                print(f"{name + ', ' + key:50s} {value:.6g}{error}  (n = {figures['n']})", file=sys.stderr)
        for metric, why in space["refused"].items():
            print(f"{name}, {metric} refused: {why}", file=sys.stderr)
        if cut := cut_captions(space["how"]):
            print(f"{name}: {cut}", file=sys.stderr)
    references = [space["reference"] for space in result["spaces"].values() if space["reference"]]
    unknown = [about["path"] for about in references if about.get("resize") == statistics.UNKNOWN]
    if unknown:
        print(
            f"{unknown[0]} does not say how its pictures were resized and cropped; here they are resized as TensorFlow "
            "1 does it, and another resize moves the FID",
            file=sys.stderr,
        )
    for side in (result["images"], *(about for i, about in enumerate(references) if about not in references[:i])):
        _say_what_was_read(side)


def _say_what_was_read(side: Mapping[str, Any]) -> None:
    """Of one set: what was left out, and of what the first frame stands for all."""
    if "grids_left_out" in side:
        grids = ", ".join(side["grids_left_out"])
        print(f"left out of {side['path']}: {grids}, which shows other pictures together", file=sys.stderr)
    if "unreadable" in side:
        left_out = side["unreadable"]
        print(f"left out of {side['path']}: {left_out['count']}, {'; '.join(left_out['first'])}", file=sys.stderr)
    if "first_of_several_frames" in side:
        files = side["first_of_several_frames"]
        named = ", ".join(files["first"])
        print(f"{side['path']}: of {files['count']} files the first frame alone was read: {named}", file=sys.stderr)
