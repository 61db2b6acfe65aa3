"""The Inception score (Salimans et al. 2016): exp of the mean KL of p(y | x) from p(y)."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate.metrics.base import Features, Metric, Records, check, indices

SPLITS = 10


class InceptionScore(float):
    """The score over all pictures, with the other convention beside it.

    Attributes:
        split_mean, split_std: mean and spread (dividing by their number) of the scores of the splits, each with its own
            p(y): what most papers print as "a +- b". The fewer pictures a split has, the lower it is.
        splits: their number; 0, and the mean NaN, where a split would have no picture.
    """

    split_mean: float
    split_std: float
    splits: int

    def __new__(cls, over_all: float, of_splits: Sequence[float]) -> Self:
        score = super().__new__(cls, over_all)
        score.splits = len(of_splits)
        some = of_splits if score.splits else [np.nan]
        score.split_mean, score.split_std = float(np.mean(some)), float(np.std(some))
        return score

    def __repr__(self) -> str:
        of_splits = f" (in {self.splits} splits {self.split_mean:.6g} +- {self.split_std:.2g})"
        return f"{float(self):.6g}" + of_splits * bool(self.splits)


class Entropies:
    """Sums from which the scores of all splits follow: memory flat in N.

    The splits are contiguous slices of the stream, split i from place floor(i N / S) on, as Salimans et al. take them.

    Args:
        total: places in the stream.
        splits: how many slices.

    Attributes:
        n: pictures by split, [S].
        sum_p: [S, K].
        sum_p_log_p: [S].
    """

    def __init__(self, total: int, splits: int = SPLITS):
        if splits < 1:
            raise UserError(f"splits={splits}; give 1 or more (papers take 10)")
        self.total, self.splits = total, splits
        self.n, self.sum_p, self.sum_p_log_p = np.zeros(splits, np.int64), None, np.zeros(splits)

    def add(self, p: np.ndarray, places: np.ndarray) -> None:
        """p [B, K] probabilities of the pictures at these places of the stream, int [B]."""
        p = check(p, "class probabilities")
        if p.min() < 0.0 or np.abs(p.sum(axis=1) - 1.0).max() > 1e-3:
            raise UserError(f"class probabilities sum to {p.sum(axis=1).min():.3g} in a row; apply a softmax to logits")
        p = p / p.sum(axis=1, keepdims=True)
        if self.sum_p is None:
            self.sum_p = np.zeros((self.splits, p.shape[1]))
        split = ((np.asarray(places, np.int64) + 1) * self.splits - 1) // self.total
        np.add.at(self.n, split, 1)
        np.add.at(self.sum_p, split, p)
        np.add.at(self.sum_p_log_p, split, _p_log_p(p).sum(axis=1))

    def merge(self, other: "Entropies") -> None:
        """Adds what another has seen."""
        if other.sum_p is None:
            return
        self.sum_p = other.sum_p.copy() if self.sum_p is None else self.sum_p + other.sum_p
        self.n, self.sum_p_log_p = self.n + other.n, self.sum_p_log_p + other.sum_p_log_p

    def score(self) -> InceptionScore:
        """Both conventions; that of all pictures alone where a split has none.

        Raises:
            UserError: no pictures.
        """
        if not self.n.any():
            raise UserError("an Inception score of 0 pictures; give some")
        splits = zip(self.n, self.sum_p, self.sum_p_log_p, strict=True)
        each = [_score(n, p, e) for n, p, e in splits] if self.n.all() else []
        whole = _score(self.n.sum(), self.sum_p.sum(axis=0), self.sum_p_log_p.sum())
        return InceptionScore(whole, each)

    def state(self) -> dict[str, np.ndarray]:
        """Arrays that `load` takes."""
        sum_p = np.zeros((self.splits, 0)) if self.sum_p is None else self.sum_p
        return {"n": self.n, "sum_p": sum_p, "sum_p_log_p": self.sum_p_log_p}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes the place of what was seen so far."""
        self.n, self.sum_p_log_p = state["n"], state["sum_p_log_p"]
        self.sum_p = state["sum_p"] if state["sum_p"].size else None


def _p_log_p(p: np.ndarray) -> np.ndarray:
    """Elementwise, 0 at 0."""
    return p * np.log(np.where(p > 0.0, p, 1.0))


def _score(n: int, sum_p: np.ndarray, sum_p_log_p: float) -> float:
    """exp(mean_i sum_k p_ik log p_ik - sum_k q_k log q_k) with q the mean of p."""
    return float(np.exp(sum_p_log_p / n - _p_log_p(sum_p / n).sum()))


def inception_score(p: np.ndarray, splits: int = SPLITS) -> InceptionScore:
    """The score of class probabilities [N, K], rows that sum to 1, by both conventions.

    K balanced one-hots score K over all pictures. The splits are contiguous slices; fewer pictures than splits have
    the score over all pictures alone.

    Raises:
        UserError: no pictures, rows that are no probabilities.
    """
    entropies = Entropies(len(p), splits)
    entropies.add(p, np.arange(len(p)))
    return entropies.score()


class InceptionScores(Metric):
    """The Inception score of a stream.

    Args:
        probabilities: the network with its softmax; FID's Inception takes its logits without their bias.
        total, splits: as `Entropies` takes them.
    """

    def __init__(self, probabilities: Features, total: int, splits: int = SPLITS):
        self.features, self.kept = probabilities, Entropies(total, splits)

    def update(self, images: np.ndarray, records: Records) -> None:
        """Takes in a batch."""
        self.kept.add(self.features(images), indices(records, images))

    def result(self) -> dict[str, float | int]:
        """{"inception_score_all", "inception_score_split_mean", "inception_score_split_std", "splits", "n"}; those of
        splits are missing where one has no picture."""
        score = self.kept.score()
        of_splits = {
            "inception_score_split_mean": score.split_mean,
            "inception_score_split_std": score.split_std,
            "splits": score.splits,
        }
        figures = {"inception_score_all": float(score)} | (of_splits if score.splits else {})
        return figures | {"n": int(self.kept.n.sum())}

    def how(self) -> dict[str, Any]:
        """How the splits are drawn."""
        return {"splits": self.kept.splits, "drawn": "contiguous slices of the pictures in their order"}
