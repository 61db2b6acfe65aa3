"""The joint objective of theta and phi: Eq. 4, 5 or 6 at given x0, denoiser and shift, one value per example; and what
is drawn for it."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from ml_collections import ConfigDict

from contextdiff_jax import losses, trees
from contextdiff_jax.conditions.spaces import Latents, Pixels
from contextdiff_jax.errors import UserError
from contextdiff_jax.losses import Variance
from contextdiff_jax.models import lipschitz
from contextdiff_jax.models.adapter import Shift
from contextdiff_jax.process import chart, forward, scaled
from contextdiff_jax.process.schedule import Schedule
from contextdiff_jax.samplers.scheduler_config import PRETRAINED
from contextdiff_jax.tasks import frames
from contextdiff_jax.types import Array, Batch


def check_weighting(config: ConfigDict, scheduler: Mapping[str, Any]) -> None:
    """Refuses a weighting of Eq. 6 that leaves out t = T, where sampling begins.

    Args:
        config: the whole config.
        scheduler: content of the pretrained folder's scheduler_config.json; {} without one.

    Raises:
        UserError: names the key, its value and the remedy.
    """
    process, loss = config.process, config.loss
    of_the_file = process.schedule == PRETRAINED and scheduler.get("rescale_betas_zero_snr")
    if not (process.zero_terminal_snr or of_the_file) or loss.objective != "simple":
        return
    if loss.weighting in losses.WITHOUT_THE_END:
        raise UserError(
            f"config.loss.weighting={loss.weighting!r} under zero terminal SNR (config.process.zero_terminal_snr, or "
            "the pretrained scheduler's rescale_betas_zero_snr) is 0 at T: the network would never be trained where "
            "sampling begins; use 'snr_plus_1', the error of v, or 'constant'"
        )


def check_process(config: ConfigDict, names: Sequence[str]) -> None:
    """Refuses a learned process that nothing trains, and warns of one that examples without their condition train too.

    Args:
        config: the whole config.
        names: of the parameters of the process; none where it is fixed.

    Raises:
        UserError: names the key, its value and the remedy.
    """
    if not names:
        return
    learned = next(key for key in ("schedule", "variance") if config.process[key] == "learned")
    trainable = tuple(config.train.trainable)
    if not any(map(trees.matcher(trainable), names)):
        if not config.model.init_from:
            raise UserError(
                f"config.train.trainable={trainable!r} leaves config.process.{learned}='learned' as it starts; add "
                "'^process/', or name in config.model.init_from a run that has learned it"
            )
    elif config.loss.cond_drop_prob > 0 and config.condition.kind != "none":
        logging.warning(
            "config.loss.cond_drop_prob=%g trains config.process.%s='learned' by examples without their condition too, "
            "of which the bound does not speak; set it to 0, or leave '^process/' out of config.train.trainable and "
            "start from a run that has learned it (config.model.init_from)",
            config.loss.cond_drop_prob,
            learned,
        )


def draw(
    config: ConfigDict,
    num_timesteps: int,
    sample_shape: tuple[int, ...],
    space: Pixels | Latents,
    batch: Batch,
    key: Array,
) -> Batch:
    """The batch with a step's randomness beside it: t int32 [B], eps [B, H, W, C], drop_cond bool [B]; of clips
    eps [B, F, H, W, C]; and what the space draws.

    Times are stratified over the batch (one uniform draw, evenly spaced offsets), which lowers the variance of
    the loss; with `loss.num_times` each example has several, int32 [B, n], see `losses.times`. Drawing for the
    whole batch at once keeps the step independent of how it is split.

    Args:
        config: the whole config.
        num_timesteps: T of the process.
        sample_shape: (H, W, C) of x0.
        space: where x0 lives.
        batch: fields [B, ...], of clips [B, F, ...].
        key: of the step.
    """
    key_t, key_eps, key_drop = jax.random.split(key, 3)
    key_space = jax.random.fold_in(key, 1)
    size = len(jax.tree.leaves(batch)[0])
    u = (jax.random.uniform(key_t) + jnp.arange(size) / size) % 1.0
    t = 1 + jnp.minimum(jnp.floor(u * num_timesteps), num_timesteps - 1).astype(jnp.int32)
    if config.loss.num_times:
        t = losses.times(key_t, num_timesteps, config.loss.num_times, size)
    count = config.data.num_frames
    eps = frames.unfold(jax.random.normal(key_eps, (size * count, *sample_shape)), count)
    drop_cond = jax.random.bernoulli(key_drop, config.loss.cond_drop_prob, (size,))
    of_space = space.draw(frames.fold(batch, count), key_space)
    of_space = {name: frames.unfold(value, count) for name, value in of_space.items()}
    return batch | {"t": t, "eps": eps, "drop_cond": drop_cond} | of_space


def full_bound(
    s: Schedule,
    x0: Array,
    f: chart.Denoiser,
    b: Shift | None,
    t: Array,
    eps: Array,
    key: Array,
    *,
    levels: int,
    variance: Variance,
    track_lipschitz: bool = False,
) -> tuple[Array, dict[str, Array]]:
    """Eq. 4 in bits per dimension, [B], and its terms.

    Args:
        s: the noise schedule.
        x0: data [B, H, W, C].
        f: f(x_t, t) -> x0_hat.
        b: the shift, or None.
        t: int32 [B], or [B, n] for several times an example.
        eps: noise [B, H, W, C] of the secant.
        key: for the bound's own noise.
        levels: how many values a channel takes.
        variance: of the reverse step.
        track_lipschitz: report the secant of the shift at the first t of each example, at 1 where T = 1 leaves none.
    """
    bound = losses.nelbo(s, x0, f, b, t, key, bins=levels, variance=variance)
    bits = lambda nats: nats / (x0[0].size * jnp.log(2.0))
    terms = dict(prior=bound.prior, reconstruction=bound.reconstruction, diffusion=bound.diffusion)
    metrics = {name: bits(nats) for name, nats in terms.items()}
    if b is not None and track_lipschitz:
        firsts = t if t.ndim == 1 else t[:, 0] if t.shape[1] else jnp.ones(len(t), t.dtype)
        metrics["lipschitz_max"] = _secant(s, x0, f, b, firsts, eps)
    return bits(bound.total), metrics


def _secant(s: Schedule, x0: Array, f: chart.Denoiser, b: Shift, t: Array, eps: Array) -> Array:
    """|r(x0) - r(x0_hat)| / |x0 - x0_hat| at one x_t per example, [B]: C_t from below."""
    warp = chart.warp(b, x0, t)
    x0_hat = f(scaled.marginal(s, x0, warp, t).at(eps), t)
    return lipschitz.secant_of_shifts(s, warp.shift, b(x0_hat, t), x0, x0_hat, t)


def denoising(
    config: ConfigDict,
    s: Schedule,
    x0: Array,
    f: chart.Denoiser,
    b: Shift | None,
    t: Array,
    eps: Array,
    *,
    prediction: str,
    track_lipschitz: bool = False,
) -> tuple[Array, dict[str, Array]]:
    """Eq. 6 or Eq. 5 at one x_t per example, [B], and metrics.

    Eq. 5 is the paper's, where p_theta has the variance of Eq. 3; `process.variance` is the bound's and not used here.

    Args:
        config: the section `loss`.
        s, x0, f, b, t, eps, track_lipschitz: as in `full_bound`; t is int32 [B].
        prediction: what the network predicts, by which `weighting="prediction"` chooses.
    """
    weighting = config.weighting if config.weighting != "prediction" else losses.WEIGHTING_OF[prediction]
    both_shifts = config.objective == "posterior" or weighting == "lemma4"
    shifts = lambda x: chart.pair(b, x, t, t - 1)
    if both_shifts:
        b_t, b_prev = shifts(x0)
    else:
        b_t = jnp.zeros_like(x0) if b is None else b(x0, t)
    x0_hat = f(forward.marginal(s, x0, b_t, t).at(eps), t)  # Eq. 1, reparameterised
    rms = lambda h: jnp.sqrt(jnp.mean(h**2, axis=tuple(range(1, h.ndim))))
    metrics = {"x0_rmse": rms(x0_hat - x0), "shift_rms": rms(b_t)}
    if not both_shifts:
        if b is not None and track_lipschitz:
            fixed = jax.lax.stop_gradient(x0_hat)
            metrics["lipschitz_max"] = lipschitz.secant_of_shifts(s, b_t, b(fixed, t), x0, fixed, t)
        return losses.simple(s, x0, x0_hat, t, weighting=weighting, gamma=config.gamma), metrics
    b_t_hat, b_prev_hat = shifts(x0_hat)
    secant = lambda b_x, b_y, at: lipschitz.secant_of_shifts(s, b_x, b_y, x0, x0_hat, at)
    c_t, c_prev = secant(b_t, b_t_hat, t), secant(b_prev, b_prev_hat, t - 1)
    metrics["lipschitz_max"] = jnp.maximum(c_t, c_prev)
    if config.objective == "posterior":
        nats = losses.posterior(s, x0, x0_hat, t, b_t, b_prev, b_t_hat, b_prev_hat)
        return nats / x0[0].size, metrics
    # Lemma 4 with the constants of this very pair x0, x0_hat: never below Eq. 5, and phi feels their growth.
    return losses.simple(s, x0, x0_hat, t, weighting="lemma4", lipschitz=(c_t, c_prev)), metrics
