"""Resizing as the libraries do it with which networks were published."""

import jax
import jax.numpy as jnp

from contextdiff_jax.types import Array


def resize_8bit(images: Array, height: int, width: int) -> Array:
    """Pillow's bicubic resize: antialiased, rows before columns, what each gives rounded to 8 bits.

    Args:
        images: [B, H, W, C] of 0 to 255.
        height, width: new sides.

    Returns:
        [B, height, width, C] of whole numbers in 0..255, float32.
    """
    images = jnp.asarray(images, jnp.float32)
    batch, old, _, channels = images.shape
    for shape in ((batch, old, width, channels), (batch, height, width, channels)):
        if images.shape != shape:
            resized = jax.image.resize(images, shape, "cubic", antialias=True)
            images = jnp.clip(jnp.floor(resized + 0.5), 0.0, 255.0)
    return images
