"""The judge: a small convolutional classifier that names the object and the background of an embedded scene.

It shares nothing with the models it judges: no parameter, no architecture and no training image with the
context encoder or the denoiser. It has seen every (object, background) combination, so it is as fair on those
that are unseen to them as on the others.
Rebuilt by the two commands in `configs/recogniser.py`.
"""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax import trees
from contextdiff_jax.data.vocabulary import OF_THE_DEMO, vocabulary
from contextdiff_jax.errors import UserError
from contextdiff_jax.formats import judges
from contextdiff_jax.formats.kinds import check
from contextdiff_jax.models.recogniser_settings import GROUP
from contextdiff_jax.types import Array, Params

ASSETS = Path(__file__).parent.parent / "assets"
_KINDS = {  # of the values of config.json
    "preset": str,
    "objects": tuple[str, ...],
    "backgrounds": tuple[str, ...],
    "image_size": int,
    "channels": tuple[int, ...],
}
NOT_AN_IMAGE = -1  # the id given to images with NaN or infinite pixels: right for no caption


class RecogniserNet(nn.Module):
    """Five convolutions with GroupNorm, pooled by mean and maximum, two linear heads; 0.27 M parameters."""

    num_objects: int
    num_backgrounds: int
    channels: tuple[int, int, int] = (64, 96, 128)

    @nn.compact
    def __call__(self, x: Array, features: bool = False) -> Array | tuple[Array, Array]:
        """x [B, H, W, 3] in [-1, 1] -> logits (object [B, num_objects], background [B, num_backgrounds]), or how much
        each response of the first layer varies over the picture [B, F].

        The later layers have learned to overlook blur and noise; the first still sees outlines as they are drawn.
        """
        c1, c2, c3 = self.channels
        layers = ((c1 // 2, 5, 2), (c1, 3, 1), (c2, 3, 2), (c2, 3, 1), (c3, 3, 2))
        for i, (channels, kernel, stride) in enumerate(layers):
            x = nn.Conv(channels, (kernel, kernel), strides=stride, use_bias=False, name=f"conv_{i}")(x)
            x = nn.silu(nn.GroupNorm(num_groups=None, group_size=min(GROUP, channels), name=f"norm_{i}")(x))
            if features:
                return x.std((1, 2))
        x = jnp.concatenate([x.mean((1, 2)), x.max((1, 2))], axis=-1)
        return nn.Dense(self.num_objects, name="object")(x), nn.Dense(
            self.num_backgrounds, name="background"
        )(x)


@dataclasses.dataclass(frozen=True)
class RecogniserConfig:
    """What `config.json` beside the weights holds."""

    preset: str
    objects: tuple[str, ...]
    backgrounds: tuple[str, ...]
    image_size: int
    channels: tuple[int, int, int]

    def net(self) -> RecogniserNet:
        return RecogniserNet(len(self.objects), len(self.backgrounds), self.channels)


@dataclasses.dataclass(frozen=True)
class Recogniser:
    """A trained judge: configuration and parameters."""

    config: RecogniserConfig
    params: Params

    def about(self) -> dict[str, Any]:
        """What tells this judge from others."""
        name, size = f"recogniser {self.config.preset}", self.config.image_size
        return {"name": name, "digest": trees.digest(self.params), "resize": f"antialiased linear, {size}"}

    @functools.cached_property
    def _ids(self) -> Callable[[Params, Array], tuple[Array, Array]]:
        net, size = self.config.net(), self.config.image_size

        @jax.jit
        def ids(params: Params, images: Array) -> tuple[Array, Array]:
            return tuple(logits.argmax(-1) for logits in net.apply({"params": params}, resize(images, size)))

        return ids

    @functools.cached_property
    def _features(self) -> Callable[[Params, Array], tuple[Array]]:
        net, size = self.config.net(), self.config.image_size
        return jax.jit(lambda params, images: (net.apply({"params": params}, resize(images, size), features=True),))

    @functools.cached_property
    def _chances(self) -> Callable[[Params, Array], tuple[Array]]:
        net, size = self.config.net(), self.config.image_size
        return jax.jit(lambda params, images: (jax.nn.softmax(net.apply({"params": params}, resize(images, size))[0]),))

    def predict(self, images: np.ndarray, chunk: int = 128) -> tuple[np.ndarray, np.ndarray]:
        """Names what is on the images.

        Args:
            images: [N, H, W, 3], float in [-1, 1] (clipped) or uint8; resized to the judge's own size.
            chunk: images per forward pass.

        Returns:
            (object ids [N], background ids [N]) int32, `NOT_AN_IMAGE` where a pixel is not finite.
        """
        images = _as_float(images)
        found = np.stack(self._in_chunks(self._ids, images, chunk)).astype(np.int32)
        found[:, ~np.isfinite(images).all(axis=(1, 2, 3))] = NOT_AN_IMAGE
        return found[0], found[1]

    def features(self, images: np.ndarray, chunk: int = 128) -> np.ndarray:
        """What the judge's first layer sees, float32 [N, F]; images as for `predict`, what is not finite
        counts as 0."""
        return self._in_chunks(self._features, _as_float(images), chunk)[0]

    def chances(self, images: np.ndarray, chunk: int = 128) -> np.ndarray:
        """The probability of each object, float32 [N, num_objects]; images as for `features`."""
        return self._in_chunks(self._chances, _as_float(images), chunk)[0]

    def _in_chunks(self, run: Callable[[Params, Array], tuple], images: np.ndarray, chunk: int) -> list[np.ndarray]:
        """Outputs of a jitted function for all images; always whole chunks, one compilation for every N."""
        parts = []
        for start in range(0, max(1, len(images)), chunk):
            part = np.clip(np.nan_to_num(images[start : start + chunk]), -1.0, 1.0)
            padding = np.zeros((chunk - len(part), *part.shape[1:]), part.dtype)
            parts.append([np.asarray(out)[: len(part)] for out in run(self.params, np.concatenate([part, padding]))])
        return [np.concatenate(column) for column in zip(*parts, strict=True)]


def resize(images: Array, size: int) -> Array:
    """[B, H, W, C] -> [B, size, size, C], antialiased linear; the identity at that size."""
    shape = (images.shape[0], size, size, images.shape[3])
    return images if images.shape == shape else jax.image.resize(images, shape, "linear", antialias=True)


def _as_float(images: np.ndarray) -> np.ndarray:
    """[N, H, W, 3] uint8 or float -> float32 in [-1, 1]."""
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3:
        raise UserError(f"images to recognise have shape {images.shape}; give [N, height, width, 3]")
    return images.astype(np.float32) / 127.5 - 1.0 if images.dtype == np.uint8 else images.astype(np.float32)


def save_recogniser(recogniser: Recogniser, folder: str | Path) -> None:
    """Writes model.safetensors and config.json."""
    judges.write(Path(folder), recogniser.params, dataclasses.asdict(recogniser.config))


def ships_recogniser(preset: str) -> bool:
    """Whether the package has a judge of an OpenMoji preset."""
    return _folder_of(preset).is_dir()


def _folder_of(preset: str) -> Path:
    """Where the package has it: one judge for all presets of the demo's objects."""
    return ASSETS / f"recogniser_{'demo' if preset in OF_THE_DEMO else preset}"


def load_recogniser(preset: str, path: str | Path | None = None) -> Recogniser:
    """Reads the judge of an OpenMoji preset.

    Args:
        preset: the OpenMoji preset whose scenes are judged.
        path: a folder that `save_recogniser` wrote; None takes the one shipped in the package.

    Raises:
        UserError: no judge there, damaged or foreign weights, or a judge of another vocabulary.
    """
    folder = Path(path) if path else _folder_of(preset)
    if not (folder / judges.CONFIG).is_file() or not (folder / judges.WEIGHTS).is_file():
        shipped = ", ".join(sorted(p.name.removeprefix("recogniser_") for p in ASSETS.glob("recogniser_*")))
        raise UserError(f"no recogniser for preset '{preset}' in {folder}; shipped for: {shipped or 'none'}")
    try:
        saved = json.loads((folder / judges.CONFIG).read_text(encoding="utf-8"))
        config = RecogniserConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()})
        check("config.json:", saved, _KINDS)
        params = judges.read(folder)
    except Exception as error:  # safetensors and json raise their own kinds for a damaged file
        raise UserError(f"recogniser in {folder} cannot be read ({error}); export it again") from error
    _check_vocabulary(config, preset, folder)
    _check_shapes(config, params, folder)
    return Recogniser(config, params)


def _check_vocabulary(config: RecogniserConfig, preset: str, folder: Path) -> None:
    """Ids mean something only if the judge learned the names in the data's order."""
    words = vocabulary(preset)
    if (config.objects, config.backgrounds) != (tuple(words.objects), tuple(words.backgrounds)):
        raise UserError(
            f"recogniser in {folder} names other objects or backgrounds than preset '{preset}'; "
            "train it again with configs/recogniser.py"
        )


def _check_shapes(config: RecogniserConfig, params: Params, folder: Path) -> None:
    """The weights must be exactly those of the network that config.json describes."""
    try:
        expected = judges.expected(config.net(), (config.image_size, config.image_size, 3))
    except Exception as error:  # Flax has its own for widths that make no network
        raise UserError(f"recogniser in {folder}: its config.json describes no network; export it again") from error
    if wrong := judges.misfits(params, expected):
        named = "; ".join(wrong[:5])
        raise UserError(f"recogniser in {folder} does not fit its config.json ({named}); export it again")
