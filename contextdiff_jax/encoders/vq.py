"""The vector-quantising autoencoder of latent diffusion in Linen, faithful to diffusers' `VQModel`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from contextdiff_jax.encoders import vae as kl
from contextdiff_jax.errors import UserError
from contextdiff_jax.formats import diffusers_format, hub, pretrained
from contextdiff_jax.types import Array, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQConfig(kl.VAEConfig):
    """A VQModel as config.json describes it; `vq_embed_dim` null is `latent_channels`."""

    CLASS_NAME = "VQModel"
    ONLY = dict(
        act_fn=("silu", "swish"), norm_type=("group",), mid_block_add_attention=(True,), lookup_from_codebook=(False,)
    )

    latent_channels: int = 3
    num_vq_embeddings: int = 256
    vq_embed_dim: int | None = None

    @property
    def encoder_channels(self) -> int:
        """Channels of what the encoder puts out."""
        return self.latent_channels

    @property
    def code_width(self) -> int:
        """Channels of the latents, which are those of a code."""
        return self.vq_embed_dim or self.latent_channels


class VQModel(nn.Module):
    """Both halves, the 1x1 convolutions at the latents and the codebook, unscaled.

    Attributes:
        config: sizes.
        dtype: type of the computation; parameters are float32.
    """

    config: VQConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        config, conv = self.config, lambda channels: nn.Conv(channels, (1, 1), dtype=self.dtype)
        self.encoder = kl.Encoder(config, self.dtype)
        self.decoder = kl.Decoder(config, self.dtype)
        self.quant_conv = conv(config.code_width)
        self.post_quant_conv = conv(config.latent_channels)
        self.quantize = nn.Embed(config.num_vq_embeddings, config.code_width)

    def encode(self, images: Array) -> Array:
        """images [B, H, W, 3] in [-1, 1] -> latents [B, H / f, W / f, C] float32, not quantised.

        Raises:
            UserError: sides that are not multiples of f, or another number of channels.
        """
        kl.check_images(self.config, images.shape)
        return self.quant_conv(self.encoder(images.astype(self.dtype))).astype(jnp.float32)

    def nearest(self, z: Array) -> Array:
        """The code of the codebook that is nearest to each latent of z [B, h, w, C]; gradients pass as if it were the
        latent itself."""
        codes = jnp.asarray(self.quantize.embedding, jnp.float32)

        def of_row(z: Array) -> Array:
            # |z - e|^2 without |z|^2, which is the same for every code; near codes differ by less than bfloat16 holds.
            products = jnp.matmul(z, codes.T, precision=jax.lax.Precision.HIGHEST)
            return jnp.argmin(jnp.sum(codes**2, axis=1) - 2.0 * products, axis=-1)

        # Row by row of all pictures: the distances of all latents to all codes would be gigabytes.
        numbers = jnp.moveaxis(jax.lax.map(of_row, jnp.moveaxis(z, 1, 0)), 0, 1)
        return z + jax.lax.stop_gradient(codes[numbers] - z)

    def decode(self, z: Array) -> Array:
        """z [B, h, w, C] -> images [B, h f, w f, 3], about in [-1, 1], float32; z is quantised first.

        Raises:
            UserError: another number of channels.
        """
        width = self.config.code_width
        if z.shape[-1] != width:
            raise UserError(f"the autoencoder cannot decode {z.shape[-1]} channels; give latents of {width}")
        quantised = self.nearest(z.astype(jnp.float32)).astype(self.dtype)
        return self.decoder(self.post_quant_conv(quantised)).astype(jnp.float32)

    def __call__(self, images: Array) -> Array:
        """The reconstruction; initialises every parameter."""
        return self.decode(self.encode(images))


@dataclasses.dataclass(frozen=True)
class Vq(kl.Vae):
    """A VQModel with its parameters beside it, used like the other autoencoder: its posterior has no width."""

    config: VQConfig

    @property
    def module(self) -> VQModel:
        """The Linen module."""
        return VQModel(self.config, self.dtype)

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return self.config.code_width

    def moments(self, params: Params, images: Array) -> tuple[Array, Array]:
        """The scaled latents before quantisation, and zeros, each [B, H / f, W / f, C] float32."""
        z = self.module.apply({"params": params}, images, method="encode") * self.config.scaling_factor
        return z, jnp.zeros_like(z)

    def save(self, folder: str | Path, params: Params, dtype: jnp.dtype = jnp.float32) -> None:
        """Writes the model in the layout of diffusers."""
        pretrained.write_params(folder, params, tensor_name, self.config.to_dict(), dtype, diffusers_format.STEM)


def tensor_name(path: str) -> str | tuple[str, ...]:
    """Our parameter path -> the name in a VQModel checkpoint."""
    return "quantize.embedding.weight" if path == "quantize/embedding" else kl.tensor_name(path)


def load_vq(
    folder: str | Path,
    dtype: jnp.dtype = jnp.float32,
    *,
    weights: bool = True,
    shardings: Callable[[Params], Any] | None = None,
) -> Vq:
    """Reads a VQModel; arguments and errors as `vae.load_vae`."""
    folder = hub.local(folder)
    return Vq(VQConfig.from_dict(pretrained.read_config(folder)), None, dtype).read(
        folder, tensor_name, weights, shardings
    )


def part_of(pipeline: Path) -> Path:
    """The autoencoder's folder in a pipeline: `vae`, or `vqvae` as latent diffusion's pipelines have it."""
    return pipeline / "vqvae" if (pipeline / "vqvae").is_dir() and not (pipeline / "vae").is_dir() else pipeline / "vae"


def load(pipeline: Path, dtype: jnp.dtype = jnp.float32, **how: Any) -> Any:
    """The autoencoder of a pipeline's folder, of the kind that its config.json names; `how` as for `vae.load_vae`.

    Raises:
        UserError: there is none, or one of another kind, or weights that do not fit.
    """
    folder = part_of(pipeline)
    return (load_vq if isinstance(config_of(folder), VQConfig) else kl.load_vae)(folder, dtype, **how)


def config_of(folder: Path) -> kl.VAEConfig:
    """An autoencoder's config.json, of either kind.

    Raises:
        UserError: there is none, or one of another kind.
    """
    content = pretrained.read_config(folder)
    quantises = content.get("_class_name") == VQConfig.CLASS_NAME
    return (VQConfig if quantises else kl.VAEConfig).from_dict(content)
