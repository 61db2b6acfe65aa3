"""The likelihood of the last step, elementwise: densities, and masses of the levels of discrete data."""

import jax.numpy as jnp
from jax.scipy.special import log_ndtr

from contextdiff_jax.errors import UserError
from contextdiff_jax.types import Array


def log_density(x: Array, mean: Array, sigma: Array) -> Array:
    """log N(x; mean, sigma^2), elementwise."""
    return -0.5 * ((x - mean) / sigma) ** 2 - jnp.log(sigma) - 0.5 * jnp.log(2.0 * jnp.pi)


def log_mass(x: Array, mean: Array, sigma: Array, bins: int) -> Array:
    """log of the mass that N(mean, sigma^2) gives to the bin around x, elementwise (Ho et al. 2020, Eq. 13).

    Args:
        x: values on the grid -1 + 2 i / (bins - 1).
        mean: like x.
        sigma: standard deviation, scalar or like x.
        bins: number of levels; the first and the last bin reach to infinity.
    """
    check_bins(bins)
    half = 1.0 / (bins - 1)
    # Mirrored so that the bin lies at or below the mean: the lower tail keeps its relative precision, however
    # far out.
    sign = jnp.where(x > mean, -1.0, 1.0)
    z = sign * (x - mean)
    upper, lower = log_ndtr((z + half) / sigma), log_ndtr((z - half) / sigma)
    inner = upper + jnp.log(-jnp.expm1(jnp.minimum(lower - upper, -jnp.finfo(upper.dtype).tiny)))
    first, last = log_ndtr((x + half - mean) / sigma), log_ndtr((mean - x + half) / sigma)
    return jnp.where(x < -1.0 + half, first, jnp.where(x > 1.0 - half, last, inner))


def check_bins(bins: int | None) -> None:
    """Refuses fewer than two levels."""
    if bins is not None and (isinstance(bins, bool) or int(bins) != bins or bins < 2):
        raise UserError(
            f"bins={bins} must be an integer of 2 or more (8-bit data: 256), or None if continuous"
        )
