"""The one place that chooses an attention kernel."""

import jax
import jax.numpy as jnp

from contextdiff_jax.types import Array


def _fused_kernel_fits(q: Array, mask: Array | None) -> bool:
    """Whether cuDNN's fused kernel takes these shapes: NVIDIA, 16 bits, head dim a multiple of 8, no mask.

    It would want a mask spread over all queries, which costs more than the fusion saves for short texts.
    """
    if jax.default_backend() != "gpu" or mask is not None or q.dtype not in (jnp.bfloat16, jnp.float16):
        return False
    device = jax.devices()[0]
    hopper = float(getattr(device, "compute_capability", None) or 0) >= 9.0
    return "NVIDIA" in device.device_kind and q.shape[-1] % 8 == 0 and q.shape[-1] <= (256 if hopper else 128)


def attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    is_causal: bool = False,
    bias: Array | None = None,
    scale: float | None = None,
) -> Array:
    """Scaled dot-product attention, softmax in float32.

    Args:
        q: queries [B, Tq, H, D].
        k: keys [B, Tk, H, D].
        v: values [B, Tk, H, D].
        mask: True where a query may look, broadcastable to [B, H, Tq, Tk].
        is_causal: additionally mask the future.
        bias: added to the logits, broadcastable to [B, H, Tq, Tk].
        scale: of the logits before the bias; None is 1 / sqrt(D).

    Returns:
        [B, Tq, H, D], dtype of `q`.
    """
    implementation = "cudnn" if bias is None and _fused_kernel_fits(q, mask) else "xla"
    return jax.nn.dot_product_attention(
        q, k, v, bias, mask, scale=scale, is_causal=is_causal, implementation=implementation
    )
