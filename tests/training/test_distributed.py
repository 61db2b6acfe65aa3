"""What several processes agree on, played by threads."""

import threading

import pytest

from contextdiff_jax.errors import UserError
from contextdiff_jax.tasks import identity
from contextdiff_jax.training import checkpoint_format as form
from contextdiff_jax.training import distributed, loop, workdir
from contextdiff_jax.training.checkpoint import Checkpoints
from tests.training.toy_task import ToyTask, toy_config


class _Cluster:
    """Threads that take themselves for processes."""

    def __init__(self, count, monkeypatch):
        self.count, self.texts, self.own = count, [None] * count, threading.local()
        self.barrier = threading.Barrier(count, timeout=30)
        monkeypatch.setattr(distributed.jax, "process_count", lambda: count)
        monkeypatch.setattr(distributed.jax, "process_index", lambda: self.own.index)
        monkeypatch.setattr(distributed, "gather_texts", self.gather)

    def gather(self, text):
        self.texts[self.own.index] = text
        self.barrier.wait()
        found = list(self.texts)
        self.barrier.wait()
        return found

    def run(self, function):
        """What each process returned or raised."""
        results = [None] * self.count

        def one(index):
            self.own.index = index
            try:
                results[index] = function(index)
            except Exception as error:
                results[index] = error

        threads = [threading.Thread(target=one, args=(index,)) for index in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


def test_process_0_goes_first_and_all_agree(monkeypatch):
    order = []
    make = lambda index: order.append(index) or "94 images"
    results = _Cluster(3, monkeypatch).run(lambda i: distributed.the_same(lambda: make(i), str))
    assert results == ["94 images"] * 3 and order[0] == 0 and sorted(order) == [0, 1, 2]


def test_processes_that_see_other_records_stop_with_a_line_that_names_them(monkeypatch):
    results = _Cluster(3, monkeypatch).run(lambda i: distributed.the_same(lambda: f"{94 - (i == 1)} images", str))
    assert len({str(error) for error in results}) == 1 and all(isinstance(error, UserError) for error in results)
    line = str(results[0])
    assert "process 0, 2: 94 images" in line and "process 1: 93 images" in line and "\n" not in line


@pytest.mark.parametrize("bad", [0, 1])
@pytest.mark.parametrize("kind", [UserError, OSError, TypeError])
def test_a_failure_of_one_ends_all(monkeypatch, bad, kind):
    """Whatever it is; the process that failed has its own error, where that is no user's."""

    def make(index):
        if index == bad:
            raise kind("pictures does not exist")
        return "94 images"

    def shared(index):
        with distributed.together():
            make(index)

    words = "pictures does not exist" if kind is UserError else f"{kind.__name__}: pictures does not exist"
    for one in (lambda i: distributed.the_same(lambda: make(i), str), shared):
        results = _Cluster(2, monkeypatch).run(one)
        assert isinstance(results[bad], kind) and "pictures does not exist" in str(results[bad])
        assert isinstance(results[1 - bad], UserError) and f"process {bad}: {words}" in str(results[1 - bad])


def test_frozen_networks_are_compared_across_processes(monkeypatch, tmp_path):
    of = lambda index: {"vae": dict(path=f"host {index}", digest="ab", settings={"scaling_factor": str(index)})}
    monkeypatch.setattr(identity, "_compared", lambda place, index, binding: of(index))
    assert _Cluster(2, monkeypatch).run(lambda i: identity.check(tmp_path, 0)) == [None, None]
    for error in _Cluster(2, monkeypatch).run(lambda i: identity.check(tmp_path, i)):
        assert "process 0: frozen networks vae ab" in str(error) and "process 1: frozen networks vae ab" in str(error)


def test_what_process_0_alone_finds_out_ends_all(monkeypatch, tmp_path):
    with workdir.exclusive(tmp_path):
        results = _Cluster(2, monkeypatch).run(lambda i: loop.train(ToyTask(toy_config()), tmp_path))
    assert all(isinstance(error, UserError) and "is in use by process" in str(error) for error in results)


def test_a_workdir_that_is_another_folder_for_one_process_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(distributed, "_PATIENCE", 0.0)
    places = ["shared", "shared", "own"]
    train = lambda i: loop.train(ToyTask(toy_config()), tmp_path / places[i])
    results = _Cluster(3, monkeypatch).run(train)
    assert all(isinstance(error, UserError) and "is not the folder of that name" in str(error) for error in results)
    assert str(results[0]).startswith(f"process 2: {tmp_path / 'own'}") and "all processes share" in str(results[0])
    assert [path.name for path in tmp_path.rglob("*")] == ["shared", ".lock"]
    assert _Cluster(2, monkeypatch).run(lambda i: distributed.check_shared(tmp_path)) == [None, None]
    assert [path.name for path in tmp_path.iterdir()] == ["shared"]
    for error in _Cluster(2, monkeypatch).run(lambda i: distributed.check_shared(tmp_path / "nowhere")):
        assert isinstance(error, UserError) and "cannot be written (No such file" in str(error)


def test_a_checkpoint_that_one_process_cannot_read_ends_all(monkeypatch, tmp_path):
    cluster, task = _Cluster(2, monkeypatch), ToyTask(toy_config())
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)

    def read(*args):
        if cluster.own.index == 1:
            raise OSError(116, "Stale file handle")
        return {"optimizer": {"step": 4, "opt_state": ()}, "params": {}, "ema": {}}

    monkeypatch.setattr(form, "abstract_items", lambda abstract: {})
    monkeypatch.setattr(form, "read", read)
    for error in cluster.run(lambda i: Checkpoints(tmp_path, task.config)._try(4, None, None, False)):
        assert isinstance(error, UserError) and "cannot be read (OSError: [Errno 116] Stale file handle)" in str(error)


def test_one_process_asks_nobody():
    assert distributed.the_same(lambda: 3, str) == 3 and distributed.gather_texts("é") == ["é"]
