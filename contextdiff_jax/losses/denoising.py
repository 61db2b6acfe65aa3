"""Eq. 6 and its weights."""

import jax.numpy as jnp

from contextdiff_jax.errors import UserError
from contextdiff_jax.losses.masks import expand, masked, summed
from contextdiff_jax.losses.variance import reverse_variance
from contextdiff_jax.process import forward
from contextdiff_jax.process.schedule import Schedule, gather, index
from contextdiff_jax.types import Array

WEIGHTINGS = ("constant", "snr", "snr_plus_1", "min_snr", "p2", "vlb", "lemma4")
# What makes Eq. 6 the mean squared error of a network's own output.
WEIGHTING_OF = {"x0": "constant", "eps": "snr", "v": "snr_plus_1"}
# Whose lambda_t is 0 where x_t holds no signal: under zero terminal SNR nothing would be trained at t = T.
WITHOUT_THE_END = ("snr", "min_snr", "p2")
Lipschitz = float | Array | tuple[Array, Array]


def simple(
    s: Schedule,
    x0: Array,
    x0_hat: Array,
    t: Array,
    *,
    weighting: str = "constant",
    gamma: float = 5.0,
    lipschitz: Lipschitz | None = None,
    mask: Array | None = None,
) -> Array:
    """Eq. 6: lambda_t times the mean squared error of x0_hat.

    Args:
        s: schedule.
        x0: data [B, ...].
        x0_hat: its estimate from x_t.
        t: integer [B] or scalar, 1..T.
        weighting: constant (1), snr (the eps-loss), snr_plus_1 (the v-loss), min_snr (min(snr, gamma)), p2
            (snr / (1 + snr)), vlb (the exact factor of the bound without a shift, per unit of squared error), lemma4
            (the factor with which this is at least Eq. 5 over the number of elements, if `lipschitz` is what it says).
        gamma: ceiling of min_snr.
        lipschitz: C_t of r_phi(., c, t) for lemma4: a number, [T+1], or each example's own (C_t, C_{t-1}), [B] both.
        mask: True where an element counts.

    Returns:
        [B]; 0 for an example without any unmasked element.
    """
    lambda_t = weight(s, t, x0, weighting, gamma, lipschitz)
    counted = jnp.broadcast_to(expand(mask, x0), jnp.shape(x0))
    total = summed(lambda_t * masked(x0_hat - x0, mask) ** 2)
    return total / jnp.maximum(summed(counted), 1)


def weight(
    s: Schedule,
    t: Array,
    like: Array,
    weighting: str,
    gamma: float = 5.0,
    lipschitz: Lipschitz | None = None,
) -> Array:
    """lambda_t of Eq. 6, broadcastable to `like`; see `simple`."""
    if weighting not in WEIGHTINGS:
        raise UserError(f"weighting {weighting!r} is unknown; accepted: {', '.join(WEIGHTINGS)}")
    t = index(s, t, lowest=1)
    if weighting == "lemma4":
        return lipschitz_weight(s, t, like, *_lipschitz_pair(s, t, like, lipschitz))
    ab_t = gather(s.alpha_bar, t, like)
    snr_t = forward.ratio(ab_t, 1.0 - ab_t)
    if weighting == "vlb":
        # A_t^2 / (2 var_t) = (snr_{t-1} - snr_t) / 2
        A_t, _, _ = forward.posterior_coefficients(s, t, like)
        return 0.5 * forward.ratio(A_t**2, reverse_variance(s, t, like))
    return {
        "constant": jnp.ones_like(snr_t),
        "snr": snr_t,
        "snr_plus_1": 1.0 / (1.0 - ab_t),  # v = (sqrt(ab) x_t - x0) / sqrt(1 - ab)
        "min_snr": jnp.minimum(snr_t, gamma),
        "p2": ab_t,  # snr / (1 + snr)
    }[weighting]


def lipschitz_weight(s: Schedule, t: Array, like: Array, c_t: Array, c_prev: Array) -> Array:
    """lambda_t of Lemma 4, with which Eq. 6 (summed, not averaged, over elements) bounds Eq. 5 from above.

    Args:
        s: schedule.
        t: integer [B] or scalar, 1..T.
        like: array of the data's rank.
        c_t: Lipschitz constant of r_phi(., c, t), broadcastable to `like`.
        c_prev: that of r_phi(., c, t-1).
    """
    t = index(s, t, lowest=1)
    A_t, B_t, _ = forward.posterior_coefficients(s, t, like)
    k_t, k_prev = gather(s.k, t, like), gather(s.k, jnp.maximum(t - 1, 0), like)
    # Lemma 4:  |mismatch| <= (A_t + B_t k_t C_t + k_{t-1} C_{t-1}) |x0_hat - x0|
    return forward.ratio((A_t + B_t * k_t * c_t + k_prev * c_prev) ** 2, 2.0 * reverse_variance(s, t, like))


def _lipschitz_pair(s: Schedule, t: Array, like: Array, lipschitz: Lipschitz | None) -> tuple[Array, Array]:
    """(C_t, C_{t-1}), broadcastable to `like`."""
    if isinstance(lipschitz, tuple):
        return tuple(jnp.reshape(c, (-1, *(1,) * (jnp.ndim(like) - 1))) for c in lipschitz)
    size = s.num_timesteps + 1
    if lipschitz is None or jnp.shape(lipschitz) not in ((), (size,)):
        found = "None" if lipschitz is None else f"an array of shape {jnp.shape(lipschitz)}"
        raise UserError(f"weighting 'lemma4' with lipschitz={found}; pass a number or an array [{size}], or a pair")
    c = jnp.broadcast_to(jnp.asarray(lipschitz, s.alpha_bar.dtype), (size,))
    return gather(c, t, like), gather(c, jnp.maximum(t - 1, 0), like)
