"""Bits per dimension from the full bound of Eq. 4: prior, reconstruction and sum over t, with both shifts."""

from collections.abc import Sequence
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax import losses
from contextdiff_jax.errors import UserError
from contextdiff_jax.losses import Nelbo, Variance
from contextdiff_jax.process.chart import Denoiser, Shift
from contextdiff_jax.process.schedule import Schedule
from contextdiff_jax.types import Array


@flax.struct.dataclass
class BitsPerDim:
    """An upper bound on the negative log-likelihood, in bits per dimension.

    Attributes:
        mean: over the images, [].
        stderr: standard error of the mean as an estimate for further images like these, []; NaN for a single image. It
            holds the differences between images and the Monte Carlo noise of times and samples, which is part of each
            image's value; it knows nothing of the seed that a model was trained with. With drawn times it is on the
            safe side, by up to 60 %, since it counts them as independent and they are spread evenly. For two models
            on the same images see `difference`.
        monte_carlo: the part of stderr that is Monte Carlo noise and would vanish with more draws for the same images,
            [], from the spread of the repeats; None with one repeat.
        prior: mean share of the prior KL (the adapter's b_T included), [].
        reconstruction: mean share of -log p(x0 | x1), [].
        diffusion: mean share of the sum over t = 2..T, [].
        per_image: total of each image, [N].
        terms: the three terms of each image, [N] each; None of several batches.
    """

    mean: Array
    stderr: Array
    monte_carlo: Array | None
    prior: Array
    reconstruction: Array
    diffusion: Array
    per_image: Array
    terms: Nelbo | None = None


def bits_per_dim(
    f: Denoiser,
    b: Shift | None,
    s: Schedule,
    x0: Array,
    key: Array,
    *,
    num_t: int | None = None,
    repeats: int = 1,
    bins: int | None = 256,
    dequantize: bool = False,
    data_range: tuple[float, float] = (-1.0, 1.0),
    variance: Variance = "beta",
) -> BitsPerDim:
    """The bound for N images. Jittable as a whole, which is advisable where `f` and `b` close over large
    parameters.

    The variance of p_theta is free. With beta_t the bound is tight for an optimal denoiser of continuous data
    (0.001 nats per dimension at T = 1000 for data of standard deviation 0.5); with var_t, the training
    objectives' default, it loses 0.3 to 0.5 nats per dimension there, whatever the denoiser, nearly all of it
    in the first few t.

    Args:
        f: (x_t, t) -> x0_hat under the images' conditions; x_t [N, ...] and x0_hat in the scale [-1, 1].
        b: (x0, t) -> b_t, or None for plain diffusion.
        s: schedule.
        x0: images [N, ...]; integers are levels 0..bins-1, other numbers are rounded to the nearest level of
            `data_range`, so that no convention of pixels makes a difference.
        key: for the noise and the times.
        num_t: None sums over all t, each with its own noise; otherwise the times drawn per image, one in each
            of num_t equal parts of 2..T and evenly spread over the images.
        repeats: independent estimates of the bound that are averaged, each with its own times and noise.
        bins: levels per dimension; None for continuous data, whose density is taken in the scale [-1, 1].
        dequantize: bounds the levels' probability by the density of x0 plus uniform noise, instead of giving
            the decoder bins.
        data_range: the values of the first and the last level.
        variance: of p_theta, "beta", "posterior" or a learned table, see `losses.reverse_variance`.

    Returns:
        Bits per dimension.

    Raises:
        UserError: num_t, repeats, bins, variance or data_range out of range, no images, or images outside
            data_range.
    """
    losses.check_bins(bins)
    if num_t is not None and not _is_count(num_t):
        raise UserError(f"num_t={num_t!r} must be an integer of 1 or more, or None to sum over all timesteps")
    if not _is_count(repeats):
        raise UserError(f"repeats={repeats!r} must be an integer of 1 or more")
    if dequantize and bins is None:
        raise UserError("dequantize=True needs the number of levels; pass bins=256 for 8-bit data")
    if not data_range[0] < data_range[1]:
        raise UserError(f"data_range={tuple(data_range)} must rise, e.g. (-1, 1) or (0, 1)")
    x0 = _to_unit_scale(x0, bins, data_range)
    if x0.ndim < 1 or x0.size == 0:
        raise UserError(f"x0 of shape {x0.shape} holds no image; pass at least one image, [N, ...]")
    known = not isinstance(x0, jax.core.Tracer)
    if known and bins is not None and jnp.abs(x0).max() > 1.0 + 1.0 / (bins - 1):
        raise UserError(f"x0 leaves data_range={tuple(data_range)}; pass its range, or bins=None")
    bound = partial(_bound, f, b, num_t=num_t, bins=bins, dequantize=dequantize, variance=variance)
    nats = jax.jit(lambda s, x0, keys: jax.lax.map(lambda key: bound(s, x0, key), keys))(
        s, x0, jax.random.split(key, repeats)
    )
    bits = jax.tree.map(lambda v: v / (np.log(2.0) * x0[0].size), nats)
    monte_carlo = _standard_error(bits.total.mean(1)) if repeats > 1 else None
    bits = jax.tree.map(lambda v: v.mean(0), bits)
    return _summarise(bits, monte_carlo).replace(terms=bits)


def first(bits: BitsPerDim, count: int) -> BitsPerDim:
    """The figure of the first `count` images of a batch alone, where others have filled it up."""
    if count < len(bits.per_image):
        bits = _summarise(jax.tree.map(lambda v: v[:count], bits.terms), None)
    return bits.replace(terms=None)


def join(parts: Sequence[BitsPerDim]) -> BitsPerDim:
    """One figure for images that were measured in several batches."""
    share = lambda name: jnp.concatenate([jnp.full(p.per_image.shape, getattr(p, name)) for p in parts])
    bits = Nelbo(prior=share("prior"), reconstruction=share("reconstruction"), diffusion=share("diffusion"))
    per_image = jnp.concatenate([p.per_image for p in parts])
    monte_carlo = None
    if all(p.monte_carlo is not None for p in parts):
        of_sums = jnp.stack([p.monte_carlo * p.per_image.size for p in parts])
        monte_carlo = jnp.sqrt((of_sums**2).sum()) / per_image.size
    return _summarise(bits, monte_carlo, per_image)


def difference(first: BitsPerDim, second: BitsPerDim) -> tuple[Array, Array]:
    """Mean of first - second over the images that both were measured on, and its standard error.

    What makes one image harder than another drops out, so this is far more certain than the two means.

    Raises:
        UserError: different numbers of images.
    """
    if first.per_image.shape != second.per_image.shape:
        raise UserError(
            f"the two bounds are of {first.per_image.size} and {second.per_image.size} images; measure the same ones"
        )
    gap = first.per_image - second.per_image
    return gap.mean(), _standard_error(gap)


def _bound(
    f: Denoiser,
    b: Shift | None,
    s: Schedule,
    x0: Array,
    key: Array,
    *,
    num_t: int | None,
    bins: int | None,
    dequantize: bool,
    variance: Variance,
) -> Nelbo:
    """The three terms in nats per image [N]."""
    key_noise, key_1, key_t, key_eps = jax.random.split(key, 4)
    offset = 0.0
    if dequantize:
        # -log P(x0) <= E_u[-log p(x0 + u)] - log(width),  u uniform over the width of a bin
        width = 2.0 / (bins - 1)
        x0 = x0 + width * (jax.random.uniform(key_noise, x0.shape, x0.dtype) - 0.5)
        offset = -x0[0].size * np.log(width)
    decoder = dict(bins=None if dequantize else bins, variance=variance)
    reconstruction = losses.reconstruction_term(s, x0, f, b, key_1, **decoder)
    T, size = s.num_timesteps, x0.shape[0]
    if num_t is None:
        times = jnp.broadcast_to(jnp.arange(2, T + 1)[:, None], (T - 1, size))
    else:
        times = losses.low_discrepancy(key_t, T, num_t, size)

    def add(total, inputs):
        t, key = inputs
        return total + losses.diffusion_term(s, x0, f, b, t, key, variance=variance).astype(total.dtype), None

    keys = jax.random.split(key_eps, len(times))
    total, _ = jax.lax.scan(add, jnp.zeros_like(reconstruction), (times, keys))
    scale = 1.0 if num_t is None else (T - 1) / num_t
    return Nelbo(
        prior=losses.prior_term(s, x0, b), reconstruction=reconstruction + offset, diffusion=scale * total
    )


def _to_unit_scale(x0: Array, bins: int | None, data_range: tuple[float, float]) -> Array:
    """x0 in floating point, the first level at -1 and the last at 1."""
    x0 = jnp.asarray(x0)
    if jnp.issubdtype(x0.dtype, jnp.integer):
        if bins is None:
            raise UserError("integer images have levels; pass bins=256 for 8-bit data")
        data_range = (0.0, bins - 1.0)
    low, high = data_range
    x0 = x0.astype(float)
    if bins is None:
        return x0 if (low, high) == (-1.0, 1.0) else (x0 - low) * (2.0 / (high - low)) - 1.0
    return jnp.rint((x0 - low) * ((bins - 1) / (high - low))) * (2.0 / (bins - 1)) - 1.0


def _is_count(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 1


def _standard_error(values: Array) -> Array:
    """Of the mean of [N]; NaN for N = 1."""
    return values.std(ddof=1) / np.sqrt(values.size)


def _summarise(bits: Nelbo, monte_carlo: Array | None, per_image: Array | None = None) -> BitsPerDim:
    per_image = bits.total if per_image is None else per_image
    return BitsPerDim(
        mean=per_image.mean(),
        stderr=_standard_error(per_image),
        monte_carlo=monte_carlo,
        prior=bits.prior.mean(),
        reconstruction=bits.reconstruction.mean(),
        diffusion=bits.diffusion.mean(),
        per_image=per_image,
    )
