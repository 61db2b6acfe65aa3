"""Metrics of sets of pictures, one file each: functions on arrays of features, and the same over a stream.

    cdx.evaluate.metrics.frechet(x, y)          # features [N, D] and [M, D] of one network; y is the reference
    kid, precision_recall, cmmd, inception_score, clip_score, clip_cosine, accuracy

A Frechet distance is FID, and a kernel distance KID, only in the features of FID's own network.
"""

from contextdiff_jax.evaluate.metrics.accuracy import Accuracy, accuracy
from contextdiff_jax.evaluate.metrics.base import FeatureMetric, Figure, Metric, distinct
from contextdiff_jax.evaluate.metrics.clip_score import ClipScore, clip_cosine, clip_score
from contextdiff_jax.evaluate.metrics.cmmd import Cmmd, cmmd
from contextdiff_jax.evaluate.metrics.distributed import across_processes
from contextdiff_jax.evaluate.metrics.frechet import Frechet, Moments, distance, frechet
from contextdiff_jax.evaluate.metrics.inception_score import InceptionScore, InceptionScores, inception_score
from contextdiff_jax.evaluate.metrics.kid import Kid, kid
from contextdiff_jax.evaluate.metrics.precision_recall import PrecisionAndRecall, PrecisionRecall, precision_recall

__all__ = [
    "Accuracy",
    "ClipScore",
    "Cmmd",
    "FeatureMetric",
    "Figure",
    "Frechet",
    "InceptionScore",
    "InceptionScores",
    "Kid",
    "Metric",
    "Moments",
    "PrecisionAndRecall",
    "PrecisionRecall",
    "accuracy",
    "across_processes",
    "clip_cosine",
    "clip_score",
    "cmmd",
    "distance",
    "distinct",
    "frechet",
    "inception_score",
    "kid",
    "precision_recall",
]
