"""The step against hand-written oracles: AdamW, schedule, averaging, accumulation, randomness, placement."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from contextdiff_jax.training import train
from contextdiff_jax.training.optimizer import learning_rate, make_optimizer
from contextdiff_jax.training.setup import Setup
from contextdiff_jax.training.sharding import make_mesh, tree_shardings
from contextdiff_jax.training.state import stream
from contextdiff_jax.training.step import accumulate
from tests.training.toy_task import ToyTask, toy_config


def run(config, steps: int):
    """State, guard and metrics of the last of a few steps."""
    setup = Setup.of(ToyTask(config))
    state, guard, batches = setup.init_state(), setup.init_guard(), setup.train_iterator()
    history = []
    step = None
    for _ in range(steps):
        batch = setup.put(next(batches))
        step = step or setup.compile(batch)
        state, guard, metrics = step(state, guard, setup.frozen, batch)
        history.append(jax.device_get((state, metrics)))
    return history, guard


def test_optimizer_is_adamw_with_clipping_decay_of_matrices_and_multipliers():
    multipliers = (("adapter", 0.1), (".*", 1.0))
    config = toy_config(**{"optim.lr_multipliers": multipliers, "optim.clip_norm": 0.5, "optim.weight_decay": 0.1})
    params = jax.device_get(ToyTask(config).init(jax.random.key(0)))
    optimizer = make_optimizer(config, params)
    state = optimizer.init(params)
    rng = np.random.default_rng(0)
    p = jax.tree.map(np.float64, params)
    m = v = jax.tree.map(np.zeros_like, p)
    o = config.optim
    for n in range(4):
        grads = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), params)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        scale = min(1.0, 0.5 / np.sqrt(sum(np.sum(np.float64(g) ** 2) for g in jax.tree.leaves(grads))))
        g = jax.tree.map(lambda x: scale * np.float64(x), grads)  # noqa: B023
        m = jax.tree.map(lambda a, b: o.b1 * a + (1 - o.b1) * b, m, g)
        v = jax.tree.map(lambda a, b: o.b2 * a + (1 - o.b2) * b**2, v, g)
        lr = o.lr * min(1.0, (n + 1) / 2) * 0.5 * (1 + np.cos(np.pi * np.clip((n - 2) / 10, 0, 1)))

        def updated(path, a, m_, v_):
            direction = m_ / (1 - o.b1 ** (n + 1)) / (np.sqrt(v_ / (1 - o.b2 ** (n + 1))) + o.eps)  # noqa: B023
            factor = 0.1 if "adapter" in jax.tree_util.keystr(path) else 1.0
            return a - lr * factor * (direction + (0.1 * a if a.ndim > 1 else 0.0))  # noqa: B023

        p = jax.tree_util.tree_map_with_path(updated, p, m, v)
    chex.assert_trees_all_close(jax.device_get(params), jax.tree.map(np.float32, p), rtol=2e-5, atol=1e-6)


def test_muon_steps_along_the_singular_vectors_and_leaves_the_rest_to_adam():
    """Against numpy's decomposition: the same vectors, and all values alike instead of spread."""
    rng = np.random.default_rng(0)
    params = {"body": {"kernel": np.zeros((3, 3, 5, 16), np.float32)}, "out": {"kernel": np.zeros((16, 4), np.float32)}}
    grads = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), params)
    quiet = {"optim.clip_norm": 0.0, "optim.weight_decay": 0.0, "optim.warmup_steps": 0, "optim.schedule": "constant"}
    config = toy_config(**quiet, **{"optim.lr": 0.1, "optim.muon": ("^body/.*kernel$",)})

    def first_step(config):
        optimizer = make_optimizer(config, params)
        return jax.device_get(optimizer.update(grads, optimizer.init(params), params)[0])

    step = first_step(config)
    u, _, vt = np.linalg.svd(np.float64(grads["body"]["kernel"]).reshape(45, 16), full_matrices=False)
    along = u.T @ step["body"]["kernel"].reshape(45, 16) @ vt.T / (-0.1 * 0.2 * np.sqrt(45))
    np.testing.assert_allclose(along - np.diag(np.diag(along)), 0, atol=1e-4)
    assert np.diag(along).min() > 0.6 and np.diag(along).max() < 1.3  # what five Newton-Schulz iterations promise
    config.optim.muon = ()
    chex.assert_trees_all_close(step["out"], first_step(config)["out"], rtol=1e-6)


@pytest.mark.parametrize("schedule, expected", [("constant", [0.25, 0.5, 1, 1, 1]), ("cosine", [0.25, 0.5, 1, 0.5, 0])])
def test_learning_rate(schedule, expected):
    config = toy_config(**{"optim.schedule": schedule, "optim.lr": 1.0, "optim.warmup_steps": 4, "train.num_steps": 12})
    rates = [float(learning_rate(config, step)) for step in (0, 1, 4, 8, 12)]
    np.testing.assert_allclose(rates, expected, atol=1e-6)


@pytest.mark.parametrize("warmup", [True, False])
def test_ema_is_the_recursion_and_has_buffers_of_its_own(warmup):
    config = toy_config(**{"ema.decay": 0.5, "ema.warmup": warmup})
    setup = Setup.of(ToyTask(config))
    first = setup.init_state()
    for a, b in zip(jax.tree.leaves(first.params), jax.tree.leaves(first.ema), strict=True):
        assert a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer()
    ema = jax.device_get(first.params)
    for n, (state, _) in enumerate(run(config, 5)[0]):
        decay = min(0.5, (1 + n) / (10 + n)) if warmup else 0.5
        ema = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, ema, state.params)  # noqa: B023
        chex.assert_trees_all_close(ema, state.ema, rtol=1e-5, atol=1e-7)


def test_accumulation_gives_the_gradient_of_the_big_batch():
    task = ToyTask(toy_config())
    params = task.init(jax.random.key(0))
    batch = task.draw(next(task.train_iterator(0, 1)), jax.random.key(1))
    mesh = make_mesh(task.config.mesh)
    whole = accumulate(task, params, task.frozen, batch, jax.random.key(2), mesh)
    task.config.optim.accum_steps = 4
    parts = jax.jit(lambda p, b: accumulate(task, p, task.frozen, b, jax.random.key(2), mesh))(params, batch)
    no_times = batch | {"t": np.zeros((len(batch["x"]), 0), np.int32)}  # as a process of one step has
    jax.eval_shape(lambda p, b: accumulate(task, p, task.frozen, b, jax.random.key(2), mesh), params, no_times)
    chex.assert_trees_all_close(parts[0], whole[0], rtol=1e-6)
    chex.assert_trees_all_close(parts[2], whole[2], rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(*(jax.tree.map(jnp.mean, metrics) for metrics in (parts[1], whole[1])), rtol=1e-6)


def test_steps_are_deterministic_and_every_step_draws_anew():
    (first, _), (second, _) = run(toy_config(), 3), run(toy_config(), 3)
    chex.assert_trees_all_equal(first, second)
    (other, _) = run(toy_config(seed=1), 1)
    assert other[0][1]["loss"] != first[0][1]["loss"]

    class Still(ToyTask):
        def draw(self, batch, key):
            return batch | {"noise": jax.random.normal(key, batch["x"].shape), "index": batch["index"]}

    setup = Setup.of(Still(toy_config(**{"optim.lr": 0.0})))
    state, guard, batch = setup.init_state(), setup.init_guard(), setup.put(next(setup.train_iterator()))
    step = setup.compile(batch)
    state, guard, one = step(state, guard, setup.frozen, batch)
    state, guard, two = step(state, guard, setup.frozen, batch)
    assert float(one["loss"]) != float(two["loss"]), "the same batch with the same parameters, other noise"


def test_runs_of_other_seeds_are_the_same_program():
    """What is compiled for one of them is found by all the others."""
    setups = [Setup.of(ToyTask(toy_config(seed=seed))) for seed in (0, 7)]
    batch = setups[0].put(next(setups[0].train_iterator()))
    first, other = (setup.lower(batch, setup.frozen_spec).as_text() for setup in setups)
    assert first == other
    roots = [setup.init_guard().root.tolist() for setup in setups]
    assert roots == [jax.random.key_data(stream(seed, "step")).tolist() for seed in (0, 7)]


def test_the_guard_keeps_the_state_of_the_step_before():
    setup = Setup.of(ToyTask(toy_config()))
    state, guard, batches = setup.init_state(), setup.init_guard(), setup.train_iterator()
    batch = next(batches)
    step = setup.compile(setup.put(batch))
    state, guard, _ = step(state, guard, setup.frozen, setup.put(batch))
    good = jax.device_get(state)
    bad = {name: value.copy() for name, value in batch.items()}
    bad["y"][[2, 5]] = np.inf
    state, guard, _ = step(state, guard, setup.frozen, setup.put(bad))
    state, guard, _ = step(state, guard, setup.frozen, setup.put(batch))
    assert int(guard.bad_step) == 2 and np.flatnonzero(guard.bad_rows).tolist() == [2, 5]
    chex.assert_trees_all_equal(jax.device_get(state), good)


def test_sharding_rules():
    """On an abstract mesh of 4 x 2 x 2: no devices are needed to decide who holds what."""
    mesh = jax.sharding.AbstractMesh((4, 2, 2), ("data", "fsdp", "tensor"))
    tree = {
        "a": {"kernel": np.zeros((3, 3, 16, 32)), "bias": np.zeros(32), "odd": np.zeros((3, 5))},
        "b": {"kernel": np.zeros((8, 6))},
        "c": {"kernel": np.zeros((8, 6))},
        "d": np.zeros((8,)),
    }
    rules = [("b/kernel", ("tensor", None)), ["^c", "replicate"], ("^(a|b|c)/", "fsdp")]
    specs = jax.tree.map(lambda s: s.spec, tree_shardings(tree, rules, mesh))
    assert specs["a"] == {"kernel": P(None, None, None, "fsdp"), "bias": P("fsdp"), "odd": P()}
    assert specs["b"]["kernel"] == P("tensor", None)
    assert specs["c"]["kernel"] == specs["d"] == P()


def test_metrics_called_max_are_maxima_over_batch_and_window(tmp_path):
    class Steepest(ToyTask):
        def loss(self, params, frozen, batch, key):
            losses, metrics = super().loss(params, frozen, batch, key)
            rows = jnp.arange(losses.shape[0], dtype=jnp.float32)
            return losses, metrics | {"row_max": rows, "row": rows}

    train(Steepest(toy_config(**{"train.num_steps": 2, "train.log_every": 2})), tmp_path)
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["row_max"] == toy_config().data.batch_size - 1 and line["row"] == line["row_max"] / 2
