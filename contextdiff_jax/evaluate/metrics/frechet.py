"""The Frechet distance between two sets of features (Heusel et al. 2017): FID in the features of FID's own network."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate.metrics.base import Features, Metric, Records, check, check_pair, indices


class Moments:
    """Mean and covariance of a stream in float64, joined pairwise (Chan et al. 1983): memory flat in N.

    Attributes:
        n: rows seen.
        mean: [D], None before the first.
        scatter: sum of (x - mean)(x - mean)^T, [D, D].
    """

    def __init__(self) -> None:
        self.n = 0
        self.mean: np.ndarray | None = None
        self.scatter: np.ndarray | None = None

    @classmethod
    def of(cls, features: np.ndarray, name: str = "features") -> "Moments":
        """The moments of features [N, D].

        Raises:
            UserError: another shape, or values that are not finite.
        """
        moments = cls()
        moments.add(features, name)
        return moments

    @classmethod
    def from_statistics(cls, mean: np.ndarray, covariance: np.ndarray, n: int | None) -> "Moments":
        """Moments [D], [D, D] that were kept; n None where the file does not say, which counts as enough.

        Raises:
            UserError: shapes that do not fit, or values that are not finite.
        """
        moments = cls()
        mean, covariance = check(mean[None], "mean")[0], check(covariance, "covariance")
        if covariance.shape != (len(mean), len(mean)):
            raise UserError(
                f"a mean of {len(mean)} features with a covariance of {covariance.shape}; take both of one set"
            )
        moments.n, moments.mean = n or len(mean) + 2, mean
        moments.scatter = covariance * (moments.n - 1)
        return moments

    def add(self, features: np.ndarray, name: str = "features") -> None:
        """Takes in features [B, D]."""
        x = check(features, name)
        part = Moments()
        part.n, part.mean = len(x), x.mean(axis=0)
        centred = x - part.mean
        part.scatter = centred.T @ centred
        self.merge(part)

    def merge(self, other: "Moments") -> None:
        """Adds what another has seen."""
        if not other.n:
            return
        if not self.n:
            self.n, self.mean, self.scatter = other.n, other.mean.copy(), other.scatter.copy()
            return
        _check_width(self.mean, other.mean)
        n, shift = self.n + other.n, other.mean - self.mean
        self.scatter += other.scatter + np.outer(shift, shift) * (self.n * other.n / n)
        self.mean += shift * (other.n / n)
        self.n = n

    @property
    def covariance(self) -> np.ndarray:
        """[D, D], divided by N - 1.

        Raises:
            UserError: fewer than two rows.
        """
        if self.n < 2:
            raise UserError(f"a covariance of {self.n} pictures; give two or more")
        return self.scatter / (self.n - 1)

    def state(self) -> dict[str, np.ndarray]:
        """Arrays that `load` takes."""
        empty = np.zeros(0)
        seen = self.n > 0
        return {"n": np.array(self.n), "mean": self.mean if seen else empty, "scatter": self.scatter if seen else empty}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes the place of what was seen so far."""
        self.n = int(state["n"])
        self.mean, self.scatter = (state["mean"], state["scatter"]) if self.n else (None, None)


def frechet(x: np.ndarray, y: np.ndarray) -> float:
    """The Frechet distance between the Gaussians fitted to two sets of features; covariances divide by N - 1.

    Args:
        x: features [N, D].
        y: features of the reference [M, D].

    Returns:
        |mean_x - mean_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)). With N or M not above D the covariances are singular
        and the figure far too large: that is a warning here, and refused by `Frechet`.

    Raises:
        UserError: fewer than two rows, widths that differ, NaN.
    """
    x, y = check_pair(x, y, least=2)
    if few := too_few(x.shape[1], len(x), len(y)):
        warnings.warn(few, stacklevel=2)
        return _distance_of_few(x, y)
    a, b = Moments.of(x), Moments.of(y)
    return distance(a.mean, a.covariance, b.mean, b.covariance)


def _distance_of_few(x: np.ndarray, y: np.ndarray) -> float:
    """The same for C = A^T A with a small A = (x - mean) / (N - 1)^(1/2): tr (C_x C_y)^(1/2) is the sum of the singular
    values of A_x A_y^T."""
    a, b = ((z - z.mean(axis=0)) / (len(z) - 1) ** 0.5 for z in (x, y))
    overlap = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    total = np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2) + np.sum(a * a) + np.sum(b * b) - 2.0 * overlap
    return max(float(total), 0.0)


def distance(mean_x: np.ndarray, cov_x: np.ndarray, mean_y: np.ndarray, cov_y: np.ndarray) -> float:
    """The Frechet distance between two Gaussians, in float64.

    tr (C_x C_y)^(1/2) is the trace of the root of the symmetric C_x^(1/2) C_y C_x^(1/2), whose eigenvalues are real and
    not negative; no matrix root of a product that is not symmetric is taken.

    Args:
        mean_x, mean_y: [D].
        cov_x, cov_y: [D, D].
    """
    _check_width(mean_x, mean_y)
    values, vectors = np.linalg.eigh(cov_x)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    product = root @ cov_y @ root
    overlap = np.sqrt(np.maximum(np.linalg.eigvalsh((product + product.T) / 2.0), 0.0)).sum()
    total = np.sum((mean_x - mean_y) ** 2) + np.trace(cov_x) + np.trace(cov_y) - 2.0 * overlap
    return max(float(total), 0.0)  # rounding can leave equal Gaussians a hair below zero


def too_few(width: int, n: int, m: int, instead: str = "kid") -> str:
    """Why the covariances of n and m pictures cannot be trusted: no more than features; "" where they can.

    `instead` names the kernel distance that can be had in its place; "" where none can.
    """
    fewest = min(n, m)
    if fewest > width:
        return ""
    other = f", or take {instead}, which is unbiased at any number" if instead else ""
    return (
        f"a Frechet distance of {fewest} pictures in {width} features rests on singular covariances; "
        f"give more than {width} pictures on both sides{other}"
    )


def _check_width(mean_x: np.ndarray, mean_y: np.ndarray) -> None:
    if np.shape(mean_x) != np.shape(mean_y):
        raise UserError(
            f"features have {np.size(mean_x)} columns and those of the reference {np.size(mean_y)}; "
            "take both from one network"
        )


class Frechet(Metric):
    """The Frechet distance of a stream to reference moments.

    Args:
        features: the network.
        reference: moments of the reference in the same features.
        name: of the figure; "fid" in the features of FID's own network, "sfid" in its spatial ones.
        instead: as `too_few` takes it.
    """

    def __init__(
        self,
        features: Features,
        reference: Moments,
        *,
        name: str = "frechet_distance",
        instead: str = "kernel_distance",
    ):
        self.features, self.reference, self.kept = features, reference, Moments()
        self.name, self.instead = name, instead

    def update(self, images: np.ndarray, records: Records) -> None:
        """Takes in a batch."""
        indices(records, images)
        self.kept.add(self.features(images))

    def result(self) -> dict[str, float | int]:
        """{name, "n"}.

        Raises:
            UserError: no more pictures than features.
        """
        if not self.kept.n:
            raise UserError("a Frechet distance of 0 pictures; give some")
        if few := too_few(len(self.kept.mean), self.kept.n, self.reference.n, self.instead):
            raise UserError(few)
        kept, reference = self.kept, self.reference
        value = distance(kept.mean, kept.covariance, reference.mean, reference.covariance)
        return {self.name: value, "n": kept.n}

    def how(self) -> dict[str, Any]:
        """Covariances and root."""
        return {"covariances": "divided by N - 1", "root": "symmetric, float64"}
