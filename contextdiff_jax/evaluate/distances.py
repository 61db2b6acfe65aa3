"""How near the pictures of an evaluation come to held-out ones: in the judge's features, and in other spaces."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from contextdiff_jax import data
from contextdiff_jax.data.base import ImageSource
from contextdiff_jax.evaluate.class_judge import as_float
from contextdiff_jax.evaluate.conditions import asks_combinations
from contextdiff_jax.evaluate.feature_spaces import FeatureSpace
from contextdiff_jax.evaluate.fidelity import LEAST, REFERENCE, Fidelity, describe, fidelity, renders
from contextdiff_jax.evaluate.measure import Reference, metrics_of, not_measured, observe_batches, results
from contextdiff_jax.evaluate.metrics import Metric, distinct
from contextdiff_jax.evaluate.picture_sets import Batch
from contextdiff_jax.models.recogniser import Recogniser
from contextdiff_jax.pictures import to_uint8
from contextdiff_jax.progress import Progress
from contextdiff_jax.tasks.records import same_held_out, same_source


def say_what_will_be_refused(spaces: Sequence[FeatureSpace], references: Sequence[Reference], count: int) -> None:
    """Before anything is drawn: Frechet distances of no more pictures than features are refused at the end."""
    for space, reference in zip(spaces, references, strict=True):
        width, held_out = space.described.width, reference.moments["pooled"].n
        if min(count, held_out) <= width:
            print(
                f"a Frechet distance in {space.described.name} will be refused: {count} pictures will be drawn, and "
                f"{held_out} are held out, which must both be more than its {width} features; raise eval.num_samples "
                "and eval.reference, or take its kernel distance"
            )


class Measured:
    """Distances of each setting's pictures to held-out ones: in the judge's features, and in those of the config.

    Args:
        config: data and evaluation.
        judge: None leaves its features out.
        spaces: `eval.features`.
    """

    def __init__(self, config: ConfigDict, judge: Recogniser | None, spaces: Sequence[FeatureSpace]):
        self._judge, self._spaces, self._config = judge, spaces, config
        self._fidelity: dict[str, Metric] = {}
        self._by_space: dict[str, list[dict[str, Metric]]] = {}
        self.references: list[Reference] = []
        self._digest = ""
        if judge is None and not spaces:  # nothing is compared: the pictures need not be there
            return
        self._splits, sources = zip(*self._sources(), strict=True)
        if judge is not None:
            # Half of seen and half of unseen combinations, as the pictures are; as many others are the floor, or as
            # many as the splits have beside the reference.
            left = min(map(len, sources)) - REFERENCE // len(sources)
            count = min(max(LEAST, 2 * config.eval.num_samples), left)
            rendered = renders(sources, REFERENCE, first=count)
            self._features, self._digest = judge.features(rendered), hashlib.sha256(rendered.tobytes()).hexdigest()[:16]
            self._floor = fidelity(renders(sources, count), self._features, judge)
        if spaces:
            held_out = HeldOut(self._splits, sources, config.eval.reference)
            self.references = observe_batches(held_out.batches(), spaces, held_out.described)

    def _sources(self) -> list[tuple[str, ImageSource]]:
        """(split, records) of what pictures are compared with."""
        section = self._config.data
        splits = ("test", "unseen") if asks_combinations(self._config, self._judge) else ()
        return [(split, same_source(section, split)) for split in splits] or [same_held_out(section)]

    @property
    def compared_with(self) -> list[Any]:
        """What tells the held-out pictures, and the networks that look at them, from others."""
        spaces = zip(self._spaces, self.references, strict=True)
        return [self._digest, *([space.about(), reference.about] for space, reference in spaces)]

    def start(self, setting: str, count: int) -> list[Metric]:
        """Fresh metrics for so many pictures of a setting."""
        captions = self._config.condition.kind != "none"  # else a picture's caption is its number
        groups = [metrics_of(s, ref, captions, count) for s, ref in zip(self._spaces, self.references, strict=True)]
        self._by_space[setting] = groups
        found = distinct(metric for group in groups for metric in group.values())
        if self._judge is not None:
            self._fidelity[setting] = Fidelity(self._judge, self._features)
            found.append(self._fidelity[setting])
        return found

    def figures(self) -> dict[str, Any]:
        """Entries of eval.json."""
        found: dict[str, Any] = {}
        if self._judge is not None:
            measured = results(self._fidelity)
            rows = measured["figures"] | {"floor: other real renders": self._floor}
            against = {"against": f"{len(self._features)} of {' and '.join(self._splits)}"}
            found["judge_features"] = {name: row | against for name, row in rows.items()}
            found["judge_features_of"] = describe(self._judge) | {"reference_digest": self._digest}
            if measured["refused"]:
                found["judge_features_refused"] = measured["refused"]
        if self._spaces:
            found["spaces"] = {}
        for i, space in enumerate(self._spaces):
            about = found["spaces"][space.described.name] = space.about() | {"reference": self.references[i].about}
            for setting, groups in self._by_space.items():
                about[setting] = results(groups[i])
                about[setting]["refused"] |= not_measured(space, self.references[i])
        return found


class HeldOut:
    """Pictures spread over the records of each split's source, `count` in all or as many as there are."""

    def __init__(self, splits: Sequence[str], sources: Sequence[ImageSource], count: int):
        self._split = " and ".join(splits)
        each = [min(len(source), max(1, count // len(sources))) for source in sources]
        self._places = [(s, i) for s, n in zip(sources, each, strict=True) for i in data.chosen(len(s), n, 0)]
        self._digest, self._size = hashlib.sha256(), []

    def batches(self, size: int = 128) -> Iterator[Batch]:
        """(images, records)."""
        with Progress("pictures to compare with", len(self._places), "img") as progress:
            for start in range(0, len(self._places), size):
                part = self._places[start : start + size]
                images = [as_float(source[i]["image"], source.levels) for source, i in part]
                self._size = list(images[0].shape[:2])
                self._digest.update(to_uint8(np.stack(images)).tobytes())
                yield np.stack(images), [{"index": start + k} for k in range(len(images))]
                progress.update(len(images))

    def described(self) -> dict[str, Any]:
        """What a result says of them, after a pass."""
        about = {"path": f"pictures of {self._split}", "split": self._split, "n": len(self._places)}
        return about | {"digest": self._digest.hexdigest()[:16], "size": self._size, "crop": "as the data give them"}
