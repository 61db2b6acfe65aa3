"""Where diffusion takes place: in pixels, or in the latents of a frozen autoencoder."""

import functools
import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from contextdiff_jax.errors import UserError
from contextdiff_jax.files import read_json, write_json
from contextdiff_jax.types import Array, Batch, Params

RGB_MAP = "latent_rgb.json"
_FIT_AGAIN = "delete this file and run --mode=encode again"


class Pixels:
    """x0 is the image itself. Field: image [B, H, W, C] in [-1, 1].

    Attributes:
        params: {}.
        size: (height, width) of the pictures.
        shape: (H, W, C) of x0.
    """

    params: Params = {}

    def __init__(self, image_size: int, channels: int):
        self.size = (image_size, image_size)
        self.shape = (*self.size, channels)

    def shape_of(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """(H, W, C) of x0 for pictures of that many pixels."""
        return (*size, self.shape[-1])

    def draw(self, batch: Batch, key: Array) -> Batch:
        """Nothing about an image is random."""
        return {}

    def encode(self, params: Params, batch: Batch) -> Array:
        """x0."""
        return batch["image"]

    def decode(self, params: Params, x0: Array) -> Array:
        """Images in [-1, 1]."""
        return jnp.clip(x0, -1.0, 1.0)

    def to_rgb(self, params: Params, x0: Array) -> Array:
        """What an image encoder is shown: three channels in [-1, 1]."""
        return x0 if x0.shape[-1] == 3 else jnp.broadcast_to(x0, (*x0.shape[:-1], 3))


class Latents:
    """x0 is a sample of a frozen autoencoder's posterior, scaled to about unit variance.

    Fields: latent [B, h, w, 2 C], mean and standard deviation as `--mode=encode` stores them; or image, which is then
    encoded in the step. `draw` adds the noise of the sample, z_eps.

    Attributes:
        params: {"vae": ..., "rgb": ...}.
        size: (height, width) of the pictures, in pixels.
        shape: (h, w, C) of x0.
    """

    def __init__(self, vae: Any, image_size: int, rgb: str, rgb_map: dict[str, np.ndarray] | None):
        if image_size % vae.downscale:
            raise UserError(
                f"config.data.image_size={image_size} is not divisible by the autoencoder's factor {vae.downscale}; "
                f"try {nearest_multiple(image_size, vae.downscale)}"
            )
        if rgb_map and len(rgb_map["kernel"]) != vae.latent_channels:
            raise UserError(
                f"{RGB_MAP} is for {len(rgb_map['kernel'])} latent channels, the autoencoder has "
                f"{vae.latent_channels}; {_FIT_AGAIN}"
            )
        self.vae, self._linear = vae, rgb == "linear"
        self.size = (image_size, image_size)
        self.shape = self.shape_of(self.size)
        self.params = {"vae": vae.params, "rgb": rgb_map or {}}

    def shape_of(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """(h, w, C) of x0 for pictures of that many pixels.

        Raises:
            UserError: the autoencoder cannot halve them as often as it must.
        """
        factor = self.vae.downscale
        if size[0] % factor or size[1] % factor:
            near = tuple(nearest_multiple(side, factor) for side in size)
            raise UserError(f"size={size} is not divisible by the autoencoder's factor {factor}; try {near}")
        return (size[0] // factor, size[1] // factor, self.vae.latent_channels)

    @functools.cached_property
    def digest(self) -> str:
        """What tells one autoencoder's latents from another's: a hash of its weights and its scale."""
        digest = hashlib.sha256(repr(float(self.vae.config.scaling_factor)).encode())
        for leaf in jax.tree.leaves(self.vae.params):
            if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
                leaf = multihost_utils.process_allgather(leaf, tiled=True)  # one at a time, of all processes
            digest.update(np.ascontiguousarray(leaf, np.float32))
        return digest.hexdigest()[:16]

    def draw(self, batch: Batch, key: Array) -> Batch:
        """{"z_eps": [B, h, w, C]}, the noise of the posterior's sample."""
        size = len(batch["latent"] if "latent" in batch else batch["image"])
        return {"z_eps": jax.random.normal(key, (size, *self.shape))}

    def encode(self, params: Params, batch: Batch) -> Array:
        """x0; the posterior's mean where the batch has no z_eps."""
        moments = batch["latent"] if "latent" in batch else self.moments(params, batch["image"])
        mean, std = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return jax.lax.stop_gradient(mean + std * batch["z_eps"] if "z_eps" in batch else mean)

    def moments(self, params: Params, images: Array) -> Array:
        """Scaled mean and standard deviation of the posterior, [B, h, w, 2 C]."""
        return jnp.concatenate(self.vae.moments(params["vae"], images), axis=-1).astype(jnp.float32)

    def decode(self, params: Params, x0: Array) -> Array:
        """Images in [-1, 1]."""
        return jnp.clip(self.vae.decode(params["vae"], x0).astype(jnp.float32), -1.0, 1.0)

    def to_rgb(self, params: Params, x0: Array) -> Array:
        """What an image encoder is shown: the linear map's small picture, or the full decoding."""
        if not self._linear:
            return self.decode(params, x0)
        if not params["rgb"]:
            raise UserError(
                "the adapter looks at latents through a linear map that has not been fitted; run --mode=encode with "
                "--config.space.latents=FOLDER once, or decode in full: --config.space.rgb=decode"
            )
        return jnp.clip(x0 @ params["rgb"]["kernel"] + params["rgb"]["bias"], -1.0, 1.0)


def nearest_multiple(size: int, factor: int) -> int:
    """The positive multiple of `factor` that is nearest to `size`, the larger of two."""
    return max(1, (2 * size + factor) // (2 * factor)) * factor


def fit_rgb_map(latents: np.ndarray, images: np.ndarray) -> dict[str, np.ndarray]:
    """The linear map from latents to colours that fits best, by least squares.

    Args:
        latents: scaled latents [N, h, w, C].
        images: [N, H, W, 3] in [-1, 1], H a multiple of h; averaged over the pixels of each latent.

    Returns:
        {"kernel": [C, 3], "bias": [3]}, float32.
    """
    n, h, w, c = latents.shape
    p = images.shape[1] // h
    colours = images.reshape(n, h, p, w, p, 3).mean(axis=(2, 4)).reshape(-1, 3)
    design = np.concatenate([latents.reshape(-1, c), np.ones((n * h * w, 1))], axis=1)
    # Ridge of a millionth: a constant latent channel (of an untrained autoencoder) would make it singular.
    gram = design.T @ design + 1e-6 * n * h * w * np.eye(c + 1)
    solution = np.linalg.solve(gram, design.T @ colours).astype(np.float32)
    return {"kernel": solution[:-1], "bias": solution[-1]}


def write_rgb_map(rgb_map: dict[str, np.ndarray], folder: str | Path) -> None:
    """Stores the map beside the latents."""
    write_json(rgb_map, Path(folder) / RGB_MAP)


def read_rgb_map(folder: str | Path) -> dict[str, np.ndarray] | None:
    """The stored map, or None where there is none.

    Raises:
        UserError: it is damaged.
    """
    path = Path(folder) / RGB_MAP
    if not folder or not path.is_file():
        return None
    stored = read_json(path, _FIT_AGAIN)
    try:
        rgb_map = {name: np.array(stored[name], np.float32) for name in ("kernel", "bias")}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged (no kernel and bias of numbers); {_FIT_AGAIN}") from error
    kernel, bias = rgb_map.values()
    if kernel.ndim != 2 or kernel.shape[1] != 3 or bias.shape != (3,):
        shapes = f"kernel {list(kernel.shape)} and bias {list(bias.shape)} instead of [C, 3] and [3]"
        raise UserError(f"{path} is damaged ({shapes}); {_FIT_AGAIN}")
    if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
        raise UserError(f"{path} is damaged (not all numbers are finite); {_FIT_AGAIN}")
    return rgb_map
