"""Two-dimensional data with a known likelihood: the Gaussian of Appendix A.4 and mixtures under classes.

Process, objectives, training step, samplers and bound are the library's; only data and networks are made here.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from ml_collections import ConfigDict

from configs import cifar10_nll
from contextdiff_jax.conditions import ClassCondition
from contextdiff_jax.evaluate.bpd import bits_per_dim
from contextdiff_jax.layers import zeros
from contextdiff_jax.models.adapter import bounded
from contextdiff_jax.models.backbones import PixelBackbone
from contextdiff_jax.models.blocks import TimeEmbedding
from contextdiff_jax.process import schedule
from contextdiff_jax.samplers import sampling
from contextdiff_jax.tasks.diffusion import DiffusionTask
from contextdiff_jax.tasks.parts import Parts
from contextdiff_jax.tasks.readers import process_of
from contextdiff_jax.training.optimizer import make_optimizer
from contextdiff_jax.training.state import stream
from contextdiff_jax.training.step import Guard, make_step
from contextdiff_jax.types import Array, Batch, Context, Params, TrainState
from docs.study import measure
from docs.study.variants import Variant

DIM = 2
NATS = DIM * float(np.log(2.0))  # nats in a bit per dimension


@dataclass(frozen=True)
class Mixture:
    """Equally likely classes, each of equally likely round Gaussians.

    Attributes:
        means: [classes, components, 2].
        std: of every component.
    """

    means: np.ndarray
    std: float

    def sample(self, key: Array, label: Array) -> Array:
        """Points [N, 2] of the classes [N]."""
        key_component, key_noise = jax.random.split(key)
        component = jax.random.randint(key_component, label.shape, 0, self.means.shape[1])
        noise = jax.random.normal(key_noise, (len(label), DIM))
        return jnp.asarray(self.means, jnp.float32)[label, component] + self.std * noise

    def negative_log_density(self, x: Array, label: Array) -> Array:
        """-log p(x | label) in nats, [N]."""
        squares = jnp.sum((x[:, None] - jnp.asarray(self.means, jnp.float32)[label]) ** 2, axis=-1) / self.std**2
        log_norm = DIM * np.log(self.std * np.sqrt(2 * np.pi)) + np.log(self.means.shape[1])
        return log_norm - logsumexp(-0.5 * squares, axis=-1)

    def denoise(self, s: schedule.Schedule, xt: Array, t: Array, label: Array) -> Array:
        """E[x0 | x_t, label], the best denoiser of the process without a shift, [N, 2]."""
        ab_t = s.alpha_bar[t].reshape(-1, 1, 1)
        means, var = jnp.asarray(self.means, jnp.float32)[label], self.std**2
        spread = ab_t * var + 1.0 - ab_t  # of x_t around each component
        residual = xt[:, None] - jnp.sqrt(ab_t) * means
        share = jax.nn.softmax(-0.5 * jnp.sum(residual**2, axis=-1, keepdims=True) / spread, axis=1)
        return jnp.sum(share * (means + jnp.sqrt(ab_t) * var / spread * residual), axis=1)


def _ring() -> np.ndarray:
    """Four classes of two components that lie opposite one another, on a circle of radius 0.75."""
    angle = np.pi * (np.arange(4)[:, None] / 4 + np.arange(2))
    return 0.75 * np.stack([np.cos(angle), np.sin(angle)], axis=-1)


DATA = {
    "gaussian": Mixture(np.array([[[0.3, 0.3]]]), 0.5),  # Appendix A.4
    "mixture": Mixture(_ring(), 0.08),
}


class Mlp(nn.Module):
    """Three hidden layers modulated by time and class; the output starts at zero, as in the library's networks."""

    width: int
    num_timesteps: int
    heads: int = 1

    @nn.compact
    def __call__(self, x: Array, t: Array, context: Context, train: bool = False) -> Array:
        """x [B, 2], t int32 [B] -> [B, 2], or [B, 4] with two heads."""
        emb = self.code(t, context)
        h = x
        for i in range(3):
            scale, shift = jnp.split(nn.Dense(2 * self.width, name=f"film_{i}")(emb), 2, axis=-1)
            h = nn.silu(nn.Dense(self.width, name=f"dense_{i}")(h) * (1 + scale) + shift)
        return nn.Dense(self.heads * DIM, kernel_init=zeros, name="out")(h)

    def code(self, t: Array, context: Context) -> Array:
        """What the layers know of time and class, [B, width]."""
        emb = TimeEmbedding(self.width, self.num_timesteps, jnp.float32, name="time")(t)
        return nn.silu(emb + nn.Dense(self.width, name="class")(context.pooled))


class SketchMlp(Mlp):
    """The network of a first sketch of the study: time, also one-hot, and class go through one layer."""

    def code(self, t: Array, context: Context) -> Array:
        """What the layers know of time and class, [B, width]."""
        angles = 50.0 * t[:, None] / self.num_timesteps * jnp.exp(-0.5 * jnp.arange(16))
        times = [jnp.sin(angles), jnp.cos(angles), jax.nn.one_hot(t, self.num_timesteps + 1)]
        return nn.silu(nn.Dense(self.width, name="code")(jnp.concatenate([*times, context.pooled], axis=-1)))


@dataclass(frozen=True)
class Size:
    """How much is trained and measured."""

    num_steps: int = 3000
    batch_size: int = 128
    width: int = 64  # of the denoiser
    adapter_width: int = 64
    num_test: int = 256
    num_t: int = 0  # times drawn for the bound; 0 sums over all
    num_samples: int = 500  # per class
    sampling_steps: int = 100
    network: type[Mlp] = Mlp


class MlpAdapter(nn.Module):
    """r by the same network, bounded as the library's adapter is."""

    width: int
    num_timesteps: int
    bound: float
    scale: float = 0.0
    network: type[Mlp] = Mlp

    @nn.compact
    def __call__(self, x0: Array, grid: Any, t: Array, context: Context, sample_shape: Any) -> Array:
        """r [B, 2], and h with a scale."""
        out = self.network(self.width, self.num_timesteps, 2 if self.scale else 1)(x0, t, context)
        return bounded(out, self.bound, self.scale)


class Plane:
    """x0 is the point itself, and also what the adapter sees."""

    params: Params = {}
    shape = (DIM,)

    def grid(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return ()

    def draw(self, batch: Batch, key: Array) -> Batch:
        return {}

    def encode(self, params: Params, batch: Batch) -> Array:
        return batch["image"]

    def decode(self, params: Params, x0: Array) -> Array:
        return x0


class ToyTask(DiffusionTask):
    """The library's task, its loss and sampler included, on points instead of images."""

    def __init__(self, config: ConfigDict, data: Mixture, size: Size):
        plane, T = Plane(), config.process.num_timesteps
        names = [str(i) for i in range(len(data.means))]
        self.config, self.data = config, data
        self.schedule, self.sample_shape = schedule.from_config(config.process), plane.shape
        self.parts = Parts(
            dtype=jnp.float32,
            process=process_of(config.process, self.schedule, DIM),
            prediction=config.model.prediction,
            scheduler={},
            condition=ClassCondition(names),
            space=plane,
            levels=None,
            features=plane,
            clip=None,
        )
        self.frozen = self.parts.params
        self.backbone, self.adapter = PixelBackbone(size.network(size.width, T, self._heads)), None
        if config.adapter.enabled:
            bound, scale = config.adapter.bound, config.adapter.scale
            self.adapter = MlpAdapter(size.adapter_width, T, bound, scale, size.network)

    def init(self, key: Array) -> Params:
        """As the library's; networks of this size are made outright."""
        key_denoiser, key_adapter = jax.random.split(key)
        x0, t = jnp.zeros((1, DIM)), jnp.zeros(1, jnp.int32)
        context = self.encode({}, self.frozen, self.parts.condition.empty(1))
        params = {"denoiser": self.backbone.module.init(key_denoiser, x0, t, context)["params"]}
        if self.adapter is not None:
            params["adapter"] = self.adapter.init(key_adapter, x0, (), t, context, DIM)["params"]
        return params | self.process_params()

    def _features(self, frozen: Params, x0: Array) -> Array:
        return x0

    def batch(self, key: Array, size: int) -> Batch:
        """Fresh points of all classes in turn."""
        label = jnp.arange(size, dtype=jnp.int32) % len(self.data.means)
        return {"image": self.data.sample(key, label), "label": label}


def config_of(size: Size) -> ConfigDict:
    """The library's likelihood config, its optimizer included, at this study's size."""
    config = cifar10_nll.get_config("digits")
    config.data.batch_size = size.batch_size
    config.train.num_steps = size.num_steps
    config.sample.update(sampler="ddpm", num_steps=size.sampling_steps, threshold="none")
    return config


def train(task: ToyTask, seeds: Array) -> tuple[Params, Array]:
    """Averaged parameters of all seeds at once, stacked, and the training losses [seeds, steps]."""
    config = task.config
    size, steps = config.data.batch_size, config.train.num_steps
    optimizer = make_optimizer(config, jax.eval_shape(task.init, jax.random.key(0)))
    step = make_step(measure.Seeded(task), optimizer, None)

    def one(seed: Array) -> tuple[Params, Array]:
        params, key = task.init(stream(seed, "init")), stream(seed, "data")
        state = TrainState(jnp.zeros((), jnp.int32), params, params, optimizer.init(params))

        def body(carry, i):
            batch = task.batch(jax.random.fold_in(key, i), size) | {"run": jnp.full(size, seed, jnp.int32)}
            state, guard, metrics = step(*carry, task.frozen, batch)
            return (state, guard), metrics["loss"]

        (state, _), losses = jax.lax.scan(body, (state, Guard.clear(size, config.seed)), jnp.arange(steps))
        return state.ema, losses

    return jax.jit(jax.vmap(one))(seeds)


def run(name: str, variant: Variant, seeds: list[int], size: Size) -> Iterator[tuple[int, dict[str, Any]]]:
    """Trains and measures one variant under several seeds at once."""
    task = ToyTask(variant.apply(config_of(size)), DATA[name], size)
    start = time.perf_counter()
    params, losses = jax.block_until_ready(train(task, jnp.asarray(seeds, jnp.int32)))
    seconds = (time.perf_counter() - start) / len(seeds)
    test = task.batch(stream(0, "test"), size.num_test)
    times = jnp.asarray(measure.times(task.schedule.num_timesteps))
    key = stream(0, "measure")
    figure = jax.jit(lambda p: measure.bound(task, p, task.frozen, test, key, size.num_t or None))
    curves = jax.jit(lambda p: measure.over_time(task, p, task.frozen, test, key, times))
    drawn = jax.jit(partial(draw, task, sample=task.config.sample, size=size))
    for i, seed in enumerate(seeds):
        of_seed = jax.tree.map(lambda v, i=i: v[i], params)
        points = np.asarray(drawn(of_seed))
        yield (
            seed,
            measure.record(figure(of_seed), curves(of_seed), NATS)
            | {
                "quality": {"energy": energy(task.data, points)},
                "points": points[:, :80].round(3).tolist(),
                "last_loss": float(losses[i, -100:].mean()),
                "seconds": round(seconds, 1),
            },
        )


def draw(task: ToyTask, params: Params, *, sample: ConfigDict, size: Size) -> Array:
    """Samples [classes, N, 2] under a config's section `sample`."""
    label = jnp.repeat(jnp.arange(len(task.data.means), dtype=jnp.int32), size.num_samples)
    keys = jax.random.split(stream(0, "sample"), len(label))
    plan, numbers = sampling.Plan.of(task, sample), sampling.Numbers.of(sample)
    context = task.encode(params, task.frozen, {"label": label})
    points = sampling.sample(task, params, task.frozen, context, keys, numbers, plan=plan)
    return points.reshape(-1, size.num_samples, DIM)


def energy(data: Mixture, points: np.ndarray) -> float | None:
    """Energy distance to held-out points, the mean of the classes; None where sampling diverged."""
    if not np.isfinite(points).all():
        return None
    real = held_out(data, points.shape[1], "held out")
    return float(np.mean([measure.energy_distance(x, y) for x, y in zip(points, real, strict=True)]))


def held_out(data: Mixture, count: int, name: str) -> np.ndarray:
    label = jnp.repeat(jnp.arange(len(data.means)), count)
    return np.asarray(data.sample(stream(0, name), label)).reshape(-1, count, DIM)


def reference(name: str, size: Size) -> dict[str, Any]:
    """The exact likelihood of the test points, the bound of the best plain denoiser, and how real points score."""
    data = DATA[name]
    task = ToyTask(config_of(size), data, size)
    test = task.batch(stream(0, "test"), size.num_test)
    exact = data.negative_log_density(test["image"], test["label"])
    f = lambda xt, t: data.denoise(task.schedule, xt, t, test["label"])
    ideal = lambda key, repeats: bits_per_dim(
        f, None, task.schedule, test["image"], key, num_t=size.num_t or None, bins=None, repeats=repeats
    )
    often = ideal(stream(0, "ideal"), 64)
    others = [energy(data, held_out(data, size.num_samples, f"floor {i}")) for i in range(5)]
    times = measure.times(task.schedule.num_timesteps)
    return {
        "exact": measure.rounded(exact),
        # Under the noise that all variants meet, and its distance from the exact value without noise
        "ideal": measure.rounded(NATS * ideal(stream(0, "measure"), 1).per_image),
        "ideal_above_exact": float(NATS * often.mean - exact.mean()),
        "ideal_above_exact_stderr": float(NATS * often.monte_carlo),
        "floor": {"energy": float(np.mean(others)), "energy_std": float(np.std(others, ddof=1))},
        "points": held_out(data, 80, "held out").round(3).tolist(),
        "times": times.tolist(),
        "k": np.asarray(task.schedule.k)[times].tolist(),
        "unit": "nats",
        "size": {name: value for name, value in vars(size).items() if name != "network"},
    }


def quick(size: Size) -> Size:
    """The same in a second or two, for tests."""
    networks = dict(width=16, adapter_width=16)
    measured = dict(num_test=8, num_t=4, num_samples=40, sampling_steps=4)
    return replace(size, num_steps=5, batch_size=16, **networks, **measured)
