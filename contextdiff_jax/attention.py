"""The one place that chooses an attention kernel."""

import jax
import jax.numpy as jnp

from contextdiff_jax.types import Array


def _fused_kernel_fits(q: Array, k: Array, mask: Array | None) -> bool:
    """Whether cuDNN's fused kernel takes these shapes on the default device (bf16/fp16, head dim 8..128 by 8)."""
    if jax.default_backend() != "gpu" or q.dtype not in (jnp.bfloat16, jnp.float16):
        return False
    head_dim = q.shape[-1]
    # Masked training wants even lengths; the unmasked kernel has no such limit.
    even = mask is None or (q.shape[1] % 2 == 0 and k.shape[1] % 2 == 0)
    return head_dim % 8 == 0 and head_dim <= 128 and even


def attention(q: Array, k: Array, v: Array, mask: Array | None = None, is_causal: bool = False) -> Array:
    """Scaled dot-product attention, softmax in float32.

    Args:
        q: queries [B, Tq, H, D].
        k: keys [B, Tk, H, D].
        v: values [B, Tk, H, D].
        mask: True where a query may look, broadcastable to [B, H, Tq, Tk].
        is_causal: additionally mask the future.

    Returns:
        [B, Tq, H, D], dtype of `q`.
    """
    implementation = "cudnn" if _fused_kernel_fits(q, k, mask) else "xla"
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=is_causal, implementation=implementation)
