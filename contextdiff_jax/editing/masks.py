"""Where a word is: masks from attention to its tokens (FateZero, Qi et al. 2023)."""

import einops
import jax
import jax.numpy as jnp

from contextdiff_jax.types import Array


def resize_nearest(maps: Array, size: tuple[int, int]) -> Array:
    """[F, h, w] -> [F, *size]; pixel i of n shows pixel floor(i h / n), as PyTorch's nearest does."""
    rows, columns = (jnp.arange(n) * m // n for n, m in zip(size, maps.shape[1:3], strict=True))
    return maps[:, rows][:, :, columns]


def shrink(masks: Array, size: tuple[int, int]) -> Array:
    """[F, h, w] -> [F, *size], no larger: the maximum of what a place covers, so that nothing thin is lost."""
    factors = [m // n for n, m in zip(size, masks.shape[1:3], strict=True)]
    if any(m % n for n, m in zip(size, masks.shape[1:3], strict=True)):
        return resize_nearest(masks, size)
    return einops.reduce(masks, "f (h p) (w q) -> f h w", "max", p=factors[0], q=factors[1])


def pool(maps: Array) -> Array:
    """The largest value of each 3 x 3 neighbourhood, [F, h, w] -> the same shape."""
    return jax.lax.reduce_window(maps, -jnp.inf, jax.lax.max, (1, 3, 3), (1, 1, 1), "SAME")


def mask(maps: Array, size: tuple[int, int], threshold: Array, scale: str = "maximum") -> Array:
    """Where the attention to the chosen words is high.

    Pooled (3 x 3 maximum), resized (nearest), divided by each frame's maximum, above the threshold.

    Args:
        maps: attention summed over the words' tokens, averaged over heads and layers, [F, h, w].
        size: of the result.
        threshold: 0..1.
        scale: "maximum", as FateZero has it, or "range": each frame's minimum is 0 and its maximum 1, which finds the
            object of maps that are nearly flat.

    Returns:
        float32 [F, *size], 1 inside.
    """
    maps = pool(maps)
    if scale == "range":
        maps = maps - maps.min(axis=(1, 2), keepdims=True)
    maps = resize_nearest(maps, size)
    largest = maps.max(axis=(1, 2), keepdims=True)
    return (maps > threshold * largest).astype(jnp.float32)
