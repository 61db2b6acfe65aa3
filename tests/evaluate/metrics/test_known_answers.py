"""Metrics on arrays against closed forms, naive sums and torch-fidelity."""

import tracemalloc

import numpy as np
import pytest
import scipy.linalg
import torch
from fidelity_helpers import isc_features_to_metric, kid_features_to_metric, prc_features_to_metric

import contextdiff_jax as cdx
from contextdiff_jax.errors import UserError

metrics = cdx.evaluate.metrics


def sets(n: int = 60, m: int = 75, width: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, width)), 0.4 + 1.3 * rng.normal(size=(m, width))


def test_frechet_of_two_and_two():
    assert metrics.frechet(np.array([[0.0], [2.0]]), np.array([[1.0], [3.0]])) == pytest.approx(1.0, abs=1e-12)


def test_frechet_of_a_rotation():
    cov = np.diag([4.0, 1.0])
    turn = np.array([[1.0, -1.0], [1.0, 1.0]]) / 2**0.5
    zero = np.zeros(2)
    assert metrics.distance(zero, cov, zero, turn @ cov @ turn.T) == pytest.approx(0.9446149, abs=1e-7)
    # The same from pictures: the corners of a cross have exactly this covariance at ddof 1.
    cross = np.array([[6.0, 0], [-6, 0], [0, 3], [0, -3]]) * 6**-0.5
    np.testing.assert_allclose(np.cov(cross.T), cov, atol=1e-12)
    assert metrics.frechet(cross, cross @ turn.T) == pytest.approx(0.9446149, abs=1e-7)


def test_frechet_of_a_shift_in_2048_dimensions():
    x = np.random.default_rng(0).normal(size=(64, 2048))
    with pytest.warns(UserWarning, match="64 pictures in 2048 features"):
        assert metrics.frechet(x, x + 1.0) == pytest.approx(2048.0, rel=1e-9)


@pytest.mark.slow
def test_frechet_of_a_shift_with_full_covariances():
    x = np.concatenate([np.eye(2048), np.zeros((1, 2048))])  # each point on an axis of its own
    assert metrics.frechet(x, x + 1.0) == pytest.approx(2048.0, rel=1e-9)


def test_frechet_is_the_textbook_formula():
    x, y = sets()
    root = scipy.linalg.sqrtm(np.cov(x.T) @ np.cov(y.T)).real
    theirs = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(np.cov(x.T) + np.cov(y.T) - 2 * root)
    assert metrics.frechet(x, y) == pytest.approx(theirs, rel=1e-10)
    assert metrics.frechet(x, x) == pytest.approx(0.0, abs=1e-9)


def test_frechet_warns_of_singular_covariances():
    x, _ = sets(n=5)
    with pytest.warns(UserWarning, match="5 pictures in 8 features .* kid"):
        assert metrics.frechet(x, x + 1.0) == pytest.approx(8.0)
    _, y = sets(m=7)
    with pytest.warns(UserWarning, match="5 pictures"):
        few = metrics.frechet(x, y)
    full = metrics.distance(x.mean(0), np.cov(x.T), y.mean(0), np.cov(y.T))
    assert few == pytest.approx(full, rel=1e-6)


def test_kid_is_torch_fidelitys():
    x, y = sets(50, 50)
    how = dict(kid_subsets=1, kid_subset_size=50, kid_kernel="poly", verbose=False, rng_seed=0)
    how |= dict(kid_kernel_poly_degree=3, kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1)
    theirs = kid_features_to_metric(torch.tensor(x), torch.tensor(y), **how)["kernel_inception_distance_mean"]
    assert metrics.kid(x, y) == pytest.approx(theirs, abs=1e-6)


def test_kid_of_sets_of_two_sizes_by_naive_sums():
    x, y = sets(7, 9, 3)
    kernel = lambda a, b: (a @ b / 3 + 1) ** 3
    own = lambda z: np.mean([kernel(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j])
    theirs = own(x) + own(y) - 2 * np.mean([[kernel(a, b) for b in y] for a in x])
    assert metrics.kid(x, y) == pytest.approx(theirs, abs=1e-12)
    # Left out one by one: the jackknife's definition.
    parts = [
        [metrics.kid(np.delete(x, i, 0), y) for i in range(7)],
        [metrics.kid(x, np.delete(y, i, 0)) for i in range(9)],
    ]
    variance = sum((len(p) - 1) / len(p) * np.sum((p - np.mean(p)) ** 2) for p in map(np.array, parts))
    assert metrics.kid(x, y).stderr == pytest.approx(variance**0.5, rel=1e-9)


def test_kid_is_unbiased_and_its_error_is_the_spread():
    rng = np.random.default_rng(1)
    draws = [metrics.kid(rng.normal(size=(30, 4)), rng.normal(size=(40, 4)) + 0.3) for _ in range(400)]
    # E (x.y / D + 1)^3 over independent draws, by the mean of many: the value that the estimates scatter around.
    big = metrics.kid(rng.normal(size=(2500, 4)), rng.normal(size=(2500, 4)) + 0.3)
    spread = np.std(draws, ddof=1)
    assert abs(np.mean(draws) - big) < 4 * (spread / 20 + big.stderr)
    assert np.mean([draw.stderr for draw in draws]) == pytest.approx(spread, rel=0.2)


def test_kid_of_subsets():
    x, y = sets(200, 200)
    few = metrics.kid(x, y, subsets=50, subset_size=100)
    assert abs(few - metrics.kid(x, y)) < 5 * few.stderr
    assert few == metrics.kid(x, y, subsets=50, subset_size=100)
    with pytest.raises(UserError, match="subset_size=201"):
        metrics.kid(x, y, subsets=2, subset_size=201)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_torch_fidelitys(k):
    x, y = sets(90, 110, 4)
    x[:30] += 4.0  # off the manifold, so that neither share is 0 or 1
    how = dict(prc_neighborhood=k, prc_batch_size=1000, save_cpu_ram=False, verbose=False)
    theirs = prc_features_to_metric(torch.tensor(x), torch.tensor(y), **how)
    ours = metrics.precision_recall(x, y, k=k)
    assert 0.1 < ours.precision < 0.9 and 0.1 < ours.recall < 0.99
    assert ours.precision == pytest.approx(theirs["precision"], abs=1e-6)
    assert ours.recall == pytest.approx(theirs["recall"], abs=1e-6)
    assert ours.precision.stderr == pytest.approx((ours.precision * (1 - ours.precision) / 90) ** 0.5)


def test_precision_and_recall_of_far_away_copies():
    x, _ = sets(20)
    # Around a far centre the rounding of squares exceeds the distances; exact copies still count.
    assert metrics.precision_recall(x + 1e6, x + 1e6) == (1.0, 1.0)
    four = np.repeat(x[:1], 4, axis=0)  # radii of zero
    assert metrics.precision_recall(four, x) == (1.0, pytest.approx(0.05))


def test_inception_score_of_balanced_one_hots():
    for k in (2, 10):
        score = metrics.inception_score(np.tile(np.eye(k), (40, 1)))
        assert score == pytest.approx(k)
        assert score.split_mean == pytest.approx(k)
    assert metrics.inception_score(np.full((30, 5), 0.2)) == pytest.approx(1.0)


def test_inception_score_leaves_the_probabilities_as_they_are():
    p = np.full((30, 2), 0.5001)
    p.flags.writeable = False
    assert float(metrics.inception_score(p)) == pytest.approx(1.0)


def test_inception_score_is_torch_fidelitys():
    logits = 3 * np.random.default_rng(0).normal(size=(404, 7))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    theirs = lambda splits: isc_features_to_metric(torch.tensor(logits), splits, shuffle=False)
    ours = metrics.inception_score(p)
    assert ours == pytest.approx(theirs(1)["inception_score_mean"], abs=1e-6)
    split = theirs(10)
    expected = split["inception_score_mean"], split["inception_score_std"]
    assert (ours.split_mean, ours.split_std) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("count", [12, 404, 409])
def test_the_splits_of_an_inception_score_are_those_of_its_paper(count):
    """Salimans et al.: preds[i * N // splits : (i + 1) * N // splits], also where these are of several sizes."""
    p = np.random.default_rng(0).dirichlet(np.ones(7), count)
    parts = [p[i * count // 10 : (i + 1) * count // 10] for i in range(10)]
    expected = [np.exp(np.mean((part * np.log(part / part.mean(0))).sum(1))) for part in parts]
    score = metrics.inception_score(p)
    assert score.split_mean == pytest.approx(np.mean(expected)) and score.split_std == pytest.approx(np.std(expected))


def test_few_pictures_have_an_inception_score_without_splits():
    score = metrics.inception_score(np.eye(4))
    assert score == pytest.approx(4.0) and score.splits == 0 and "splits" not in repr(score)


def test_cmmd_of_orthogonal_singletons():
    assert metrics.cmmd(np.array([[1.0, 0.0]]), np.array([[0.0, 5.0]])) == pytest.approx(19.90033, abs=1e-5)


def test_cmmd_by_naive_sums():
    x, y = sets(6, 9)
    unit = lambda z: z / np.linalg.norm(z, axis=1, keepdims=True)
    k = lambda a, b: np.mean([[np.exp(-np.sum((p - q) ** 2) / 200) for q in unit(b)] for p in unit(a)])
    assert metrics.cmmd(x, y) == pytest.approx(1000 * (k(x, x) + k(y, y) - 2 * k(x, y)), abs=1e-9)


def test_clip_score_of_known_angles():
    images, texts = np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([[3.0, 4.0], [0.0, -2.0]])
    assert metrics.clip_score(images, texts) == pytest.approx(2.5 * 0.6 / 2)  # the second is cut off at zero
    assert metrics.clip_cosine(images, texts) == pytest.approx((0.6 - 1.0) / 2)
    assert metrics.clip_cosine(images, texts).stderr == pytest.approx(0.8)


def test_accuracy_has_its_binomial_error():
    figure = metrics.accuracy([1, 2, 3, 4], [1, 2, 3, 0])
    assert figure == 0.75 and figure.stderr == pytest.approx((0.75 * 0.25 / 4) ** 0.5)


NAN = np.array([[0.0, 1], [2, 3], [np.nan, 4], [1, 5], [2, 7]])
FINE = np.array([[0.0, 1], [2, 3], [3, 4], [1, 5], [2, 7]])


@pytest.mark.parametrize("metric", ["frechet", "kid", "precision_recall", "cmmd", "clip_score"])
@pytest.mark.parametrize(
    "x, y, words",
    [
        (NAN, FINE, "not finite in 1 of 5 rows, the first is row 2"),
        (FINE, NAN, "not finite"),
        (FINE, FINE[:, :1], "shape|columns"),
        (FINE[:0], FINE, "0 rows"),
        (FINE[0], FINE, "shape"),
    ],
)
def test_bad_features_are_named(metric, x, y, words):
    with pytest.raises(UserError, match=words):
        getattr(metrics, metric)(x, y)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: metrics.frechet(FINE[:1], FINE), "1 rows; give those of 2"),
        (lambda: metrics.precision_recall(FINE[:3], FINE), "3 rows; give those of 4"),
        (lambda: metrics.cmmd(np.zeros((2, 2)), FINE), "zero in row 0"),
        (lambda: metrics.inception_score(FINE), "apply a softmax"),
        (lambda: metrics.clip_score(FINE, FINE[:4]), "one caption per picture"),
        (lambda: metrics.accuracy([1], [1, 2]), "one verdict and one label"),
    ],
)
def test_bad_calls_are_named(call, words):
    with pytest.raises(UserError, match=words):
        call()


def test_blocks_do_not_change_the_figures_and_keep_memory_flat(monkeypatch):
    x, y = sets(90, 110)
    figures = lambda: [metrics.kid(x, y), *metrics.precision_recall(x, y), metrics.cmmd(x, y)]
    whole = figures()
    monkeypatch.setattr("contextdiff_jax.evaluate.metrics.base.BLOCK", 1000)
    assert figures() == pytest.approx(whole, rel=1e-12)
    rng = np.random.default_rng(0)
    peaks = []
    for n in (1000, 4000):
        x, y = rng.normal(size=(2, n, 4))
        monkeypatch.undo()
        monkeypatch.setattr("contextdiff_jax.evaluate.metrics.base.BLOCK", 1 << 16)
        tracemalloc.start()
        figures()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2 * peaks[0]  # sixteen times the pairs
