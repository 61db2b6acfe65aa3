"""FID's Inception (the graph of 2015-12-05) in Linen, as TensorFlow computes it, and torch-fidelity after it.

It is not torchvision's network: pictures are resized as TensorFlow 1 does, 3 x 3 average pools do not count padding,
the pool of the last block is a maximum, and the Inception score takes the logits without their bias.

The weights are those of pytorch-fid's release, converted once. The SHA-256 of the release goes along, because a
distance is called FID in these weights alone:

    python -c "import hashlib, torch, safetensors.torch as s; pth = 'pt_inception-2015-12-05-6726825d.pth'; s.save_file(
        torch.load(pth, weights_only=True), 'inception-2015-12-05.safetensors',
        {'sha256': hashlib.sha256(open(pth, 'rb').read()).hexdigest()})"
"""

import dataclasses
from pathlib import Path

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open

from contextdiff_jax import parameters
from contextdiff_jax.encoders.conv_bn import STATISTICS, ConvBN
from contextdiff_jax.errors import UserError
from contextdiff_jax.formats import pretrained
from contextdiff_jax.types import Array, Params

SIZE = 299
SPATIAL_CHANNELS = 7  # of sFID, as ADM's evaluator takes them: 17 * 17 * 7 = 2023 features
RELEASE = "6726825d"  # first digits of the release's SHA-256, which are in its name as well
REMEDY = "convert pt_inception-2015-12-05-6726825d.pth as contextdiff_jax/encoders/inception.py says"


@flax.struct.dataclass
class InceptionFeatures:
    """What the network says of a batch.

    Attributes:
        pooled: [B, 2048], FID's and KID's features.
        spatial: [B, 2023], sFID's.
        logits: [B, 1008] without their bias, of the Inception score.
    """

    pooled: Array
    spatial: Array
    logits: Array


def resize_tf1(images: Array, size: int) -> Array:
    """TensorFlow 1's bilinear resize: pixel i is read at i * old / new, without half-pixel offset or antialias.

    Args:
        images: [B, H, W, C].
        size: new side.

    Returns:
        [B, size, size, C].
    """
    rows, columns = (jnp.asarray(_resize_matrix(side, size)) for side in images.shape[1:3])
    return jnp.einsum("ih,bhwc,jw->bijc", rows, images, columns, precision=jax.lax.Precision.HIGHEST)


def _resize_matrix(old: int, new: int) -> np.ndarray:
    """Weights [new, old] of the resize along one side, float32."""
    at = np.arange(new, dtype=np.float32) * np.float32(old / new)
    low = at.astype(np.int64)
    part = at - low.astype(np.float32)
    matrix = np.zeros((new, old), np.float32)
    np.add.at(matrix, (np.arange(new), low), 1 - part)
    np.add.at(matrix, (np.arange(new), np.minimum(low + 1, old - 1)), part)
    return matrix


def average_pool(x: Array) -> Array:
    """3 x 3 at stride 1; the border averages over the pixels there are."""
    return nn.avg_pool(x, (3, 3), strides=(1, 1), padding="SAME", count_include_pad=False)


def max_pool(x: Array) -> Array:
    """3 x 3 at stride 1."""
    return nn.max_pool(x, (3, 3), strides=(1, 1), padding="SAME")


def shrink(x: Array) -> Array:
    """3 x 3 maximum at stride 2 without padding."""
    return nn.max_pool(x, (3, 3), strides=(2, 2))


class BlockA(nn.Module):
    """At 35 x 35."""

    pool_features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, 35, 35, C] -> [B, 35, 35, 224 + pool_features]."""
        one = ConvBN(64, name="branch1x1")(x)
        five = ConvBN(64, (5, 5), name="branch5x5_2")(ConvBN(48, name="branch5x5_1")(x))
        three = ConvBN(96, (3, 3), name="branch3x3dbl_2")(ConvBN(64, name="branch3x3dbl_1")(x))
        three = ConvBN(96, (3, 3), name="branch3x3dbl_3")(three)
        pool = ConvBN(self.pool_features, name="branch_pool")(average_pool(x))
        return jnp.concatenate([one, five, three, pool], axis=-1)


class BlockB(nn.Module):
    """From 35 x 35 to 17 x 17."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, 35, 35, C] -> [B, 17, 17, C + 480]."""
        three = ConvBN(384, (3, 3), 2, "VALID", name="branch3x3")(x)
        double = ConvBN(96, (3, 3), name="branch3x3dbl_2")(ConvBN(64, name="branch3x3dbl_1")(x))
        double = ConvBN(96, (3, 3), 2, "VALID", name="branch3x3dbl_3")(double)
        return jnp.concatenate([three, double, shrink(x)], axis=-1)


class BlockC(nn.Module):
    """At 17 x 17; also gives its first branch, whose first channels are sFID's features."""

    width: int

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """x [B, 17, 17, C] -> ([B, 17, 17, 768], first branch [B, 17, 17, 192])."""
        width = self.width
        one = ConvBN(192, name="branch1x1")(x)
        seven = ConvBN(width, (1, 7), name="branch7x7_2")(ConvBN(width, name="branch7x7_1")(x))
        seven = ConvBN(192, (7, 1), name="branch7x7_3")(seven)
        double = ConvBN(width, (7, 1), name="branch7x7dbl_2")(ConvBN(width, name="branch7x7dbl_1")(x))
        double = ConvBN(width, (7, 1), name="branch7x7dbl_4")(ConvBN(width, (1, 7), name="branch7x7dbl_3")(double))
        double = ConvBN(192, (1, 7), name="branch7x7dbl_5")(double)
        pool = ConvBN(192, name="branch_pool")(average_pool(x))
        return jnp.concatenate([one, seven, double, pool], axis=-1), one


class BlockD(nn.Module):
    """From 17 x 17 to 8 x 8."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, 17, 17, C] -> [B, 8, 8, C + 512]."""
        three = ConvBN(320, (3, 3), 2, "VALID", name="branch3x3_2")(ConvBN(192, name="branch3x3_1")(x))
        seven = ConvBN(192, (1, 7), name="branch7x7x3_2")(ConvBN(192, name="branch7x7x3_1")(x))
        seven = ConvBN(192, (7, 1), name="branch7x7x3_3")(seven)
        seven = ConvBN(192, (3, 3), 2, "VALID", name="branch7x7x3_4")(seven)
        return jnp.concatenate([three, seven, shrink(x)], axis=-1)


class BlockE(nn.Module):
    """At 8 x 8. In the last of the two the pool is a maximum, which is how the network was released.

    Attributes:
        last: whether this is the last.
    """

    last: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, 8, 8, C] -> [B, 8, 8, 2048]."""
        one = ConvBN(320, name="branch1x1")(x)
        three = ConvBN(384, name="branch3x3_1")(x)
        double = ConvBN(384, (3, 3), name="branch3x3dbl_2")(ConvBN(448, name="branch3x3dbl_1")(x))
        pairs = [
            ConvBN(384, kernel, name=name + end)(h)
            for name, h in (("branch3x3_2", three), ("branch3x3dbl_3", double))
            for kernel, end in (((1, 3), "a"), ((3, 1), "b"))
        ]
        pool = ConvBN(192, name="branch_pool")(max_pool(x) if self.last else average_pool(x))
        return jnp.concatenate([one, *pairs, pool], axis=-1)


class InceptionNet(nn.Module):
    """The network after the resize."""

    @nn.compact
    def __call__(self, x: Array) -> InceptionFeatures:
        """x [B, 299, 299, 3], values (0..255 - 128) / 128."""
        x = ConvBN(32, (3, 3), 2, "VALID", name="Conv2d_1a_3x3")(x)
        x = ConvBN(32, (3, 3), padding="VALID", name="Conv2d_2a_3x3")(x)
        x = shrink(ConvBN(64, (3, 3), name="Conv2d_2b_3x3")(x))
        x = ConvBN(80, name="Conv2d_3b_1x1")(x)
        x = shrink(ConvBN(192, (3, 3), padding="VALID", name="Conv2d_4a_3x3")(x))
        for letter, features in zip("bcd", (32, 64, 64), strict=True):
            x = BlockA(features, name=f"Mixed_5{letter}")(x)
        x = BlockB(name="Mixed_6a")(x)
        branches = {}
        for letter, width in zip("bcde", (128, 160, 160, 192), strict=True):
            x, branches[letter] = BlockC(width, name=f"Mixed_6{letter}")(x)
        x = BlockD(name="Mixed_7a")(x)
        x = BlockE(last=False, name="Mixed_7b")(x)
        x = BlockE(last=True, name="Mixed_7c")(x)
        pooled = x.mean((1, 2))
        spatial = branches["d"][..., :SPATIAL_CHANNELS]  # TensorFlow's mixed_6/conv
        logits = Logits(1008, name="fc")(pooled)
        return InceptionFeatures(pooled, spatial.reshape(len(x), -1), logits)


class Logits(nn.Module):
    """The last layer, whose bias is in the checkpoint and not added."""

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, D] -> [B, features]."""
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.features))
        self.param("bias", nn.initializers.zeros, (self.features,))
        return x @ kernel


@dataclasses.dataclass(frozen=True)
class Inception:
    """FID's network with its parameters beside it.

    Attributes:
        params: tree of arrays.
    """

    params: Params

    def encode_image(self, params: Params, images: Array) -> InceptionFeatures:
        """images [B, H, W, 3] uint8, or float in 0..255; pure."""
        pixels = (resize_tf1(jnp.asarray(images, jnp.float32), SIZE) - 128.0) / 128.0
        return InceptionNet().apply({"params": params}, pixels)


def tensor_name(path: str) -> str:
    """Our parameter path -> the name in the checkpoint."""
    *parts, last = path.split("/")
    return ".".join([*parts, STATISTICS[last] if parts[-1] == "bn" else {"kernel": "weight"}.get(last, last)])


def not_the_original(path: str | Path) -> str:
    """Why a file of weights does not count as FID's own; "" where it does."""
    with safe_open(path, framework="numpy") as file:
        found = (file.metadata() or {}).get("sha256")
    if found is None:
        return f"{path} does not say of which release its weights are, so that nothing is called FID; {REMEDY}"
    if not found.startswith(RELEASE):
        return f"{path} was converted from another file (SHA-256 {found[:8]}), so that nothing is called FID; {REMEDY}"
    return ""


def load_inception(path: str | Path) -> Inception:
    """Reads FID's network from a safetensors file.

    Raises:
        UserError: no such file, or other weights than those of the 2015 graph.
    """
    if not Path(path).is_file():
        raise UserError(f"weights of FID's Inception {str(path)!r} do not exist; {REMEDY}")
    image = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    expected = parameters.shapes(InceptionNet(), image)
    return Inception(pretrained.read_params(path, expected, tensor_name, (r"num_batches_tracked$",)))
