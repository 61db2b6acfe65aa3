"""The autoencoder of Stable Diffusion in Linen, faithful to diffusers' `AutoencoderKL`."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from contextdiff_jax import parameters
from contextdiff_jax.errors import UserError
from contextdiff_jax.formats import diffusers_format, hub, pretrained
from contextdiff_jax.formats.diffusers_format import DiffusersConfig
from contextdiff_jax.layers import Attention, GroupNorm, ResBlock, upsample
from contextdiff_jax.types import Array, Params

EPSILON = 1e-6  # of every group norm
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAEConfig(DiffusersConfig):
    """An AutoencoderKL as config.json describes it."""

    CLASS_NAME = "AutoencoderKL"
    ONLY = dict(
        act_fn=("silu", "swish"),
        shift_factor=(None, 0.0),
        latents_mean=(None,),
        latents_std=(None,),
        use_quant_conv=(True,),
        use_post_quant_conv=(True,),
        mid_block_add_attention=(True,),
    )
    UNUSED = ("sample_size", "force_upcast")

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    norm_num_groups: int = 32
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    scaling_factor: float = 0.18215

    def __post_init__(self):
        levels = len(self.block_out_channels)
        for key, block in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            if getattr(self, key) != (block,) * levels:
                raise self.unsupported(key, getattr(self, key), f"{levels} times {block!r}, as block_out_channels asks")
        if any(width % self.norm_num_groups for width in self.block_out_channels):
            accepted = f"multiples of norm_num_groups={self.norm_num_groups}"
            raise self.unsupported("block_out_channels", self.block_out_channels, accepted)
        if self.scaling_factor <= 0:
            raise self.unsupported("scaling_factor", self.scaling_factor, "a positive number")

    @property
    def encoder_channels(self) -> int:
        """Channels of what the encoder puts out: mean and log variance."""
        return 2 * self.latent_channels

    @property
    def downscale(self) -> int:
        """Side of the block of pixels that one latent stands for."""
        return 2 ** (len(self.block_out_channels) - 1)


class VAEBlock(nn.Module):
    """Residual blocks of one level, then the way to the next: a convolution that halves or doubles the sides.

    Attributes:
        config: sizes.
        channels: of the output.
        num_layers: residual blocks.
        resample: "down", "up" or "" for the last level.
        dtype: type of the computation.
    """

    config: VAEConfig
    channels: int
    num_layers: int
    resample: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, h: Array) -> Array:
        """[B, H, W, C] -> [B, H', W', channels]."""
        for i in range(self.num_layers):
            h = res_block(self.config, self.channels, self.dtype, f"resnets_{i}")(h)
        conv = lambda name, **how: nn.Conv(self.channels, (3, 3), dtype=self.dtype, name=name, **how)
        if self.resample == "down":
            h = conv("downsamplers_0_conv", strides=(2, 2), padding=((0, 1), (0, 1)))(h)
        elif self.resample == "up":
            h = conv("upsamplers_0_conv")(upsample(h))
        return h


class MidBlock(nn.Module):
    """Residual block, self-attention over all positions with one head, residual block."""

    config: VAEConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, h: Array) -> Array:
        """[B, H, W, C] -> the same shape."""
        width = h.shape[-1]
        h = res_block(self.config, width, self.dtype, "resnets_0")(h)
        normed = GroupNorm(self.dtype, self.config.norm_num_groups, EPSILON, name="attentions_0_group_norm")(h)
        tokens = normed.reshape(h.shape[0], -1, width)
        h = h + Attention(1, self.dtype, bias=True, name="attentions_0")(tokens).reshape(h.shape)
        return res_block(self.config, width, self.dtype, "resnets_1")(h)


class Encoder(nn.Module):
    """Images to the moments of latents."""

    config: VAEConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """[B, H, W, in_channels] -> [B, H / f, W / f, encoder_channels]."""
        config, widths = self.config, self.config.block_out_channels
        h = nn.Conv(widths[0], (3, 3), dtype=self.dtype, name="conv_in")(images)
        for i, width in enumerate(widths):
            resample = "down" if i < len(widths) - 1 else ""
            h = VAEBlock(config, width, config.layers_per_block, resample, self.dtype, name=f"down_blocks_{i}")(h)
        h = MidBlock(config, self.dtype, name="mid_block")(h)
        return output(config, h, config.encoder_channels, self.dtype)


class Decoder(nn.Module):
    """Latents to images."""

    config: VAEConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """[B, h, w, latent_channels] -> [B, h f, w f, out_channels]."""
        config, widths = self.config, self.config.block_out_channels[::-1]
        h = nn.Conv(widths[0], (3, 3), dtype=self.dtype, name="conv_in")(z)
        h = MidBlock(config, self.dtype, name="mid_block")(h)
        for i, width in enumerate(widths):
            resample = "up" if i < len(widths) - 1 else ""
            h = VAEBlock(config, width, config.layers_per_block + 1, resample, self.dtype, name=f"up_blocks_{i}")(h)
        return output(config, h, config.out_channels, self.dtype)


def res_block(config: VAEConfig, channels: int, dtype: jnp.dtype, name: str) -> ResBlock:
    """A residual block without an embedding."""
    return ResBlock(channels, 0.0, dtype, config.norm_num_groups, EPSILON, film=False, conv_skip=True, name=name)


def output(config: VAEConfig, h: Array, channels: int, dtype: jnp.dtype) -> Array:
    """The end of either half, inside its module: norm, SiLU, convolution."""
    h = nn.silu(GroupNorm(dtype, config.norm_num_groups, EPSILON, name="conv_norm_out")(h))
    return nn.Conv(channels, (3, 3), dtype=dtype, name="conv_out")(h)


def check_images(config: VAEConfig, shape: tuple[int, ...]) -> None:
    """Raises UserError for images [B, H, W, C] that cannot be encoded."""
    factor, (height, width, channels) = config.downscale, shape[1:]
    if height % factor or width % factor or channels != config.in_channels:
        raise UserError(
            f"the autoencoder cannot encode images of {height} x {width} x {channels}; give sides divisible by "
            f"{factor} and {config.in_channels} channels"
        )


class AutoencoderKL(nn.Module):
    """Both halves and the 1x1 convolutions at the latents, unscaled.

    Attributes:
        config: sizes.
        dtype: type of the computation; parameters are float32.
    """

    config: VAEConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        conv = lambda channels: nn.Conv(channels, (1, 1), dtype=self.dtype)
        self.encoder = Encoder(self.config, self.dtype)
        self.decoder = Decoder(self.config, self.dtype)
        self.quant_conv = conv(2 * self.config.latent_channels)
        self.post_quant_conv = conv(self.config.latent_channels)

    def encode(self, images: Array) -> tuple[Array, Array]:
        """images [B, H, W, 3] in [-1, 1] -> (mean, log variance) of the posterior, each [B, H / f, W / f, C] float32.

        Raises:
            UserError: sides that are not multiples of f, or another number of channels.
        """
        check_images(self.config, images.shape)
        moments = self.quant_conv(self.encoder(images.astype(self.dtype))).astype(jnp.float32)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def decode(self, z: Array) -> Array:
        """z [B, h, w, C] -> images [B, h f, w f, 3], about in [-1, 1], float32.

        Raises:
            UserError: another number of channels.
        """
        if z.shape[-1] != self.config.latent_channels:
            raise UserError(
                f"the autoencoder cannot decode {z.shape[-1]} channels; give latents of {self.config.latent_channels}"
            )
        return self.decoder(self.post_quant_conv(z.astype(self.dtype))).astype(jnp.float32)

    def __call__(self, images: Array) -> Array:
        """The reconstruction from the posterior's mean; initialises every parameter."""
        return self.decode(self.encode(images)[0])


@dataclasses.dataclass(frozen=True)
class Vae:
    """An autoencoder with its parameters beside it: every function takes the parameters as an argument.

    Latents are scaled by the config's scaling_factor to about unit variance, as the U-Net takes them.

    Attributes:
        config: sizes.
        params: float32 numpy tree.
        dtype: type of the computation.
    """

    config: VAEConfig
    params: Params
    dtype: jnp.dtype = jnp.float32

    @property
    def module(self) -> AutoencoderKL:
        """The Linen module."""
        return AutoencoderKL(self.config, self.dtype)

    @property
    def downscale(self) -> int:
        """Side of the block of pixels that one latent stands for."""
        return self.config.downscale

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return self.config.latent_channels

    def init(self, key: Array) -> Params:
        """Fresh parameters; pure."""
        side = self.downscale
        return parameters.init(self.module, key, jnp.zeros((1, side, side, self.config.in_channels)))

    def moments(self, params: Params, images: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the scaled latents, each [B, H / f, W / f, C] float32."""
        mean, logvar = self.module.apply({"params": params}, images, method="encode")
        return mean * self.config.scaling_factor, jnp.exp(0.5 * logvar) * self.config.scaling_factor

    def encode(self, params: Params, images: Array, key: Array | None = None) -> Array:
        """images [B, H, W, 3] in [-1, 1] -> scaled latents; the posterior's mean without a key, a sample with one."""
        mean, std = self.moments(params, images)
        return mean if key is None else mean + std * jax.random.normal(key, mean.shape)

    def decode(self, params: Params, latents: Array) -> Array:
        """Scaled latents [B, h, w, C] -> images [B, h f, w f, 3] float32, about in [-1, 1]."""
        return self.module.apply({"params": params}, latents / self.config.scaling_factor, method="decode")

    def read(
        self, folder: Path, names: pretrained.NameMap, weights: bool, shardings: Callable[[Params], Any] | None
    ) -> Self:
        """The model with the parameters of a folder; see `load_vae`."""
        expected = jax.eval_shape(self.init, jax.random.key(0))
        if not weights:
            return dataclasses.replace(self, params=expected)
        places = shardings(expected) if shardings else None
        return dataclasses.replace(self, params=pretrained.read_params(folder, expected, names, shardings=places))

    def save(self, folder: str | Path, params: Params, dtype: jnp.dtype = jnp.float32) -> None:
        """Writes the model in the layout of diffusers."""
        pretrained.write_params(folder, params, tensor_name, self.config.to_dict(), dtype, diffusers_format.STEM)


def tensor_name(path: str) -> str | tuple[str, ...]:
    """Our parameter path -> the name in an AutoencoderKL checkpoint; for attention also the one of old checkpoints."""
    name = diffusers_format.tensor_name(path)
    old = re.sub(r"(attentions\.\d+\.)(to_[qkv]|to_out\.0)", lambda match: match[1] + OLD_NAMES[match[2]], name)
    return name if old == name else (name, old)


def load_vae(
    folder: str | Path,
    dtype: jnp.dtype = jnp.float32,
    *,
    weights: bool = True,
    shardings: Callable[[Params], Any] | None = None,
) -> Vae:
    """Reads an autoencoder.

    Args:
        folder: in the layout of diffusers, `vae` of a pipeline's folder.
        dtype: type of the computation.
        weights: whether to read the parameters; else they are shapes.
        shardings: as for `encoders.load_text_encoder`. The parameters stay float32: they tell latents from others.

    Raises:
        UserError: no such folder, another kind of model, weights that do not fit.
    """
    folder = hub.local(folder)
    return Vae(VAEConfig.from_dict(pretrained.read_config(folder)), None, dtype).read(
        folder, tensor_name, weights, shardings
    )
