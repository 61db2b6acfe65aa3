"""A process with parameters: a schedule that is learned, and a learned variance of the reverse steps.

With few steps the bound depends on where they lie and on how wide each reverse step is, and both can be trained on it
(Kingma et al. 2021; Nichol and Dhariwal 2021). Nothing else may train them: under Eq. 6 the best schedule has no noise.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from contextdiff_jax.errors import UserError
from contextdiff_jax.process.schedule import Schedule
from contextdiff_jax.types import Array, Params

_MAX_GAMMA = 30.0  # keeps alpha_bar_T a normal number
_LEAST_UNITS = 16  # the least beta_t, in units of rounding of 1
_MOST_LEFT = 0.2  # of the signal at T, where the end stays and sampling starts from N(0, I)
_TINY = 1e-30  # keeps a way that has shrunk to nothing divisible
_SLOWER = "let the process learn more slowly (config.optim.lr_multipliers), or set config.process.ends='fixed'"


@dataclass(frozen=True)
class Process:
    """The schedule and the reverse variance of a model, from its parameters or without any.

    gamma_t = log((1 - alpha_bar_t) / alpha_bar_t) rises by softplus(.) > 0 from each t to the next. With free ends
    gamma_1 is a parameter too; with fixed ones only how the way from gamma_1 to gamma_T is divided is learned.

    Attributes:
        start: the schedule, or that at the start of training.
        learned: whether it has parameters.
        fixed_ends: whether gamma_1 and gamma_T stay.
        variance: of p(x_{t-1} | x_t, c): "beta", "posterior" (see `losses.reverse_variance`), or "learned", which
            starts as beta_t and is one factor of it per t.
        channels: with a learned variance one factor per t and channel, of so many; 0: per t.
    """

    start: Schedule
    learned: bool = False
    fixed_ends: bool = False
    variance: str = "beta"
    channels: int = 0

    def __post_init__(self):
        T = self.start.num_timesteps
        if self.learned and float(self.start.alpha_bar[-1]) == 0.0:
            raise UserError("a learned schedule cannot start with alpha_bar_T = 0; set zero_terminal_snr to False")
        if self.learned and self.fixed_ends and T < 3:
            raise UserError(f"a schedule of T={T} steps with fixed ends has nothing to learn; use free ends, or T >= 3")

    def init(self) -> Params:
        """Its parameters at the start, {} where all is fixed: gamma_1 [] with free ends, steps [T-1], log_ratio [T] or
        [T, C]."""
        params, dtype, T = {}, self.start.alpha_bar.dtype, self.start.num_timesteps
        if self.learned:
            gamma = _gamma(self.start)
            if not self.fixed_ends:
                params["gamma_1"] = jnp.asarray(gamma[0], dtype)
            if T > 1:
                # softplus(step) = the rise of gamma
                params["steps"] = jnp.asarray(np.log(np.expm1(np.diff(gamma))), dtype)
        if self.variance == "learned":
            params["log_ratio"] = jnp.zeros((T, self.channels) if self.channels else (T,), dtype)
        return params

    def schedule(self, params: Params) -> Schedule:
        """The schedule under these parameters; the fixed one as it is."""
        return _schedule(self._gamma(params)) if self.learned else self.start

    def _gamma(self, params: Params) -> Array:
        """gamma_1..gamma_T as the parameters have them, wherever those have gone."""
        rises = jax.nn.softplus(params["steps"]) + _TINY if "steps" in params else jnp.zeros((0,))
        way = jnp.concatenate([jnp.zeros((1,), rises.dtype), jnp.cumsum(rises)])
        if not self.fixed_ends:
            return params["gamma_1"] + way
        first, last = (float(g) for g in _gamma(self.start)[[0, -1]])
        return first + (last - first) * way / way[-1]

    def reverse_variance(self, params: Params) -> str | Array:
        """What losses and samplers take as `variance`: a name, or the learned table [T+1(, C)], 0 at t = 0."""
        if self.variance != "learned":
            return self.variance
        s, log_ratio = self.schedule(params), params["log_ratio"]
        beta = s.beta_t(jnp.arange(1, s.num_timesteps + 1)).reshape(-1, *(1,) * (log_ratio.ndim - 1))
        return jnp.concatenate([jnp.zeros_like(log_ratio[:1]), beta * jnp.exp(log_ratio)])

    def check_start(self) -> None:
        """Refuses to begin a training whose schedule starts where its numbers cannot hold it; warns of one that ends
        with much signal.

        Raises:
            UserError: names the first t.
        """
        T, left = self.start.num_timesteps, float(self.start.alpha_bar[-1])
        if left > _MOST_LEFT and (self.fixed_ends or not self.learned):
            logging.warning(
                "this noise schedule of T=%d steps leaves alpha_bar_T=%.4g of the signal, and sampling starts from "
                "noise alone: expect poor samples and a large prior term; config.process.schedule='cosine' or "
                "'log_snr', 'learned' with free ends, or a larger T leave less",
                T,
                left,
            )
        if self.learned and (t := _too_quiet(_gamma(self.start), self.start.alpha_bar.dtype)):
            raise UserError(
                f"a learned schedule of T={T} steps cannot start with so little noise at t={t}, which "
                f"{self.start.alpha_bar.dtype} cannot hold; use config.process.log_snr that starts at 13 or below, or "
                "another config.process.init"
            )

    def check(self, params: Params) -> None:
        """Refuses parameters whose schedule has collapsed, or whose variance is not positive and finite.

        What is looked at is gamma itself: the table of `schedule` is held strictly falling, whatever gamma is.

        Raises:
            UserError: names the first t.
        """
        if self.learned:
            self._check_gamma(params)
        if self.variance == "learned":
            table = np.asarray(self.reverse_variance(params))[1:].reshape(self.start.num_timesteps, -1)
            good = np.all((table > 0) & np.isfinite(table), axis=1)
            if not good.all():
                t = 1 + int(np.argmin(good))
                raise UserError(f"the learned reverse variance at t={t} is {table[t - 1]}, not positive and finite")

    def _check_gamma(self, params: Params) -> None:
        """gamma rises from each t to the next, within its limits, by more than float32 loses."""
        gamma = np.asarray(self._gamma(params))
        rises = np.asarray(jax.nn.softplus(params["steps"])) if "steps" in params else np.zeros((0,))
        # With fixed ends rises that are all nothing still divide the way evenly, and cannot be trained any more
        falls = np.isfinite(gamma) & np.concatenate([[True], (rises > _TINY) & (np.diff(gamma) > 0)])
        if not falls.all():
            t = 1 + int(np.argmin(falls))
            raise UserError(
                f"the learned schedule does not fall at t={t}: log SNR {-gamma[max(t - 2, 0)]:.6g} then "
                f"{-gamma[t - 1]:.6g}; {_SLOWER}"
            )
        if not np.all(inside := np.abs(gamma) < _MAX_GAMMA):
            t = 1 + int(np.argmin(inside))
            raise UserError(
                f"the learned schedule has log SNR {-gamma[t - 1]:.6g} at t={t}, outside {_MAX_GAMMA:g} and "
                f"{-_MAX_GAMMA:g}; {_SLOWER}"
            )
        if t := _too_quiet(gamma, gamma.dtype):
            raise UserError(f"the learned schedule adds less noise at t={t} than {gamma.dtype} can hold; {_SLOWER}")


def _too_quiet(gamma: np.ndarray, dtype: np.dtype) -> int:
    """The first t at which beta_t is below the least that `_schedule` has, or 0."""
    log_ab = np.concatenate([[0.0], -np.logaddexp(0.0, gamma.astype(np.float64))])
    quiet = -np.expm1(np.diff(log_ab)) < _LEAST_UNITS * jnp.finfo(dtype).eps
    return 1 + int(np.argmax(quiet)) if quiet.any() else 0


def _gamma(s: Schedule) -> np.ndarray:
    """log((1 - alpha_bar_t) / alpha_bar_t), t = 1..T, in double precision."""
    ab = np.asarray(s.alpha_bar, np.float64)[1:]
    return np.log1p(-ab) - np.log(ab)


def _schedule(gamma: Array) -> Schedule:
    """The schedule of gamma_1..gamma_T; wherever rounding would make neighbours equal, beta_t is a few units of it.

    The gradient is that of the sigmoid alone, and exact in both tails: where a limit acts, its own would be 0, and
    gamma would never come back.
    """
    t = jnp.arange(gamma.shape[0] + 1)
    least = (1.0 - _LEAST_UNITS * jnp.finfo(gamma.dtype).eps) ** t
    one = jnp.ones((1,), gamma.dtype)
    held = jnp.concatenate([one, jax.nn.sigmoid(-jnp.clip(gamma, -_MAX_GAMMA, _MAX_GAMMA))])
    held = jax.lax.cummin(held / least) * least
    free = jnp.concatenate([one, jnp.where(gamma < 0, 1.0 - jax.nn.sigmoid(gamma), jax.nn.sigmoid(-gamma))])
    ab = free + jax.lax.stop_gradient(held - free)
    root = jnp.sqrt(ab)
    # k_t = sqrt(ab_t) (1 - sqrt(ab_t)), without the cancellation where ab_t is near 1
    return Schedule(alpha_bar=ab, k=root * (1.0 - ab) / (1.0 + root))
