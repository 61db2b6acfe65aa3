"""Training the judge of `models/recogniser.py` on renders, through the library's one loop."""

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from contextdiff_jax import data, parameters
from contextdiff_jax.data.openmoji import vocabulary
from contextdiff_jax.models.recogniser import Recogniser, RecogniserConfig, save_recogniser
from contextdiff_jax.types import Array, Batch, Params

BLUR_REACH = 2  # pixels to each side


class RecogniserTask:
    """What the training loop sees of the recogniser: a classifier of all (object, background) combinations.

    Its images come from the split "recogniser", which shares no scene with train, val, test or unseen: the
    judge has seen the combinations that are unseen to the models, but no scene that they are tested on.
    """

    frozen: Params = {}

    def __init__(self, config: ConfigDict):
        self.config = config
        words = vocabulary(config.data.preset)
        self.recogniser_config = RecogniserConfig(
            preset=config.data.preset,
            objects=tuple(words.objects),
            backgrounds=tuple(words.backgrounds),
            image_size=config.data.image_size,
            channels=tuple(config.recogniser.channels),
        )
        self.net = self.recogniser_config.net()

    def init(self, key: Array) -> Params:
        """Fresh float32 parameters."""
        size = self.config.data.image_size
        return parameters.init(self.net, key, jnp.zeros((1, size, size, 3)))

    def draw(self, batch: Batch, key: Array) -> Batch:
        """The batch with its images augmented."""
        return batch | {"image": augment(batch["image"], key, **self.config.recogniser.augment)}

    def loss(self, params: Params, frozen: Params, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        """Sum of both heads' cross-entropies, nats [B], and whether each head is right, 0 or 1 [B]."""
        del frozen, key
        object_logits, background_logits = self.net.apply({"params": params}, batch["image"])
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels
        loss = cross_entropy(object_logits, batch["object"])
        loss += cross_entropy(background_logits, batch["background"])
        right_object = object_logits.argmax(-1) == batch["object"]
        right_background = background_logits.argmax(-1) == batch["background"]
        metrics = dict(object_accuracy=right_object, background_accuracy=right_background)
        return loss, {name: value.astype(jnp.float32) for name, value in metrics.items()}

    def train_iterator(self, process_index: int, process_count: int) -> Iterator[dict]:
        """This process's rows of the split "recogniser"; captions are not needed."""
        return data.build(
            self.config.data,
            "recogniser",
            batch_size=self.config.data.batch_size,
            seed=self.config.seed,
            process_index=process_index,
            process_count=process_count,
            augment=True,
            from_records=None,
        )

    def preview(self, params: Params, frozen: Params, key: Array) -> None:
        """A classifier has no pictures to show."""

    def export(self, params: Params, out_dir: str | Path) -> None:
        """Writes what `load_recogniser` reads."""
        save_recogniser(Recogniser(self.recogniser_config, params), out_dir)


def augment(images: Array, key: Array, *, blur: float, noise: float, gain: float, shift: float) -> Array:
    """Makes renders a little like samples of an unfinished generator, each image by its own random amount.

    Args:
        images: [B, H, W, C] in [-1, 1].
        key: randomness.
        blur: largest standard deviation of a Gaussian blur, pixels.
        noise: largest standard deviation of white noise.
        gain: each channel is scaled by a factor in 1 +- gain.
        shift: each channel is shifted by up to +- shift.

    Returns:
        Images of the same shape, clipped to [-1, 1].
    """
    key_blur, key_noise, key_white, key_gain, key_shift = jax.random.split(key, 5)
    per_image, per_channel = (images.shape[0], 1, 1, 1), (images.shape[0], 1, 1, images.shape[3])
    images = gaussian_blur(images, blur * jax.random.uniform(key_blur, per_image))
    images = images * (1 + gain * jax.random.uniform(key_gain, per_channel, minval=-1))
    images = images + shift * jax.random.uniform(key_shift, per_channel, minval=-1)
    std = noise * jax.random.uniform(key_noise, per_image)
    return jnp.clip(images + std * jax.random.normal(key_white, images.shape), -1, 1)


def gaussian_blur(images: Array, sigma: Array) -> Array:
    """[B, H, W, C] blurred by each image's own `sigma` [B, 1, 1, 1] in pixels; sigma = 0 changes nothing."""
    offsets = range(-BLUR_REACH, BLUR_REACH + 1)
    weights = [jnp.exp(-0.5 * (d / jnp.maximum(sigma, 1e-3)) ** 2) for d in offsets]
    total = sum(weights)
    for axis in (1, 2):
        pad = [(BLUR_REACH, BLUR_REACH) if a == axis else (0, 0) for a in range(4)]
        padded = jnp.pad(images, pad, mode="edge")
        size = images.shape[axis]
        images = sum(jax.lax.slice_in_dim(padded, i, i + size, axis=axis) * (w / total) for i, w in enumerate(weights))
    return images
