"""The contrastive loss that trains a CLIP model (Radford et al. 2021)."""

import chex
import jax
import jax.numpy as jnp

from contextdiff_jax.types import Array


def contrastive_loss(
    image_pooled: Array, text_pooled: Array, logit_scale: Array, same: Array | None = None
) -> Array:
    """Symmetric InfoNCE per pair, nats.

    Args:
        image_pooled: [B, P], any length.
        text_pooled: [B, P].
        logit_scale: log of the inverse temperature, [].
        same: bool [B, B], True where two captions are equal: such pairs are neither positives nor negatives.

    Returns:
        [B].
    """
    chex.assert_equal_shape([image_pooled, text_pooled])
    normed = lambda x: x.astype(jnp.float32) / jnp.linalg.norm(x.astype(jnp.float32), axis=-1, keepdims=True)
    logits = jnp.exp(logit_scale) * normed(image_pooled) @ normed(text_pooled).T
    diagonal = jnp.eye(logits.shape[0], dtype=bool)
    if same is not None:
        logits = jnp.where(same & ~diagonal, -jnp.inf, logits)
    picked = jnp.diagonal(logits)
    return 0.5 * (jax.nn.logsumexp(logits, 0) + jax.nn.logsumexp(logits, 1)) - picked
