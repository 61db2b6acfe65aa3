"""Appendix A.4 in closed form: Gaussian data, a linear adapter, and for each the best denoiser there is.

Every element is x0 ~ N(m, v) and r = a x0 at all t. Then all of Eq. 4 is a finite sum, without sampling or training.
"""

import numpy as np

from contextdiff_jax.process.schedule import Schedule


def objective_and_bound(s: Schedule, a: float, m: float, v: float) -> tuple[float, float]:
    """(what Eq. 6 minimises, the bound of Eq. 4 in nats), both per element, under the optimal denoiser."""
    ab, k = np.asarray(s.alpha_bar, np.float64), np.asarray(s.k, np.float64)
    gain = np.sqrt(ab) + k * a  # Eqs. 32, 33: x_t = gain x0 + noise
    error = v * (1 - ab) / (gain**2 * v + 1 - ab)  # Eqs. 34, 35: E (x0_hat - x0)^2
    prev, t = ab[:-1], slice(1, None)
    beta = 1 - ab[t] / prev
    A = np.sqrt(prev) * beta / (1 - ab[t])
    B = np.sqrt(ab[t] / prev) * (1 - prev) / (1 - ab[t])
    # Eq. 5 for a linear r: the mismatch is its factor times x0_hat - x0; p_theta has the variance beta_t
    factor = A - B * k[t] * a + k[:-1] * a
    share = ((1 - prev) / (1 - ab[t]))[1:]  # var_t / beta_t
    diffusion = np.sum((factor**2 * error[t] / (2 * beta))[1:] + 0.5 * (share - 1 - np.log(share)))
    reconstruction = 0.5 * np.log(2 * np.pi * beta[0]) + error[1] / (2 * beta[0])
    prior = 0.5 * (gain[-1] ** 2 * (m**2 + v) - ab[-1] - np.log1p(-ab[-1]))
    return float(error[t].mean()), float(diffusion + reconstruction + prior)


def entropy(v: float) -> float:
    """The least that any bound can be on average, nats per element."""
    return float(0.5 * np.log(2 * np.pi * np.e * v))
