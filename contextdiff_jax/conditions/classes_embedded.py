"""One of K classes by an embedding that is trained with the denoiser (paper, section 4.3)."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from contextdiff_jax import parameters
from contextdiff_jax.conditions.classes import ClassCondition
from contextdiff_jax.layers import ResBlock, unit_normal
from contextdiff_jax.types import Array, Batch, Context, Params


class ClassNet(nn.Module):
    """An embedding of the class, spread over a small square and worked on by residual blocks.

    Attributes:
        num_labels: K + 1, the last one for no class.
        width: of the tokens, a multiple of 16.
        side: of the square; its positions are the tokens.
        depth: residual blocks.
        dtype: type of the computation; parameters and tokens are float32.
        remat: recompute the blocks in the backward pass to save memory.
    """

    num_labels: int
    width: int
    side: int
    depth: int
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, label: Array) -> Array:
        """label int32 [B] -> tokens [B, side^2, width]."""
        h = nn.Embed(self.num_labels, self.width, self.dtype, embedding_init=unit_normal, name="label")(label)
        h = nn.Dense(self.side**2 * self.width, dtype=self.dtype, name="spread")(h)
        h = h.reshape(-1, self.side, self.side, self.width)
        block = nn.remat(ResBlock) if self.remat else ResBlock
        for i in range(self.depth):
            h = block(self.width, 0.0, self.dtype, name=f"block_{i}")(h)
        return h.reshape(h.shape[0], -1, self.width).astype(jnp.float32)


class EmbeddedClassCondition(ClassCondition):
    """One of K classes as four tokens from ResNet blocks. Field: label int32 [B].

    Args:
        names: of the classes.
        width: of the tokens.
        depth: residual blocks.
        dtype, remat: see `ClassNet`.
    """

    trained = True

    def __init__(
        self, names: Sequence[str], width: int, depth: int, dtype: jnp.dtype = jnp.float32, remat: bool = False
    ):
        super().__init__(names)
        self.net = ClassNet(len(self.names) + 1, width, side=2, depth=depth, dtype=dtype, remat=remat)

    def init(self, key: Array) -> Params:
        """Fresh parameters; pure."""
        return parameters.init(self.net, key, jnp.zeros(1, jnp.int32))

    def encode(self, params: Params, fields: Batch) -> Context:
        """Four tokens, and their mean as the pooled feature."""
        return self._context(params, fields["label"])

    def null(self, params: Params, context: Context) -> Context:
        """No class."""
        none = self._context(params, jnp.full(len(context.tokens), len(self.names), jnp.int32))
        return context.replace(tokens=none.tokens, pooled=none.pooled, mask=none.mask)

    def _context(self, params: Params, label: Array) -> Context:
        tokens = self.net.apply({"params": params}, jnp.asarray(label))
        return Context(tokens=tokens, pooled=tokens.mean(1), mask=jnp.ones(tokens.shape[:2], bool))
