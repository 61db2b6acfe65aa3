"""A process with parameters: a schedule that is learned, and a learned variance of the reverse steps.

With few steps the bound depends on where they lie and on how wide each reverse step is, and both can be trained on it
(Kingma et al. 2021; Nichol and Dhariwal 2021). Nothing else may train them: under Eq. 6 the best schedule has no noise.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.errors import UserError
from contextdiff_jax.process.schedule import Schedule
from contextdiff_jax.types import Array, Params

_MAX_GAMMA = 30.0  # keeps alpha_bar_T a normal number
_TINY = 1e-30  # keeps a way that has shrunk to nothing divisible


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
        if not self.learned:
            return self.start
        rises = jax.nn.softplus(params["steps"]) + _TINY if "steps" in params else jnp.zeros((0,))
        way = jnp.concatenate([jnp.zeros((1,), rises.dtype), jnp.cumsum(rises)])
        if self.fixed_ends:
            first, last = (float(g) for g in _gamma(self.start)[[0, -1]])
            gamma = first + (last - first) * way / way[-1]
        else:
            gamma = params["gamma_1"] + way
        return _schedule(jnp.clip(gamma, -_MAX_GAMMA, _MAX_GAMMA))

    def reverse_variance(self, params: Params) -> str | Array:
        """What losses and samplers take as `variance`: a name, or the learned table [T+1(, C)], 0 at t = 0."""
        if self.variance != "learned":
            return self.variance
        s, log_ratio = self.schedule(params), params["log_ratio"]
        beta = s.beta_t(jnp.arange(1, s.num_timesteps + 1)).reshape(-1, *(1,) * (log_ratio.ndim - 1))
        return jnp.concatenate([jnp.zeros_like(log_ratio[:1]), beta * jnp.exp(log_ratio)])

    def check(self, params: Params) -> None:
        """Refuses parameters whose schedule does not fall strictly, or whose variance is not positive and finite.

        Raises:
            UserError: names the first t.
        """
        ab = np.asarray(self.schedule(params).alpha_bar)
        if not np.all(np.diff(ab) < 0):
            t = 1 + int(np.argmin(np.diff(ab) < 0))
            raise UserError(f"the learned schedule does not fall at t={t}: alpha_bar {ab[t - 1]} then {ab[t]}")
        if self.variance == "learned":
            table = np.asarray(self.reverse_variance(params))[1:].reshape(len(ab) - 1, -1)
            good = np.all((table > 0) & np.isfinite(table), axis=1)
            if not good.all():
                t = 1 + int(np.argmin(good))
                raise UserError(f"the learned reverse variance at t={t} is {table[t - 1]}, not positive and finite")


def _gamma(s: Schedule) -> np.ndarray:
    """log((1 - alpha_bar_t) / alpha_bar_t), t = 1..T, in double precision."""
    ab = np.asarray(s.alpha_bar, np.float64)[1:]
    return np.log1p(-ab) - np.log(ab)


def _schedule(gamma: Array) -> Schedule:
    """The schedule of gamma_1..gamma_T; wherever rounding would make neighbours equal, beta_t is a few units of it."""
    t = jnp.arange(gamma.shape[0] + 1)
    least = (1.0 - 16 * jnp.finfo(gamma.dtype).eps) ** t
    ab = jnp.concatenate([jnp.ones((1,), gamma.dtype), jax.nn.sigmoid(-gamma)])
    ab = jax.lax.cummin(ab / least) * least
    root = jnp.sqrt(ab)
    # k_t = sqrt(ab_t) (1 - sqrt(ab_t)), without the cancellation where ab_t is near 1
    return Schedule(alpha_bar=ab, k=root * (1.0 - ab) / (1.0 + root))
