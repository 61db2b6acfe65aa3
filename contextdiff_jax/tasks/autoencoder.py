"""Training the autoencoder of a latent diffusion model (Rombach et al. 2022), through the library's one loop."""

import dataclasses
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from contextdiff_jax import data
from contextdiff_jax.encoders.vae import Vae, VAEConfig
from contextdiff_jax.errors import UserError
from contextdiff_jax.types import Array, Batch, Params

SHOWN = 8  # images in a preview, each above its reconstruction
SCALE_IMAGES = 256  # whose latents decide the scale


class AutoencoderTask:
    """Squared error of the reconstruction from a sample of the posterior, and a little of its divergence from N(0, I).

    Attributes:
        config: the whole config; section `autoencoder` holds the sizes.
        frozen: nothing.
        vae: the model without parameters, its latents unscaled.

    Raises:
        UserError: sizes that cannot work.
    """

    frozen: Params = {}

    def __init__(self, config: ConfigDict):
        self.config, sizes = config, config.autoencoder
        levels, description = len(sizes.channels), data.describe(config.data)
        self.vae = Vae(
            VAEConfig(
                in_channels=description.channels,
                out_channels=description.channels,
                latent_channels=sizes.latent_channels,
                block_out_channels=tuple(sizes.channels),
                layers_per_block=sizes.num_blocks,
                norm_num_groups=sizes.norm_groups,
                down_block_types=("DownEncoderBlock2D",) * levels,
                up_block_types=("UpDecoderBlock2D",) * levels,
                scaling_factor=1.0,
            ),
            None,
        )
        if config.data.image_size % self.vae.downscale:
            raise UserError(
                f"config.data.image_size={config.data.image_size} is not divisible by {self.vae.downscale}, which "
                f"{levels} levels of config.autoencoder.channels halve it to; give a multiple"
            )

    def train_iterator(self, process_index: int, process_count: int) -> Iterator[dict]:
        """This process's rows of the training batches; captions are not needed."""
        return data.build(
            self.config.data,
            "train",
            batch_size=self.config.data.batch_size,
            seed=self.config.seed,
            process_index=process_index,
            process_count=process_count,
            augment=True,
            from_records=None,
        )

    def init(self, key: Array) -> Params:
        """Fresh float32 parameters."""
        return self.vae.init(key)

    def draw(self, batch: Batch, key: Array) -> Batch:
        """The batch with the noise of the posterior's samples, z_eps [B, h, w, C]."""
        (size, height, width, _), f = batch["image"].shape, self.vae.downscale
        return batch | {"z_eps": jax.random.normal(key, (size, height // f, width // f, self.vae.latent_channels))}

    def loss(self, params: Params, frozen: Params, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        """Loss [B], signal-to-noise ratio in decibels [B] and divergence in nats per latent value [B]."""
        del frozen, key
        images, mean_of = batch["image"], lambda h: jnp.mean(h, axis=tuple(range(1, h.ndim)))
        mean, std = self.vae.moments(params, images)
        error = mean_of((self.vae.decode(params, mean + std * batch["z_eps"]) - images) ** 2)
        # KL(N(mean, std^2) || N(0, 1)) of each latent value
        divergence = mean_of(0.5 * (mean**2 + std**2 - 1.0) - jnp.log(std))
        metrics = {"psnr": 10.0 * jnp.log10(4.0 / error), "kl": divergence}  # images span 2
        return error + self.config.autoencoder.kl_weight * divergence, metrics

    @cached_property
    def _held_out(self) -> np.ndarray:
        """Held-out images in [-1, 1], spread over the set, [n, H, W, C]."""
        source = data.held_out(self.config.data)[1]
        shown = data.chosen(len(source), SCALE_IMAGES, self.config.data.seed)
        images = np.stack([source[i]["image"] for i in shown])
        return images.astype(np.float32) / np.float32((source.levels - 1) / 2) - np.float32(1.0)

    def preview(self, params: Params, frozen: Params, key: Array) -> tuple[np.ndarray, list[str]]:
        """Held-out images and their reconstructions from the posterior's mean."""
        del frozen, key
        images = self._held_out[data.chosen(len(self._held_out), SHOWN, self.config.data.seed)]
        decoded = jax.jit(lambda p, x: self.vae.decode(p, self.vae.encode(p, x)))(params, images)
        captions = ["image"] * len(images) + ["reconstruction"] * len(images)
        return np.concatenate([images, np.clip(np.asarray(decoded), -1.0, 1.0)]), captions

    def export(self, params: Params, out_dir: str | Path) -> None:
        """The model in the layout of diffusers, float16, with the scale that brings latents to unit variance."""
        encode = jax.jit(self.vae.encode)
        size = self.config.data.batch_size
        starts = range(0, len(self._held_out), size)
        latents = np.concatenate([np.asarray(encode(params, self._held_out[i : i + size])) for i in starts])
        config = dataclasses.replace(self.vae.config, scaling_factor=float(1.0 / latents.std()))
        dataclasses.replace(self.vae, config=config).save(out_dir, jax.device_get(params), np.float16)
