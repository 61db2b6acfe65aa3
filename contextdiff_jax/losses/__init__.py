"""Training objectives, one value per example: Eq. 6 (simple), Eq. 5 (posterior), Eq. 4 (nelbo).

A mask marks the elements that count. It may lack trailing axes (a video's frames: bool [B, F]); those are
filled in.
"""

from contextdiff_jax.losses.bound import (
    Nelbo,
    diffusion_term,
    low_discrepancy,
    nelbo,
    posterior,
    prior_term,
    reconstruction_term,
    times,
)
from contextdiff_jax.losses.decoder import check_bins, log_density, log_mass
from contextdiff_jax.losses.denoising import (
    WEIGHTING_OF,
    WEIGHTINGS,
    WITHOUT_THE_END,
    lipschitz_weight,
    simple,
    weight,
)
from contextdiff_jax.losses.variance import VARIANCES, Variance, reverse_variance, variance_table

__all__ = [
    "VARIANCES",
    "WEIGHTINGS",
    "WEIGHTING_OF",
    "WITHOUT_THE_END",
    "Nelbo",
    "Variance",
    "check_bins",
    "diffusion_term",
    "lipschitz_weight",
    "log_density",
    "log_mass",
    "low_discrepancy",
    "nelbo",
    "posterior",
    "prior_term",
    "reconstruction_term",
    "reverse_variance",
    "simple",
    "times",
    "variance_table",
    "weight",
]
