"""A convolution with a frozen batch norm, of which image classifiers are made."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from contextdiff_jax.types import Array


class FrozenBatchNorm(nn.Module):
    """Batch normalisation by stored statistics; all four are parameters, as checkpoints have them.

    Attributes:
        epsilon: added to the variance.
    """

    epsilon: float = 1e-3

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, H, W, C] -> the same shape."""
        shape = (x.shape[-1],)
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        scale, bias = self.param("scale", ones, shape), self.param("bias", zeros, shape)
        mean, var = self.param("mean", zeros, shape), self.param("var", ones, shape)
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        return x * factor + (bias - mean * factor)


class ConvBN(nn.Module):
    """Convolution without bias, batch norm, activation.

    Attributes:
        features: output channels.
        kernel: its sides.
        strides: of both sides.
        padding: "SAME" or "VALID".
        groups: of channels that do not mix.
        activation: last; None for none.
    """

    features: int
    kernel: tuple[int, int] = (1, 1)
    strides: int = 1
    padding: str = "SAME"
    groups: int = 1
    activation: Callable[[Array], Array] | None = jax.nn.relu

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, H, W, C] -> [B, H', W', features]."""
        x = nn.Conv(
            self.features,
            self.kernel,
            strides=(self.strides, self.strides),
            padding=self.padding,
            feature_group_count=self.groups,
            use_bias=False,
            name="conv",
        )(x)
        x = FrozenBatchNorm(name="bn")(x)
        return x if self.activation is None else self.activation(x)


STATISTICS = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}  # PyTorch's names


def relu6(x: Array) -> Array:
    """min(max(x, 0), 6)."""
    return jnp.clip(x, 0.0, 6.0)
