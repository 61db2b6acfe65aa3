"""What all metrics share: checked features, a figure with its error, and the streaming form."""

import abc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np

from contextdiff_jax.errors import UserError

Records = Sequence[Mapping[str, Any]]
Features = Callable[[np.ndarray], np.ndarray]  # images [B, H, W, 3] -> [B, D]
BLOCK = 1 << 21  # distances or kernel values computed at a time: memory stays flat in the number of pictures


class Figure(float):
    """A number with its standard error.

    Attributes:
        stderr: standard error, NaN where none can be had.
    """

    stderr: float

    def __new__(cls, value: float, stderr: float = float("nan")) -> Self:
        figure = super().__new__(cls, value)
        figure.stderr = float(stderr)
        return figure

    def __repr__(self) -> str:
        return f"{float(self):.6g} +- {self.stderr:.2g}"

    def __getnewargs__(self) -> tuple[float, float]:
        return float(self), self.stderr


UNNAMED = ("frechet", "kid")  # what results of older versions call a figure, whatever the metric's own name


def shown(metric: str, figures: Mapping[str, Any]) -> dict[str, tuple[float, float | None]]:
    """Of a metric's result the figures themselves, without counts: {name: (value, standard error or None)}."""
    names = [key for key in figures if key not in ("n", "splits") and not key.endswith("_stderr")]
    own = lambda key: metric if key in UNNAMED else key
    return {own(key): (figures[key], figures.get(f"{key}_stderr")) for key in names}


def share(hits: np.ndarray) -> Figure:
    """The mean of booleans [N] with its binomial standard error sqrt(p (1 - p) / N)."""
    p = float(np.mean(hits))
    return Figure(p, (p * (1.0 - p) / len(hits)) ** 0.5)


def mean(values: np.ndarray) -> Figure:
    """The mean of values [N] with its standard error; a single value has none."""
    n = len(values)
    return Figure(np.mean(values), np.std(values, ddof=1) / n**0.5 if n > 1 else float("nan"))


def check(features: np.ndarray, name: str = "features", least: int = 1) -> np.ndarray:
    """Features as float64 [N, D].

    Args:
        features: [N, D] numbers.
        name: what the message calls them.
        least: smallest N that will do.

    Raises:
        UserError: another shape, too few rows, or NaN or infinite values.
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or features.shape[1] < 1:
        raise UserError(f"{name} have shape {features.shape}; give one row per picture, [N, D]")
    if len(features) < least:
        raise UserError(f"{name} hold {len(features)} rows; give those of {least} pictures or more")
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        raise UserError(
            f"{name} are not finite in {len(bad)} of {len(features)} rows, the first is row {bad[0]}; "
            "look at those pictures and leave them out"
        )
    return features


def check_pair(x: np.ndarray, y: np.ndarray, least: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of features, float64 [N, D] and [M, D].

    Raises:
        UserError: one is no set of features, or their widths differ.
    """
    x, y = check(x, "features", least), check(y, "features of the reference", least)
    if x.shape[1] != y.shape[1]:
        raise UserError(
            f"features have {x.shape[1]} columns and those of the reference {y.shape[1]}; take both from one network"
        )
    return x, y


def blocks(n: int, m: int) -> Iterator[slice]:
    """Slices of n rows such that a block against m columns has about `BLOCK` values."""
    rows = max(1, BLOCK // m)
    return (slice(start, start + rows) for start in range(0, n, rows))


class Accumulator(Protocol):
    """What a metric remembers of a stream."""

    def merge(self, other: Self) -> None: ...

    def state(self) -> dict[str, np.ndarray]: ...

    def load(self, state: Mapping[str, np.ndarray]) -> None: ...


class Rows:
    """Every row, in float32, in the order of the records' indices: the same bits for any partition of the stream."""

    def __init__(self) -> None:
        self._rows: list[np.ndarray] = []
        self._indices: list[np.ndarray] = []
        self.n = 0

    def add(self, rows: np.ndarray, indices: np.ndarray) -> None:
        """rows [B, D] finite, indices int [B]."""
        self._rows.append(np.asarray(rows, np.float32))
        self._indices.append(np.asarray(indices, np.int64))
        self.n += len(rows)

    def merge(self, other: "Rows") -> None:
        """Adds what another has seen."""
        self._rows += other._rows
        self._indices += other._indices
        self.n += other.n

    def values(self) -> np.ndarray:
        """float32 [N, D]."""
        if not self.n:
            return np.zeros((0, 1), np.float32)
        order = np.argsort(np.concatenate(self._indices), kind="stable")
        return np.concatenate(self._rows)[order]

    def state(self) -> dict[str, np.ndarray]:
        """Arrays that `load` takes."""
        indices = np.concatenate(self._indices) if self.n else np.zeros(0, np.int64)
        rows = np.concatenate(self._rows) if self.n else np.zeros((0, 1), np.float32)
        return {"rows": rows, "indices": indices}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes the place of what was seen so far."""
        self.n = len(state["rows"])
        self._rows, self._indices = ([state["rows"]], [state["indices"]]) if self.n else ([], [])


class Metric(abc.ABC):
    """A figure over a stream of pictures: `update` with every batch, `merge` the parts, `result` at the end.

    Attributes:
        kept: what is remembered.
    """

    kept: Accumulator

    @abc.abstractmethod
    def update(self, images: np.ndarray, records: Records) -> None:
        """Takes in a batch.

        Args:
            images: [B, H, W, 3], uint8 or float in [-1, 1].
            records: one mapping per picture: its "index" in the stream, and what else the metric asks for.
        """

    def merge(self, other: Self) -> None:
        """Adds what another metric of the same kind has seen of the same stream."""
        self.kept.merge(other.kept)

    @abc.abstractmethod
    def result(self) -> dict[str, float | int]:
        """Names and numbers: the figure, its "*_stderr" where one can be had, and "n" pictures."""

    def how(self) -> dict[str, Any]:
        """The estimator, for whoever wants to repeat the figure: constants and rules by name."""
        return {}


class FeatureMetric(Metric):
    """A metric that compares the features of a stream with those of a reference; keeps the features.

    Args:
        features: the network.
        reference: features of the reference [M, D].
        kept: where the features are kept. Metrics of one space share it; then one of them is updated, see `distinct`.
    """

    def __init__(self, features: Features, reference: np.ndarray, kept: Rows | None = None):
        self.features, self.reference = features, check(reference, "features of the reference")
        self.kept: Rows = Rows() if kept is None else kept

    def update(self, images: np.ndarray, records: Records) -> None:
        """Takes in a batch."""
        self.kept.add(check(self.features(images)), indices(records, images))


def distinct(metrics: Iterable[Metric]) -> list[Metric]:
    """The metrics that are to be updated: one of those that share what is kept, and all others."""
    return list({id(metric.kept): metric for metric in metrics}.values())


def indices(records: Records, images: np.ndarray) -> np.ndarray:
    """The records' places in the stream, int64 [B].

    Raises:
        UserError: not one record per picture, or one without "index".
    """
    if len(records) != len(images):
        raise UserError(f"{len(images)} pictures with {len(records)} records; give one record per picture")
    if missing := [i for i, record in enumerate(records) if "index" not in record]:
        raise UserError(f"record {missing[0]} of the batch has no 'index'; give every record its place in the stream")
    return np.array([record["index"] for record in records], np.int64)


def entries(figures: Mapping[str, float]) -> dict[str, float]:
    """Figures with their errors as "*_stderr" beside them, where they have one."""
    flat: dict[str, float] = {}
    for name, value in figures.items():
        flat[name] = float(value)
        error = getattr(value, "stderr", float("nan"))
        if np.isfinite(error):
            flat[f"{name}_stderr"] = error
    return flat
