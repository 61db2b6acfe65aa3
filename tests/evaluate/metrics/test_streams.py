"""The streaming form: any partition, merged in any way, gives the figure of all pictures at once."""

import socket
import subprocess
import sys

import numpy as np
import pytest
from measure_helpers import colours, pictures

from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate import metrics
from contextdiff_jax.evaluate.measure import measure
from contextdiff_jax.evaluate.metrics import base
from contextdiff_jax.evaluate.metrics.distributed import pack, unpack

N, WIDTH = 61, 6


def stream() -> tuple[np.ndarray, list[dict]]:
    """Pictures whose mean colours are their features, in a fixed random order of indices."""
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (N, 2, 1, 3)).astype(np.float32)
    records = [{"index": int(i), "caption": f"picture {i}", "object": i % 3, "background": 0} for i in range(N)]
    order = rng.permutation(N)
    return images[order], [records[i] for i in order]


def flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1)


def probabilities(images: np.ndarray) -> np.ndarray:
    p = np.exp(flat(images))
    return p / p.sum(1, keepdims=True)


def embed(texts: list[str]) -> np.ndarray:
    return np.array([[float(t.split()[-1]) + 1.0] + [1.0] * (WIDTH - 1) for t in texts])


class Judge:
    def predict(self, images):
        return (flat(images)[:, 0] > 0).astype(int), np.zeros(len(images), int)


LONG = "A photo depicts picture 9"  # captions of two digits count as too long
REFERENCE = np.random.default_rng(1).uniform(-0.8, 1, (70, WIDTH))
MAKERS = {
    "frechet": lambda: metrics.Frechet(flat, metrics.Moments.of(REFERENCE)),
    "kid": lambda: metrics.Kid(flat, REFERENCE),
    "kid of subsets": lambda: metrics.Kid(flat, REFERENCE, subsets=3, subset_size=20),
    "precision and recall": lambda: metrics.PrecisionAndRecall(flat, REFERENCE),
    "cmmd": lambda: metrics.Cmmd(flat, REFERENCE),
    "inception score": lambda: metrics.InceptionScores(probabilities, N, splits=3),
    "clip score": lambda: metrics.ClipScore(flat, embed, too_long=lambda t: np.char.str_len(t) > len(LONG)),
    "accuracy": lambda: metrics.Accuracy(Judge()),
}


@pytest.mark.parametrize("name", MAKERS)
def test_any_partition_gives_the_same_figure(name):
    images, records = stream()
    whole = MAKERS[name]()
    whole.update(images, records)
    parts = []
    for cuts in ((0, 1, 30, 30, 61), (0, 7, 61)):
        merged = MAKERS[name]()
        for start, end in zip(cuts, cuts[1:], strict=False):
            part = MAKERS[name]()
            if end > start:  # a process may have had nothing to do
                part.update(images[start:end], records[start:end])
            part.kept = unpack(part.kept, pack(part.kept))  # as it travels between processes
            merged.merge(part)
        parts.append(merged.result())
    result = whole.result()
    assert result["n"] == N and len(result) >= 2
    for part in parts:
        assert part == pytest.approx(result, rel=1e-10)


def test_streams_give_the_figures_of_the_arrays():
    images, records = stream()
    x = flat(images)
    results, metric_how = {}, {}
    for name, make in MAKERS.items():
        metric = make()
        metric.update(images, records)
        metric_how[name] = metric.how()
        results[name] = metric.result()
    how = metric_how["clip score"]
    assert how["captions_cut"] == N - 10 and how["prefix"] == "A photo depicts " and how["weight"] == 2.5
    assert metric_how["kid"]["estimator"].startswith("unbiased U") and metric_how["kid of subsets"]["subsets"] == 3
    assert metric_how["precision and recall"]["k"] == 3 and metric_how["cmmd"]["sigma"] == 10
    assert results["frechet"]["frechet_distance"] == pytest.approx(metrics.frechet(x, REFERENCE))
    kid = metrics.kid(x, REFERENCE)
    found = results["kid"]
    assert (found["kernel_distance"], found["kernel_distance_stderr"]) == pytest.approx((kid, kid.stderr))
    precision, recall = metrics.precision_recall(x, REFERENCE)
    assert (results["precision and recall"]["precision"], results["precision and recall"]["recall"]) == (
        precision,
        recall,
    )
    assert results["cmmd"]["cmmd"] == pytest.approx(metrics.cmmd(x, REFERENCE), rel=1e-6)
    score = metrics.clip_score(x, embed([r["caption"] for r in records]))
    assert (results["clip score"]["clip_score"], results["clip score"]["clip_score_stderr"]) == pytest.approx(
        (score, score.stderr), rel=1e-5
    )
    assert results["inception score"]["inception_score_all"] == pytest.approx(
        metrics.inception_score(probabilities(images))
    )
    asked = np.array([r["object"] for r in records])
    assert results["accuracy"]["object"] == metrics.accuracy((x[:, 0] > 0).astype(int), asked)


def test_metrics_of_one_space_keep_its_features_once():
    images, records = stream()
    rows = base.Rows()
    kid, share = metrics.Kid(flat, REFERENCE, rows), metrics.PrecisionAndRecall(flat, REFERENCE, rows)
    for metric in metrics.distinct([kid, share]):
        metric.update(images, records)
    metrics.across_processes(kid, share)
    assert kid.kept is share.kept and rows.n == N
    assert kid.result()["kernel_distance"] == pytest.approx(metrics.kid(flat(images), REFERENCE))
    assert share.result()["precision"] == metrics.precision_recall(flat(images), REFERENCE).precision


def test_moments_survive_a_large_mean():
    x = np.random.default_rng(0).normal(size=(1000, 3))
    moments = metrics.Moments()
    for part in np.array_split(x + 1e7, 13):
        moments.add(part)
    np.testing.assert_allclose(moments.covariance, np.cov(x.T), atol=1e-6)  # raw sums of squares would keep no digit


def test_what_a_stream_gets_wrong():
    images, records = stream()
    few = metrics.Frechet(flat, metrics.Moments.of(REFERENCE))
    few.update(images[:6], records[:6])
    with pytest.raises(UserError, match="6 pictures in 6 features .* more than 6 pictures .* kernel_distance"):
        few.result()
    with pytest.raises(UserError, match="one record per picture"):
        few.update(images, records[:3])
    with pytest.raises(UserError, match="no 'index'"):
        few.update(images[:1], [{}])
    with pytest.raises(UserError, match="picture 5 has no caption"):
        MAKERS["clip score"]().update(images[:1], [{"index": 5}])
    with pytest.raises(UserError, match="picture 5 has no 'object'"):
        MAKERS["accuracy"]().update(images[:1], [{"index": 5}])
    with pytest.raises(UserError, match="0 pictures"):
        MAKERS["frechet"]().result()


WORKER = """
import sys, jax
sys.path[:0] = {paths!r}
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize({address!r}, 2, int(sys.argv[1]))
import test_streams as t
images, records = t.stream()
mine = slice(0, 20) if sys.argv[1] == "0" else slice(20, None)
for name, make in t.MAKERS.items():
    whole, part = make(), make()
    whole.update(images, records)
    part.update(images[mine], records[mine])
    t.metrics.across_processes(part)
    assert part.result() == t.pytest.approx(whole.result(), rel=1e-10), name
from contextdiff_jax.evaluate import measure as m
m.BATCH = 16
figures = m.measure({folder!r} + "/a.npz", {folder!r} + "/b.npz", [t.colours(is_fid=True)])["spaces"]["colours"]
for name, figure in {expected!r}.items():
    assert figures["figures"][name] == t.pytest.approx(figure, rel=1e-5, abs=1e-9), name
print("same")
"""


def test_two_processes_give_the_same_figure(request, tmp_path):
    np.savez(tmp_path / "a.npz", pictures(40, 0))  # in batches of 16: the processes have 24 and 16 of them
    np.savez(tmp_path / "b.npz", pictures(12, 1))  # and one of them has none of these
    alone = measure(tmp_path / "a.npz", tmp_path / "b.npz", [colours(is_fid=True)])["spaces"]["colours"]["figures"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    here = request.path.parent
    paths = [str(here), str(here.parents[1]), str(request.config.rootpath)]
    program = WORKER.format(paths=paths, address=address, folder=str(tmp_path), expected=alone)
    start = lambda i: subprocess.Popen(
        [sys.executable, "-c", program, str(i)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    workers = [start(i) for i in range(2)]
    for worker in workers:
        out, error = worker.communicate(timeout=900)
        assert worker.returncode == 0 and "same" in out, error[-2000:]
