"""What an evaluation draws: groups of prompts with what is known of each, streamed once with and without the adapter.

Pictures go to the metrics batch by batch and only a few are kept, so that memory does not grow with their number.
"""

import dataclasses
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from contextdiff_jax.evaluate.metrics.base import Metric
from contextdiff_jax.evaluate.metrics.marks import Judged, Marks
from contextdiff_jax.evaluate.unfinished import Journal
from contextdiff_jax.models.backbones import two_headed
from contextdiff_jax.pictures import to_uint8
from contextdiff_jax.pipeline import Pipeline
from contextdiff_jax.progress import Progress

SHOWN = 32  # pictures of each group that are kept for the reports
_WHOLE = ("both", "object")  # the first of these marks is 1 of a picture with all that was asked for
Shown = Callable[[np.ndarray, Sequence[int]], np.ndarray]  # (pictures, places in the group) -> as shown


@dataclasses.dataclass(frozen=True)
class Group:
    """Prompts that are summed up together.

    Attributes:
        name: e.g. "seen combinations".
        asked: what the pipeline draws: prompts, classes or layouts; a number where the model takes none.
        captions: one text for each picture.
        records: what metrics ask of each picture; "index" among it.
    """

    name: str
    asked: list[Any] | int
    captions: list[str]
    records: list[dict[str, Any]]

    @classmethod
    def of(cls, name: str, asked: list[Any] | int, captions: list[str], **fields: Sequence[Any]) -> "Group":
        """Fields become entries of the records, one value for each picture."""
        columns = {"index": range(len(captions)), "caption": captions} | fields
        rows = zip(*columns.values(), strict=True)
        return cls(name, asked, captions, [dict(zip(columns, row, strict=True)) for row in rows])


@dataclasses.dataclass(frozen=True)
class Judging:
    """How the pictures of an evaluation are judged.

    Attributes:
        groups: what is drawn.
        judge: gives the marks of a batch; None where there is no judge.
        measures: of the marks.
        bounds: rows of the table that need no pictures of the model: ceilings, floors, chance.
        counts: what a group has besides pictures, such as objects: {name: how many}.
        shown: pictures as the reports show them.
        asked_for: which held-out records the prompts are of, where they are.
        judged_by: what tells the judge from others; {} without one.
    """

    groups: Sequence[Group]
    judge: Judged | None = None
    measures: Sequence[str] = ()
    bounds: Mapping[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    counts: Callable[[Group], Mapping[str, int]] = lambda group: {}
    shown: Shown = lambda images, places: images
    asked_for: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    judged_by: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Seen:
    """What is left of a group that was drawn under one setting.

    Attributes:
        group, setting: whose pictures these are; the setting is "" where there is only one.
        captions: of the kept pictures.
        places: theirs in the group.
        images: the kept pictures, uint8 [n, H, W, 3].
        marks: {measure: value [N]} of all pictures; {} without a judge.
    """

    group: str
    setting: str
    captions: list[str]
    places: list[int]
    images: np.ndarray
    marks: dict[str, np.ndarray]

    @property
    def name(self) -> str:
        """Of its row in the tables."""
        return f"{self.group}, {self.setting}" if self.setting else self.group

    @property
    def verdicts(self) -> np.ndarray | None:
        """Whether each kept picture shows all that it was asked for, bool [n]; None where no mark says so of each.

        The `object` of a layout is the share of its objects that are found.
        """
        found = next((self.marks[name][self.places] for name in _WHOLE if name in self.marks), None)
        return None if found is None or np.isnan(found).any() else found == 1


def settings_of(pipeline: Pipeline) -> dict[str, dict[str, bool]]:
    """The trained process, whatever the config says of sampling, and the same model with its adapter switched off."""
    if pipeline.task.adapter is None:
        return {"": {}}
    off = {"adapter off": {"adapter": False}}
    if two_headed(pipeline.config) and not pipeline.config.sample.adapter:
        return off  # a second head's steps are not those of the sampler that such a config may name
    return {"adapter on": {"adapter": True}} | off


class Clock:
    """Pictures per second: of the times in which batches were drawn, where the stream tells them; else of all batches
    but the first, which compiles.

    A batch that is filled up takes as long as a full one, so what is counted is what a batch has room for.
    """

    def __init__(self) -> None:
        self._batches: list[tuple[int, float, float]] = []  # room, begin, end
        self._compiled = False

    def timed(self, batches: Iterable[Any]) -> Iterable[Any]:
        """The same batches, each waited for."""
        start = time.perf_counter()
        for drawn in batches:
            images = drawn.whole()
            begin, end = drawn.span or (start, time.perf_counter())
            self._compiled = self._compiled or drawn.span is None
            self._batches.append((len(drawn.images), begin, end))
            yield images
            start = time.perf_counter()

    @property
    def batches(self) -> int:
        """Seen so far."""
        return len(self._batches)

    @property
    def per_second(self) -> float:
        """Batches that were drawn at the same time took it together."""
        count, seconds, last = 0, 0.0, -np.inf
        for room, begin, end in sorted(self._batches[self._compiled :], key=lambda batch: batch[1]):
            count, seconds, last = count + room, seconds + max(0.0, end - max(begin, last)), max(last, end)
        return count / seconds


class Course:
    """How far a group has come under one setting.

    Args:
        group: what is drawn.
        judging: how.

    Attributes:
        done: pictures so far.
        marks: None without a judge.
    """

    def __init__(self, group: Group, judging: Judging):
        count = len(group.records)
        self.group, self._judging, self.done = group, judging, 0
        self._places = np.unique(np.linspace(0, count - 1, min(SHOWN, count)).astype(int))
        self._kept: list[np.ndarray] = []
        self.marks = Marks(judging.judge, judging.measures) if judging.judge else None

    def update(self, images: np.ndarray, metrics: Sequence[Metric], before: int) -> None:
        """Takes in the next batch; `before` pictures of the stream are of other groups."""
        records, last = self.group.records[self.done : self.done + len(images)], self.done + len(images)
        for metric in metrics:
            metric.update(images, [r | {"index": before + r["index"]} for r in records])
        if self.marks is not None:
            self.marks.update(images, records)
        shown = self._places[(self._places >= self.done) & (self._places < last)]
        self._kept.append(to_uint8(images[shown - self.done]))
        self.done = last

    def state(self) -> dict[str, np.ndarray]:
        """Arrays that `load` takes."""
        found = {"done": np.array(self.done)}
        if self.done:
            found["kept"] = np.concatenate(self._kept)
        return found | (self.marks.kept.state() if self.marks is not None else {})

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes the place of what was seen so far."""
        self.done = int(state["done"])
        self._kept = [state["kept"]] if self.done else []
        if self.marks is not None:
            self.marks.kept.load(state)

    def seen(self, setting: str) -> tuple[Seen, dict[str, Any] | None]:
        """What is left of the finished group, and its row of figures; None without a judge."""
        group, judging, marks, places = self.group, self._judging, self.marks, self._places.tolist()
        shown, captions = judging.shown(np.concatenate(self._kept), places), [group.captions[i] for i in places]
        seen = Seen(group.name, setting, captions, places, shown, marks.values() if marks else {})
        row = marks.result() | judging.counts(group) if marks else None
        return seen, row


def draw(
    pipeline: Pipeline,
    judging: Judging,
    setting: str,
    options: dict,
    seed: int,
    metrics: Sequence[Metric],
    journal: Journal,
) -> tuple[list[tuple[Seen, dict[str, Any] | None]], float]:
    """Draws every group under one setting of the adapter, from where the journal says that it was cut off.

    Args:
        pipeline: the model.
        judging: groups and judge.
        setting: its name.
        options: the setting, as the pipeline takes it.
        seed: of the noise; picture i of every group and setting starts from the same.
        metrics: take in all pictures of all groups.
        journal: remembers how far it has come.

    Returns:
        What is left of each group with its row of figures, None without a judge; and pictures per second.
    """
    pipeline.forget_prompts()  # batches that come one after another are timed with their encoding
    courses, clock, before = [Course(group, judging) for group in judging.groups], Clock(), 0
    for i, part in enumerate((*courses, *(metric.kept for metric in metrics))):
        journal.follow(f"{setting}/{i}", part)
    for course in courses:
        group, count = course.group, len(course.group.records)
        how = dict(done=course.done, before="compiling")
        with Progress(f"{group.name} {setting}".strip(), count, "img", **how) as progress:
            drawn = pipeline.stream(group.asked, key=seed, first=course.done, **options)
            for images in clock.timed(progress.each(drawn)):
                course.update(images, metrics, before)
                progress.update(len(images))
                journal.tick()
        before += count
    while clock.batches < 2:  # the first compiles, and of a setting that was finished before there was none
        again = pipeline.stream(judging.groups[0].asked, key=seed, **options)
        deque(clock.timed(itertools.islice(again, 2 - clock.batches)), maxlen=0)
    return [course.seen(setting) for course in courses], clock.per_second
