"""DINOv2 (Oquab et al. 2023) in Linen, faithful to transformers' `Dinov2Model`. FD-DINOv2 takes its class token."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax import parameters
from contextdiff_jax.attention import attention
from contextdiff_jax.encoders.resizing import resize_8bit
from contextdiff_jax.errors import UserError
from contextdiff_jax.formats import pretrained
from contextdiff_jax.formats.kinds import check, unsupported
from contextdiff_jax.types import Array, Params

SIZE = 224  # pixels of a side that FD-DINOv2 is computed at, whatever the model was trained at
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CUBIC = -0.75  # the constant of PyTorch's cubic kernel; jax.image has -0.5


@dataclasses.dataclass(frozen=True)
class Dinov2Config:
    """What config.json says; absent keys take transformers' defaults. ViT-L/14 is 1024, 24, 16."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: int = 4
    layer_norm_eps: float = 1e-6
    image_size: int = 224
    patch_size: int = 14
    qkv_bias: bool = True

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> "Dinov2Config":
        """From config.json's content.

        Raises:
            UserError: another model, or the giant one's other feed-forward layers.
        """
        if config.get("model_type") != "dinov2":
            found = config.get("model_type")
            raise UserError(f"config.json has model_type={found!r}; give the folder of a DINOv2 model ('dinov2')")
        if config.get("use_swiglu_ffn") or config.get("hidden_act", "gelu") != "gelu":
            raise UserError("this DINOv2 has gated feed-forward layers (the giant one); small, base and large are read")
        kinds = {field.name: field.type for field in dataclasses.fields(cls)}
        found = {key: value for key, value in config.items() if key in kinds}
        check("DINOv2", found, kinds)
        result = cls(**found)
        width, heads = result.hidden_size, result.num_attention_heads
        if width % heads:
            raise unsupported("DINOv2", "hidden_size", width, f"a multiple of num_attention_heads={heads}")
        return result


class Layer(nn.Module):
    """Pre-norm transformer block whose branches are scaled per channel."""

    config: Dinov2Config

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, T, D] -> [B, T, D]."""
        config, width = self.config, self.config.hidden_size
        norm = lambda name: nn.LayerNorm(epsilon=config.layer_norm_eps, use_fast_variance=False, name=name)
        scale = lambda name, h: h * self.param(name, nn.initializers.ones, (width,))
        heads = lambda h: einops.rearrange(h, "b t (h d) -> b t h d", h=config.num_attention_heads)
        h = norm("norm1")(x)
        q, k, v = (heads(nn.Dense(width, use_bias=config.qkv_bias, name=n)(h)) for n in ("query", "key", "value"))
        h = nn.Dense(width, name="out")(einops.rearrange(attention(q, k, v), "b t h d -> b t (h d)"))
        x = x + scale("scale1", h)
        h = nn.Dense(width * config.mlp_ratio, name="fc1")(norm("norm2")(x))
        h = nn.Dense(width, name="fc2")(nn.gelu(h, approximate=False))
        return x + scale("scale2", h)


class Dinov2Net(nn.Module):
    """The encoder."""

    config: Dinov2Config

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalised pixels [B, S, S, 3], whole patches -> normed tokens [B, 1 + N, D], the class token first."""
        config, patch = self.config, self.config.patch_size
        width, side, trained = config.hidden_size, x.shape[1] // patch, config.image_size // patch
        x = nn.Conv(width, (patch, patch), strides=(patch, patch), padding="VALID", name="patches")(x)
        small = nn.initializers.normal(0.02)
        token = self.param("cls_token", small, (1, 1, width))
        positions = self.param("positions", small, (1, 1 + trained**2, width))
        x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, width)), x.reshape(len(x), -1, width)], axis=1)
        x = x + resize_positions(positions, trained, side)
        for i in range(config.num_hidden_layers):
            x = Layer(config, name=f"layer_{i}")(x)
        return nn.LayerNorm(epsilon=config.layer_norm_eps, use_fast_variance=False, name="layernorm")(x)


def resize_positions(positions: Array, old: int, new: int) -> Array:
    """Position embeddings [1, 1 + old^2, D] -> [1, 1 + new^2, D], by PyTorch's cubic interpolation, not antialiased."""
    if old == new:
        return positions
    grid = positions[0, 1:].reshape(old, old, -1)
    matrix = jnp.asarray(_cubic_matrix(old, new))
    grid = jnp.einsum("ih,hwd,jw->ijd", matrix, grid, matrix, precision=jax.lax.Precision.HIGHEST)
    return jnp.concatenate([positions[:, :1], grid.reshape(1, new * new, -1)], axis=1)


def _cubic_matrix(old: int, new: int) -> np.ndarray:
    """Weights [new, old] along one side: half-pixel centres, four taps, the border repeated."""
    at = (np.arange(new) + 0.5) * (old / new) - 0.5
    low = np.floor(at).astype(int)
    matrix = np.zeros((new, old), np.float32)
    for tap in range(-1, 3):
        d = np.abs(at - (low + tap))
        near = ((CUBIC + 2) * d - (CUBIC + 3)) * d * d + 1
        far = ((CUBIC * d - 5 * CUBIC) * d + 8 * CUBIC) * d - 4 * CUBIC
        np.add.at(matrix, (np.arange(new), np.clip(low + tap, 0, old - 1)), np.where(d <= 1, near, far))
    return matrix


@dataclasses.dataclass(frozen=True)
class Dinov2:
    """The network with its parameters beside it.

    Attributes:
        config: sizes.
        params: tree of arrays.
    """

    config: Dinov2Config
    params: Params

    def encode_image(self, params: Params, images: Array) -> Array:
        """images [B, H, W, 3] uint8, or float in 0..255, brought to 224 x 224 as Pillow does it -> [B, D]; pure."""
        pixels = (resize_8bit(images, SIZE, SIZE) / 255.0 - jnp.array(MEAN)) / jnp.array(STD)
        return Dinov2Net(self.config).apply({"params": params}, pixels)[:, 0]


def tensor_names(path: str) -> tuple[str, ...]:
    """Our parameter path -> its names in checkpoints: the hub's, and transformers 5's own when it saves."""
    top = {
        "cls_token": "embeddings.cls_token",
        "positions": "embeddings.position_embeddings",
        "patches/kernel": "embeddings.patch_embeddings.projection.weight",
        "patches/bias": "embeddings.patch_embeddings.projection.bias",
    }
    if path in top:
        return (top[path],)
    name = re.sub(r"/(kernel|scale)$", "/weight", path)
    name = re.sub(r"^layer_(\d+)/", r"encoder.layer.\1/", name)
    name = re.sub(r"/scale([12])$", r"/layer_scale\1.lambda1", name)
    name = re.sub(r"/(fc[12])/", r"/mlp.\1/", name)
    hub = re.sub(r"/(query|key|value)/", r"/attention.attention.\1/", name).replace("/out/", "/attention.output.dense/")
    own = re.sub(r"/(q|k|v|o)(uery|ey|alue|ut)/", r"/attention.\1_proj/", name)
    return tuple(dict.fromkeys((hub.replace("/", "."), own.replace("/", "."))))


def load_dinov2(folder: str | Path) -> Dinov2:
    """Reads a DINOv2 model in the Hugging Face layout.

    Raises:
        UserError: no such folder, another model, weights that do not fit.
    """
    config = Dinov2Config.from_dict(pretrained.read_config(folder))
    image = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
    expected = parameters.shapes(Dinov2Net(config), image)
    params = pretrained.read_params(folder, expected, tensor_names, (r"embeddings\.mask_token$",))
    return Dinov2(config, params)
