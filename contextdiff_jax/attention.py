"""The one place that chooses an attention kernel."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from contextdiff_jax import runtime
from contextdiff_jax.types import Array

LARGEST = 1 << 25  # bytes of float32 logits that a sample has at once where they are not the kernel's own: 32 MiB


def _fused_kernel_fits(q: Array, mask: Array | None) -> bool:
    """Whether cuDNN's fused kernel takes these shapes: NVIDIA from compute capability 8.0 on, 16 bits, head dim a
    multiple of 8, no mask.

    It would want a mask spread over all queries, which costs more than the fusion saves for short texts.
    """
    capability = runtime.current().capability
    if capability < 8.0 or mask is not None or q.dtype not in (jnp.bfloat16, jnp.float16):
        return False
    return q.shape[-1] % 8 == 0 and q.shape[-1] <= (256 if capability >= 9.0 else 128)


def _fused(
    q: Array, k: Array, v: Array, scale: float | None, is_causal: bool, implementation: str = "cudnn"
) -> Array:
    """The fused kernel, whose backward pass takes even lengths only: others are padded, and it leaves that out."""
    lengths = {"query": q.shape[1], "key_value": k.shape[1]}
    told = {}
    if any(length % 2 for length in lengths.values()):
        told = {f"{name}_seq_lengths": jnp.full(len(q), length, jnp.int32) for name, length in lengths.items()}
    even = lambda x: jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))
    how = dict(scale=scale, is_causal=is_causal, implementation=implementation)
    return jax.nn.dot_product_attention(even(q), even(k), even(v), **how, **told)[:, : q.shape[1]]


def _loop_pays(q: Array, k: Array, mask: Array | None, is_causal: bool, bias: Array | None) -> bool:
    """Whether a CPU should go head by head: the logits of all heads leave its cache when sequences are long.

    Measured on two cores, forward and backward: 3 times as fast for 1024 x 1024, 1.3 to 2 times for 256 x 256.
    """
    return mask is None and bias is None and not is_causal and q.shape[1] * k.shape[1] >= 1 << 16


def _head_by_head(q: Array, k: Array, v: Array, scale: float) -> Array:
    """The mathematics in a loop over heads; the backward pass computes each head's weights again."""

    @jax.checkpoint
    def one_head(q: Array, k: Array, v: Array) -> Array:
        def attend(q: Array) -> Array:
            logits = jnp.einsum("btd,bsd->bts", q * scale, k, preferred_element_type=jnp.float32)
            return jnp.einsum("bts,bsd->btd", jax.nn.softmax(logits).astype(v.dtype), v)

        return _piece_by_piece(attend, _pieces(1, q.shape[1], k.shape[1]), q)

    return _over_heads(one_head, q, k, v)


def _over_heads(one_head: Callable[..., Array], *arrays: Array) -> Array:
    """[B, T, H, D] of each -> the same of one_head(*arrays [B, T, D]), one head after the other."""
    heads_first = tuple(jnp.moveaxis(x, 2, 0) for x in arrays)
    return jnp.moveaxis(jax.lax.map(lambda head: one_head(*head), heads_first), 0, 2)


def _pieces(num_heads: int, queries: int, keys: int) -> int:
    """Into how many equal pieces the queries are split so that the logits of none are larger than `LARGEST`."""
    wanted = -(-4 * num_heads * queries * keys // LARGEST)
    return next(n for n in range(min(wanted, queries), queries + 1) if queries % n == 0)


def _piece_by_piece(attend: Callable[..., Array], count: int, q: Array, *of_queries: Array) -> Array:
    """attend(q, *of_queries) of one piece of the queries after another, the same to the last bit but for how products
    are summed; the backward pass computes each piece's weights again.

    Softmax is over keys, of which every piece has all. The batch, which may be sharded, is left whole.

    Args:
        attend: from queries [B, C, ...] and the rest to [B, C, ...].
        count: pieces; 1 is `attend` itself.
        q: queries [B, Tq, ...].
        of_queries: what else has an axis of queries, the last but one: [..., Tq, Tk].
    """
    if count == 1:
        return attend(q, *of_queries)

    def split(x: Array, axis: int) -> Array:
        return jnp.moveaxis(x.reshape(*x.shape[:axis], count, -1, *x.shape[axis + 1 :]), axis, 0)

    pieces = split(q, 1), *(split(x, x.ndim - 2) for x in of_queries)
    done = jax.lax.map(jax.checkpoint(lambda piece: attend(*piece)), pieces)
    return jnp.moveaxis(done, 0, 1).reshape(*q.shape[:2], *done.shape[3:])


def _plain(q: Array, k: Array, v: Array, mask: Array | None, bias: Array | None, scale: float | None) -> Array:
    """XLA's own, whose logits are all in memory: long queries piece by piece."""
    of_queries = {name: x for name, x in (("mask", mask), ("bias", bias)) if x is not None and x.shape[-2] > 1}
    whole = dict(mask=mask, bias=bias, scale=scale, implementation="xla")

    def attend(q: Array, *pieces: Array) -> Array:
        return jax.nn.dot_product_attention(q, k, v, **whole | dict(zip(of_queries, pieces, strict=True)))

    return _piece_by_piece(attend, _pieces(q.shape[2], q.shape[1], k.shape[1]), q, *of_queries.values())


def attention_weights(q: Array, k: Array, mask: Array | None = None) -> Array:
    """The softmax by itself, computed plainly: q [B, Tq, H, D], k [B, Tk, H, D] -> float32 [B, H, Tq, Tk]."""
    logits = jnp.einsum("bthd,bshd->bhts", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
    return jax.nn.softmax(logits if mask is None else jnp.where(mask, logits, -jnp.inf))


def edited_attention(edit: Callable[[Array], Array], q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    """Attention whose weights are changed between the softmax and the values.

    Args:
        edit: from weights, float32 [B, H, Tq, Tk], to those to use. If it has a true `heads_apart`, heads whose weights
            are large are given to it one by one, [B, 1, Tq, Tk].
        q, k, v: as of `attention`.
        mask: True where a query may look, of all heads alike, broadcastable to [B, 1, Tq, Tk].

    Returns:
        [B, Tq, H, D], dtype of `v`.
    """

    def edited(q: Array, k: Array, v: Array) -> Array:
        return jnp.einsum("bhts,bshd->bthd", edit(attention_weights(q, k, mask)).astype(v.dtype), v)

    if not getattr(edit, "heads_apart", False) or _pieces(q.shape[2], q.shape[1], k.shape[1]) == 1:
        return edited(q, k, v)
    return _over_heads(lambda *one: edited(*(x[:, :, None] for x in one))[:, :, 0], q, k, v)


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
    if bias is None and _fused_kernel_fits(q, mask):
        at_once = partial(_fused, scale=scale, is_causal=is_causal)
    elif is_causal:
        how = dict(bias=bias, mask=mask, scale=scale, is_causal=True, implementation="xla")
        at_once = partial(jax.nn.dot_product_attention, **how)
    else:
        at_once = partial(_plain, mask=mask, bias=bias, scale=scale)
    if not _loop_pays(q, k, mask, is_causal, bias):
        return at_once(q, k, v)
    # By the platform that is compiled for, which need not be this machine's.
    loop = partial(_head_by_head, scale=q.shape[-1] ** -0.5 if scale is None else scale)
    return jax.lax.platform_dependent(q, k, v, cpu=loop, default=at_once)
