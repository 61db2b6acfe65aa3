"""Noise schedules and the shift's weight k_t.

Time is an integer t in 0..T; index 0 is clean data, so alpha_bar_0 = 1 and k_0 = 0. Tables are computed in
double precision and stored in JAX's default float. Everything else is formed from differences such as
alpha_bar_s - alpha_bar_t and 1 - alpha_bar_t, which float subtraction gets right, so float32 describes one
consistent process.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from contextdiff_jax.errors import UserError
from contextdiff_jax.types import Array

LINEAR_BETAS = (1e-4, 2e-2)  # Ho et al. 2020
SCALED_LINEAR_BETAS = (0.00085, 0.012)  # Rombach et al. 2022; Table 8
LOG_SNR_ENDS = (6.0, -8.0)  # at t = 1 and t = T
MAX_LOG_SNR = 14.0  # beyond, float32 cannot tell 1 - alpha_bar from 0


@flax.struct.dataclass
class Schedule:
    """A variance-preserving process.

    Attributes:
        alpha_bar: signal power left at t, [T+1], from 1 strictly down to 0 or more.
        k: weight of the shift, k_t = sqrt(alpha_bar_t) (1 - sqrt(alpha_bar_t)), [T+1].
    """

    alpha_bar: Array
    k: Array

    @property
    def num_timesteps(self) -> int:
        """T."""
        return self.alpha_bar.shape[0] - 1

    def alpha_t(self, t: Array) -> Array:
        """alpha_bar_t / alpha_bar_{t-1}, shaped like t; 1 at t = 0."""
        t = index(self, t)
        return self.alpha_bar[t] / self.alpha_bar[jnp.maximum(t - 1, 0)]

    def beta_t(self, t: Array) -> Array:
        """1 - alpha_t, shaped like t, without cancellation; 0 at t = 0."""
        t = index(self, t)
        ab_prev = self.alpha_bar[jnp.maximum(t - 1, 0)]
        return (ab_prev - self.alpha_bar[t]) / ab_prev

    def snr(self, t: Array) -> Array:
        """Signal-to-noise ratio alpha_bar_t / (1 - alpha_bar_t), shaped like t; infinite at t = 0."""
        ab_t = self.alpha_bar[index(self, t)]
        return ab_t / (1.0 - ab_t)


def cosine(T: int, offset: float = 0.008, max_beta: float = 0.999) -> Schedule:
    """Nichol and Dhariwal 2021: alpha_bar_t ~ cos^2(pi/2 (t/T + offset) / (1 + offset)), beta_t capped."""
    _check_T(T)
    if offset < 0:
        raise UserError(f"offset={offset} of the cosine schedule is negative; use 0 or more, e.g. 0.008")
    if not 0 < max_beta < 1:
        raise UserError(f"max_beta={max_beta} of the cosine schedule must lie strictly between 0 and 1")
    signal = np.cos((np.arange(T + 1) / T + offset) / (1 + offset) * np.pi / 2) ** 2
    return _from_betas(np.minimum(1 - signal[1:] / signal[:-1], max_beta))


def linear(T: int, beta_start: float = LINEAR_BETAS[0], beta_end: float = LINEAR_BETAS[1]) -> Schedule:
    """beta_t linear in t."""
    _check_betas(T, beta_start, beta_end)
    return _from_betas(np.linspace(beta_start, beta_end, T))


def scaled_linear(
    T: int, beta_start: float = SCALED_LINEAR_BETAS[0], beta_end: float = SCALED_LINEAR_BETAS[1]
) -> Schedule:
    """sqrt(beta_t) linear in t: what the latent-diffusion codebase calls "linear"."""
    _check_betas(T, beta_start, beta_end)
    return _from_betas(np.linspace(beta_start**0.5, beta_end**0.5, T) ** 2)


def log_snr(T: int, first: float = LOG_SNR_ENDS[0], last: float = LOG_SNR_ENDS[1]) -> Schedule:
    """log(alpha_bar_t / (1 - alpha_bar_t)) linear in t, from `first` at t = 1 down to `last` at t = T, which a single
    step has.

    Its ends do not move with T: with few steps the first one still sees what little noise the data ask for.
    """
    _check_T(T)
    if not MAX_LOG_SNR >= first > last >= -MAX_LOG_SNR:
        raise UserError(f"log_snr=({first}, {last}): the ends must fall, within {MAX_LOG_SNR:g} and {-MAX_LOG_SNR:g}")
    signal = 1.0 / (1.0 + np.exp(-np.linspace(first if T > 1 else last, last, T)))
    return _from_alpha_bar(np.concatenate([[1.0], signal]))


def from_betas(betas: np.ndarray) -> Schedule:
    """The schedule of beta_1..beta_T, [T], each strictly between 0 and 1."""
    try:
        betas = np.asarray(betas, np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"betas are no row of numbers ({error}); give numbers strictly between 0 and 1") from error
    if betas.ndim != 1 or not betas.size or not np.all((betas > 0) & (betas < 1)):
        raise UserError(f"betas of shape {betas.shape} must be one row of numbers strictly between 0 and 1")
    return _from_betas(betas)


def zero_terminal_snr(s: Schedule, terminal: float = 0.0) -> Schedule:
    """Lin et al. 2024, Algorithm 1: the same schedule with alpha_bar_T = 0 exactly and alpha_bar_1 kept.

    `terminal` is written over that alpha_bar_T = 0 afterwards, for peers that store a tiny number there.
    """
    root = np.sqrt(np.asarray(s.alpha_bar, np.float64))
    first, last = root[1], root[-1]
    if s.num_timesteps > 1:
        root[1:] = (root[1:] - last) * (first / (first - last))
    root[-1] = terminal**0.5
    return _from_alpha_bar(root**2)


def from_config(config: ConfigDict) -> Schedule:
    """The schedule of a config's `process` section.

    Args:
        config: schedule (cosine, linear, scaled_linear, log_snr), num_timesteps, beta_start, beta_end, log_snr,
            zero_terminal_snr. Of a learned schedule this is the start, which `init` names.
    """
    name = config.init if config.schedule == "learned" else config.schedule
    builders = {
        "cosine": lambda: cosine(config.num_timesteps),
        "linear": lambda: linear(config.num_timesteps, config.beta_start, config.beta_end),
        "scaled_linear": lambda: scaled_linear(config.num_timesteps, config.beta_start, config.beta_end),
        "log_snr": lambda: log_snr(config.num_timesteps, *config.log_snr),
    }
    if name not in builders:
        raise UserError(f"schedule {name!r} is unknown; accepted: {', '.join(builders)}")
    s = builders[name]()
    return zero_terminal_snr(s) if config.zero_terminal_snr else s


def index(s: Schedule, t: Array, lowest: int = 0) -> Array:
    """t as an integer array; where its value is known already (not traced), it must lie in lowest..T.

    Raises:
        UserError: t is not an integer, or out of range.
    """
    if not jnp.issubdtype(jnp.result_type(t), jnp.integer):
        raise UserError(
            f"timestep of type {jnp.result_type(t)}; pass integers, {lowest} to {s.num_timesteps}"
        )
    if isinstance(t, jax.core.Tracer):
        return t
    t = np.asarray(t)  # stays known inside jit, for further checks
    if t.size and not (lowest <= t.min() and t.max() <= s.num_timesteps):
        found = t.min() if t.min() < lowest else t.max()
        raise UserError(f"timestep {found} is out of range; accepted: {lowest} to {s.num_timesteps}")
    return t


def gather(values: Array, t: Array, like: Array) -> Array:
    """values[t] with axes added so that it broadcasts against `like`.

    Args:
        values: a table over time, [T+1], or over time and channels, [T+1, C].
        t: integer [B] or scalar.
        like: array of any rank whose first axis is the batch, and with channels the last one they.

    Returns:
        [B, 1, ..., 1], or [] for a scalar t; with channels [B, 1, ..., C] or [C].
    """
    shape, batch = jnp.shape(t), jnp.shape(like)[:1]
    if len(shape) > 1 or (shape and not batch) or (shape and 1 not in (*shape, *batch) and shape != batch):
        raise UserError(
            f"timestep of shape {shape} does not match data of shape {jnp.shape(like)}; use [B] or []"
        )
    channels = jnp.shape(values)[1:]
    ones = (1,) * (jnp.ndim(like) - 1 - len(channels)) if shape else ()
    return values[t].reshape(shape + ones + channels)


def _check_T(T: int) -> None:
    if isinstance(T, bool) or not isinstance(T, int | np.integer) or T < 1:
        raise UserError(f"number of timesteps T={T!r} must be an integer of 1 or more, e.g. 1000")


def _check_betas(T: int, beta_start: float, beta_end: float) -> None:
    _check_T(T)
    if not 0 < beta_start <= beta_end < 1:
        raise UserError(f"beta_start={beta_start}, beta_end={beta_end}: need 0 < beta_start <= beta_end < 1")


def _from_betas(beta: np.ndarray) -> Schedule:
    return _from_alpha_bar(np.concatenate([[1.0], np.cumprod(1.0 - beta)]))


def _from_alpha_bar(alpha_bar: np.ndarray) -> Schedule:
    """Casts to the default float and refuses a table that this precision cannot tell apart."""
    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    stored = alpha_bar.astype(dtype)
    stored[stored < np.finfo(dtype).tiny] = 0.0  # XLA flushes subnormal numbers
    if not np.all(np.diff(stored) < 0):
        t = 1 + int(np.argmax(np.diff(stored) >= 0))
        raise UserError(
            f"alpha_bar stops falling at t={t} in {dtype.name}; change T={len(stored) - 1} or the betas"
        )
    k = np.sqrt(alpha_bar) * (1.0 - np.sqrt(alpha_bar))
    return Schedule(alpha_bar=jnp.asarray(stored), k=jnp.asarray(k.astype(dtype)))
