"""Two sets of pictures measured against each other, in one pass over each."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from contextdiff_jax.data.listing import listed
from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate import statistics
from contextdiff_jax.evaluate.feature_spaces import FeatureSpace
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
    distinct,
)
from contextdiff_jax.evaluate.metrics.base import Records, Rows, check, indices
from contextdiff_jax.evaluate.metrics.distributed import joined
from contextdiff_jax.evaluate.npz_pictures import has_pictures
from contextdiff_jax.evaluate.picture_sets import Batch, PictureSet
from contextdiff_jax.evaluate.unfinished import Journal, not_seen
from contextdiff_jax.training.distributed import is_primary, together

BATCH = 128


@dataclasses.dataclass
class Reference:
    """What is kept of the reference in one space.

    Attributes:
        moments: "pooled", and "spatial" where the space has them.
        features: float64 [M, D]; None of a file of statistics, which has moments alone.
        about: of the pictures.
    """

    moments: dict[str, Moments]
    features: np.ndarray | None
    about: dict[str, Any]

    def __post_init__(self):
        if self.features is not None:  # in float64 once, for all metrics of all sets of pictures
            self.features = check(self.features, "features of the reference")


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


def metrics_of(
    space: FeatureSpace, reference: Reference | None, captions: bool, total: int, prefix: str | None = None
) -> dict[str, Metric]:
    """The metrics that a space and a reference allow, by name; those that compare features share them.

    Args:
        space: of the features.
        reference: None leaves all comparisons out.
        captions: whether the pictures have any.
        total: how many pictures there are to be.
        prefix: of captions; None takes that of the space.
    """
    fid = space.described.is_fid
    kernel = "kid" if fid else "kernel_distance"
    found: dict[str, Metric] = {}
    if reference is not None:
        name, instead = "fid" if fid else "frechet_distance", kernel if reference.features is not None else ""
        found[name] = Frechet(space.pooled, reference.moments["pooled"], name=name, instead=instead)
        if fid and "spatial" in reference.moments:
            found["sfid"] = Frechet(space.spatial, reference.moments["spatial"], name="sfid", instead=instead)
        if reference.features is not None:
            features, rows = reference.features, Rows()  # what the pictures say once for all of them
            found[kernel] = Kid(space.pooled, features, rows, name=kernel)
            found["precision_recall"] = PrecisionAndRecall(space.pooled, features, rows)
            if space.captioned is not None:
                found["cmmd"] = Cmmd(space.pooled, features, rows)
    if fid:
        found["inception_score"] = InceptionScores(space.probabilities, total)
    if captions and space.captioned is not None:
        read = space.captioned
        how = {"resize": read.resize, "max_length": read.max_length}
        before = read.prefix if prefix is None else prefix
        found["clip_score"] = ClipScore(space.cropped, read.embed, prefix=before, too_long=read.too_long, seen=how)
    return found


def not_measured(space: FeatureSpace, reference: Reference | None) -> dict[str, str]:
    """Why metrics that the space has are not among `metrics_of`, by name: a reference of statistics lacks them."""
    fid = space.described.is_fid
    missing = {"fid": space.not_fid} if space.not_fid else {}
    if reference is None:
        return missing
    if reference.features is None:
        why = "the reference is a file of statistics, which has no single pictures; give --reference the pictures"
        names = ("kid" if fid else "kernel_distance", "precision_recall", *["cmmd"] * (space.captioned is not None))
        missing |= dict.fromkeys(names, why)
    if fid and "spatial" not in reference.moments:
        missing["sfid"] = "the statistics of the reference have none of its features (mu_s and sigma_s)"
    return missing


def look(space: FeatureSpace, metrics: dict[str, Metric], images: np.ndarray, records: Records) -> None:
    """Gives a batch to the metrics of a space.

    Raises:
        UserError: features that are not finite.
    """
    if metrics.keys() - {"clip_score"}:
        check_finite(space, space.features(images), records)
    if "clip_score" in metrics:
        check_finite(space, {"cropped": space.cropped(images)}, records)
    for metric in distinct(metrics.values()):
        metric.update(images, records)


def measure(
    images: str | Path,
    reference: str | Path,
    spaces: Sequence[FeatureSpace],
    *,
    crop: int | None = None,
    captions: str | Path = "",
    prefix: str | None = None,
    journal: Journal | None = None,
) -> dict[str, Any]:
    """Every metric that the spaces allow, with the whole protocol. Several processes share the work; all call it.

    Args:
        images: folder or npz of pictures.
        reference: the same, or an npz of statistics; "" for figures that need none.
        spaces: feature spaces, one or more.
        crop: as `PictureSet` takes it, for both sides.
        captions: of the pictures, as `PictureSet` takes them.
        prefix: as `metrics_of` takes it.
        journal: of a single process; what it holds of the same measurement is not looked at again.

    Returns:
        {"images", "reference": what was measured; "spaces": {name: {"digest", "resize", "width", "reference": this
        space's, "figures": {metric: result}, "how": {metric: its estimator}, "refused": {metric: why}}}}.

    Raises:
        UserError: bad input of any kind, in one line.
    """
    pictures = PictureSet(images, crop, captions)
    if captions and not any(space.captioned for space in spaces):
        raise UserError("captions are given, but no feature space has a text encoder; add --features=clip:FOLDER")
    check_names(spaces)
    found: Sequence[Reference | None] = [None] * len(spaces)
    if str(reference):
        found = references(reference, spaces, crop, pictures.crop_rule, journal)
    groups = [metrics_of(s, ref, bool(captions), pictures.total, prefix) for s, ref in zip(spaces, found, strict=True)]
    if not any(groups):
        notes = "".join(f"; {space.not_fid}" for space in spaces if space.not_fid)
        raise UserError(f"nothing to measure: --reference is not given, and no --captions for a clip space{notes}")
    metrics = distinct(itertools.chain.from_iterable(group.values() for group in groups))
    parts = {f"{i}": metric.kept for i, metric in enumerate(metrics)}
    with together():
        batches = own_share(passes(pictures, f"images {pictures.path.name}"))
        for batch, records in not_seen(batches, journal, "images", parts):
            for ref in found:
                _check_same_size(pictures.shape, ref)
            for space, group in zip(spaces, groups, strict=True):
                look(space, group, batch, records)
    across_processes(*itertools.chain.from_iterable(group.values() for group in groups))
    result: dict[str, Any] = {"images": pictures.described(), "reference": None, "spaces": {}}
    for space, ref, group in zip(spaces, found, groups, strict=True):
        about = {"reference": ref.about if ref is not None else None} | results(group)
        about["refused"] |= not_measured(space, ref)
        result["spaces"][space.described.name] = space.about() | about
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


def results(metrics: Mapping[str, Metric]) -> dict[str, dict[str, Any]]:
    """{"figures": {metric: result}, "how": {metric: its estimator}, "refused": {metric: why there is no figure}}."""
    figures, how, refused = {}, {}, {}
    for name, metric in metrics.items():
        try:
            figures[name], how[name] = metric.result(), metric.how()
        except UserError as error:
            refused[name] = str(error)
    return {"figures": figures, "how": how, "refused": refused}


def cut_captions(how: Mapping[str, Any]) -> str:
    """What a result says of captions that were too long; "" where none was."""
    read = how.get("clip_score", {})
    if not read.get("captions_cut"):
        return ""
    return f"{read['captions_cut']} captions are longer than its {read['max_length']} tokens, and were cut there"


def _check_same_size(shape: tuple[int, int], reference: Reference | None) -> None:
    """Pictures of two sizes are resized by two factors, and the figure would measure that."""
    other = reference.about.get("size") if reference is not None else None
    if other and tuple(other) != shape:
        raise UserError(
            f"pictures are {shape[1]} x {shape[0]} and the reference's {other[1]} x {other[0]}; "
            f"crop both to one size, e.g. --crop={min(*shape, *other)}"
        )
