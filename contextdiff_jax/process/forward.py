"""The Gaussians of the contextual process (Eqs. 1-3, 18).

With y_t = x_t - b_t each of them is the ordinary diffusion's: the shift leaves a sample before a step and a
new one joins it after. Throughout, ab_t is alpha_bar_t; b_t = k_t r_phi(x0, c, t) is shaped like x0 (or 0 for
plain diffusion); t is an integer [B] or scalar. Values of t that are known before tracing are checked; traced
ones are safe from 0 to T.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.errors import UserError
from contextdiff_jax.process.schedule import Schedule, gather, index
from contextdiff_jax.types import Array


class Gaussian(NamedTuple):
    """Independent normal variables; mean and var have the same shape."""

    mean: Array
    var: Array

    def sample(self, key: Array) -> Array:
        """A draw; with one key per example, [B], each draws its own."""
        shape, dtype = self.mean.shape, self.mean.dtype
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 1:
            return self.at(jax.vmap(lambda one: jax.random.normal(one, shape[1:], dtype))(key))
        return self.at(jax.random.normal(key, shape, dtype))

    def at(self, eps: Array) -> Array:
        """The draw that standard normal noise makes: mean + sqrt(var) eps, differentiable in both."""
        return self.mean + jnp.sqrt(self.var) * eps


def marginal(s: Schedule, x0: Array, b_t: Array, t: Array) -> Gaussian:
    """q(x_t | x0, c), Eq. 1; t in 0..T."""
    ab_t = gather(s.alpha_bar, index(s, t), x0)
    # Eq. 1:  N(sqrt(ab_t) x0 + b_t, (1 - ab_t) I)
    return _gaussian(jnp.sqrt(ab_t) * x0 + b_t, 1.0 - ab_t)


def transition(s: Schedule, x_prev: Array, b_t: Array, b_prev: Array, t: Array) -> Gaussian:
    """q(x_t | x_{t-1}, x0, c), Eq. 2; t in 1..T."""
    t = index(s, t, lowest=1)
    ab_t, ab_prev = gather(s.alpha_bar, t, x_prev), gather(s.alpha_bar, _before(t), x_prev)
    # Eq. 2:  N(sqrt(a_t) x_{t-1} + b_t - sqrt(a_t) b_{t-1}, beta_t I),   a_t = ab_t / ab_{t-1}
    return _gaussian(jnp.sqrt(ab_t / ab_prev) * (x_prev - b_prev) + b_t, (ab_prev - ab_t) / ab_prev)


def posterior(s: Schedule, xt: Array, x0: Array, b_t: Array, b_prev: Array, t: Array) -> Gaussian:
    """q(x_{t-1} | x_t, x0, c), Eq. 3; with x0_hat and its shifts for x0 and its, the sampling step of Eq. 7.

    t in 1..T. At t = 1 the variance is 0 and the mean x0.
    """
    A_t, B_t, var_t = posterior_coefficients(s, t, xt)
    # Eq. 3:  N(A_t x0 + B_t (x_t - b_t) + b_{t-1}, var_t I)
    return _gaussian(A_t * x0 + B_t * (xt - b_t) + b_prev, var_t)


def posterior_coefficients(s: Schedule, t: Array, like: Array) -> tuple[Array, Array, Array]:
    """A_t, B_t, var_t of Eq. 3, each broadcastable to `like`; t in 1..T."""
    t = index(s, t, lowest=1)
    ab_t, ab_prev = gather(s.alpha_bar, t, like), gather(s.alpha_bar, _before(t), like)
    a_t, beta_t = ab_t / ab_prev, (ab_prev - ab_t) / ab_prev
    # A_t = sqrt(ab_{t-1}) beta_t / (1 - ab_t),  B_t = sqrt(a_t) (1 - ab_{t-1}) / (1 - ab_t)
    A_t = jnp.sqrt(ab_prev) * ratio(beta_t, 1.0 - ab_t)
    B_t = jnp.sqrt(a_t) * ratio(1.0 - ab_prev, 1.0 - ab_t)
    # var_t = (1 - ab_{t-1}) beta_t / (1 - ab_t)
    return A_t, B_t, ratio(1.0 - ab_prev, 1.0 - ab_t) * beta_t


def ddim_posterior(
    s: Schedule, xt: Array, x0: Array, b_t: Array, b_s: Array, t: Array, s_index: Array, eta: float
) -> Gaussian:
    """q_sigma(x_s | x_t, x0, c) of the non-Markovian family, Eq. 18, for any s < t.

    eta = 0 is deterministic; eta = 1 is the ancestral step (with s = t-1: Eq. 3). All eta >= 0 keep the
    marginals of Eq. 1: sigma^2 is capped at 1 - ab_s, which only an eta above 1 can reach.

    Args:
        s: schedule.
        xt: sample at t.
        x0: data, or its estimate.
        b_t: shift at t.
        b_s: shift at s.
        t: from 1..T.
        s_index: to 0..t-1, scalar or [B].
        eta: 0 or more.

    Raises:
        UserError: eta < 0 or a known s_index that is not below t.
    """
    check_eta(eta)
    t, s_index = index(s, t, lowest=1), index(s, s_index)
    if isinstance(t, np.ndarray) and isinstance(s_index, np.ndarray) and not (s_index < t).all():
        raise UserError(f"step from t={t} to s={s_index}: s must be below t")
    ab_t, ab_s = gather(s.alpha_bar, t, xt), gather(s.alpha_bar, s_index, xt)
    # The shares of the variance at s that the ancestral step redraws and keeps; they add up to 1.
    redrawn = ratio((ab_s - ab_t) / ab_s, 1.0 - ab_t)
    kept = (ab_t / ab_s) * ratio(1.0 - ab_s, 1.0 - ab_t)
    # sigma^2 = eta^2 (1 - ab_s) / (1 - ab_t) (1 - ab_t / ab_s)
    sigma_sq = (1.0 - ab_s) * jnp.minimum(eta**2 * redrawn, 1.0)
    # 1 - ab_s - sigma^2
    along_eps = (1.0 - ab_s) * jnp.maximum(kept + (1.0 - eta**2) * redrawn, 0.0)
    # Eq. 18:  N(sqrt(ab_s) x0 + sqrt(1 - ab_s - sigma^2) eps_hat + b_s, sigma^2 I)
    mean = jnp.sqrt(ab_s) * x0 + jnp.sqrt(along_eps) * effective_noise(s, xt - b_t, x0, t) + b_s
    return _gaussian(mean, sigma_sq)


def effective_noise(s: Schedule, yt: Array, x0: Array, t: Array) -> Array:
    """(y_t - sqrt(ab_t) x0) / sqrt(1 - ab_t); 0 at t = 0.

    With y_t = x_t - b_t it is eps, with x_t itself the effective noise that networks predict.
    """
    ab_t = gather(s.alpha_bar, index(s, t), yt)
    return ratio(yt - jnp.sqrt(ab_t) * x0, jnp.sqrt(1.0 - ab_t))


def ratio(numerator: Array, denominator: Array) -> Array:
    """numerator / denominator, and 0 where the denominator is 0."""
    return jnp.where(denominator > 0, numerator / jnp.where(denominator > 0, denominator, 1.0), 0.0)


def check_eta(eta: float) -> None:
    """Refuses a known eta that is negative or not a number."""
    if not isinstance(eta, jax.core.Tracer) and not eta >= 0:
        raise UserError(f"eta={eta} must be 0 (deterministic) or more; 1 is the ancestral sampler")


def _before(t: Array) -> Array:
    """t - 1, kept from wrapping around at a traced t = 0."""
    return jnp.maximum(t - 1, 0)


def _gaussian(mean: Array, var: Array) -> Gaussian:
    return Gaussian(mean, jnp.broadcast_to(var, mean.shape))
