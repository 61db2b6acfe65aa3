"""Means of what a judge says of each picture: whether it shows what was asked for, how well a box is kept."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate.metrics.base import Metric, Records, Rows, indices

Judged = Callable[[np.ndarray, Records], Mapping[str, np.ndarray]]  # images, records -> {measure: values [B]}


class Marks(Metric):
    """The mean of each mark with its standard error over pictures; the marks themselves, a few numbers a picture, stay.

    Args:
        judge: gives the marks of a batch; NaN where a picture does not count.
        measures: their names.
    """

    def __init__(self, judge: Judged, measures: Sequence[str]):
        self.judge, self.measures, self.kept = judge, tuple(measures), Rows()

    def update(self, images: np.ndarray, records: Records) -> None:
        """Takes in a batch."""
        found = self.judge(images, records)
        self.kept.add(np.stack([found[measure] for measure in self.measures], axis=1), indices(records, images))

    def values(self) -> dict[str, np.ndarray]:
        """{measure: float32 [N]} in the order of the stream."""
        return dict(zip(self.measures, self.kept.values().T, strict=True)) if self.kept.n else {}

    def result(self) -> dict[str, float | int]:
        """{measure, "measure_stderr", "n"}: of marks that are 0 or 1 the share and its binomial error.

        Raises:
            UserError: no pictures.
        """
        if not self.kept.n:
            raise UserError("marks of 0 pictures; give some")
        figures: dict[str, float | int] = {"n": self.kept.n}
        for measure, column in self.values().items():
            counted = column[~np.isnan(column)].astype(np.float64)
            figures[measure] = float(counted.mean())
            figures[f"{measure}_stderr"] = float(counted.std() / np.sqrt(len(counted)))
        return figures
