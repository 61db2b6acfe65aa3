"""What is measured of a trained model, on every data set alike."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from scipy.spatial.distance import cdist

from contextdiff_jax import losses
from contextdiff_jax.evaluate.bpd import BitsPerDim, bits_per_dim
from contextdiff_jax.models import lipschitz
from contextdiff_jax.process import forward
from contextdiff_jax.types import Array, Batch, Params

NUM_TIMES = 17  # points of the curves over t


class Seeded:
    """A task whose one compiled step serves every seed: the batch's field `run` goes into all randomness."""

    def __init__(self, task: Any):
        self._task = task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def draw(self, batch: Batch, key: Array) -> Batch:
        """As the task's."""
        return self._task.draw(batch, jax.random.fold_in(key, batch["run"][0]))

    def loss(
        self, params: Params, frozen: Params, batch: Batch, key: Array, **how: Any
    ) -> tuple[Array, dict[str, Array]]:
        """As the task's."""
        return self._task.loss(params, frozen, batch, jax.random.fold_in(key, batch["run"][0]), **how)


def bound(task: Any, params: Params, frozen: Params, batch: Batch, key: Array, num_t: int) -> BitsPerDim:
    """The full bound of Eq. 4; with the same key all variants meet the same times and noise."""
    context = task.encode(params, frozen, batch)
    f, b = task.denoiser(params, context), task.shift(params, frozen, context)
    x0 = task.parts.space.encode(frozen["space"], batch)
    process = dict(s=task.schedule_of(params), variance=task.variance_of(params))
    return bits_per_dim(f, b, x0=x0, key=key, num_t=num_t, bins=task.parts.levels, **process)


def terms(task: Any, params: Params, frozen: Params, batch: Batch, key: Array, repeats: int) -> Array:
    """The terms of Eq. 4 in nats, [T+1, N]: prior, reconstruction, then the KL of t = 2..T; means of several draws."""
    s, variance, context = task.schedule_of(params), task.variance_of(params), task.encode(params, frozen, batch)
    f, b = task.denoiser(params, context), task.shift(params, frozen, context)
    x0, T = task.parts.space.encode(frozen["space"], batch), s.num_timesteps

    def kl(inputs: tuple[Array, Array]) -> Array:
        t = jnp.broadcast_to(inputs[0], x0.shape[:1])
        return losses.diffusion_term(s, x0, f, b, t, inputs[1], variance=variance)

    def once(key: Array) -> Array:
        key_1, key_t = jax.random.split(key)
        first = losses.reconstruction_term(s, x0, f, b, key_1, bins=task.parts.levels, variance=variance)
        if T == 1:
            return jnp.stack([losses.prior_term(s, x0, b), first])
        kls = jax.lax.map(kl, (jnp.arange(2, T + 1), jax.random.split(key_t, T - 1)))
        return jnp.concatenate([losses.prior_term(s, x0, b)[None], first[None], kls])

    return jax.lax.map(once, jax.random.split(key, repeats)).mean(0)


def over_time(task: Any, params: Params, frozen: Params, batch: Batch, key: Array, times: Array) -> dict[str, Array]:
    """Curves over `times` [K]: what Eq. 6 minimises, the size of r per element, and its steepest slope at these x0."""
    s, context = task.schedule_of(params), task.encode(params, frozen, batch)
    f, b = task.denoiser(params, context), task.shift(params, frozen, context)
    x0 = task.parts.space.encode(frozen["space"], batch)
    r = (lambda x, t: jnp.zeros_like(x)) if b is None else (lambda x, t: b.relate(b.features(x), t, x.shape[1:]))

    def at(inputs: tuple[Array, Array]) -> dict[str, Array]:
        t = jnp.broadcast_to(inputs[0], x0.shape[:1])
        b_t = jnp.zeros_like(x0) if b is None else b(x0, t)
        x0_hat = f(forward.marginal(s, x0, b_t, t).sample(inputs[1]), t)
        return {"mse": losses.simple(s, x0, x0_hat, t).mean(), "r_rms": jnp.sqrt(jnp.mean(r(x0, t) ** 2))}

    curves = jax.lax.map(at, (times, jax.random.split(key, len(times))))
    if b is None:
        return curves | {"lipschitz": jnp.zeros(len(times))}
    return curves | {"lipschitz": lipschitz.lipschitz_constants(r, x0, times, key, num_iterations=6)}


def times(num_timesteps: int) -> np.ndarray:
    """Where the curves are measured, [NUM_TIMES], evenly over 1..T."""
    return np.linspace(1, num_timesteps, NUM_TIMES).round().astype(np.int32)


def energy_distance(x: np.ndarray, y: np.ndarray) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| of two sets of points [N, D], without bias; 0 for equal distributions."""
    within = lambda z: cdist(z, z).sum() / (len(z) * (len(z) - 1))
    return float(2 * cdist(x, y).mean() - within(x) - within(y))


def frechet(x: np.ndarray, y: np.ndarray) -> float:
    """|m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)) of two sets of features [N, D]."""
    cov_x, cov_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = np.real(scipy.linalg.sqrtm(cov_x @ cov_y))
    return float(np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(cov_x + cov_y - 2 * root))


def principal_axes(images: np.ndarray, count: int) -> Callable[[np.ndarray], np.ndarray]:
    """A map of images [N, ...] onto the first principal axes of the given ones, [N, count]."""
    flat = images.reshape(len(images), -1)
    mean = flat.mean(0)
    axes = np.linalg.svd(flat - mean, full_matrices=False)[2][:count]
    return lambda x: (x.reshape(len(x), -1) - mean) @ axes.T


def record(figure: BitsPerDim, curves: dict[str, Array], scale: float = 1.0) -> dict[str, Any]:
    """What is stored of both; `scale` is the number of units in a bit per dimension."""
    terms = ("mean", "stderr", "prior", "reconstruction", "diffusion")
    stored = {name: rounded(scale * getattr(figure, name)) for name in terms}
    curves = {name: rounded(value) for name, value in curves.items()}
    # Eq. 6 with the constant weight: the mean over t by the trapezoidal rule
    mse = np.asarray(curves["mse"])
    eq6 = float(np.mean((mse[1:] + mse[:-1]) / 2))
    return {"bound": stored | {"per_image": rounded(scale * figure.per_image)}, "eq6": rounded(eq6)} | curves


def rounded(value: Any) -> Any:
    """Five significant digits, as JSON takes them."""
    return np.vectorize(lambda v: float(f"{v:.5g}"))(np.asarray(value, float)).tolist()
