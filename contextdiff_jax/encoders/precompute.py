"""`--mode=encode`: images -> latents on disk, once, with the linear map from latents to colours."""

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from contextdiff_jax import data
from contextdiff_jax.data import latents
from contextdiff_jax.encoders.spaces import Latents, fit_rgb_map, write_rgb_map
from contextdiff_jax.errors import UserError
from contextdiff_jax.pictures import caption_grid

SHARD_SIZE = 256  # images: what a kill can cost
FIT_IMAGES = 64
SHOWN = 8


def encode(config: ConfigDict, space: Latents, folder: Path) -> None:
    """Encodes the training and validation images of a config's data, continuing where an earlier call stopped.

    Args:
        config: the whole config; `data` says which images.
        space: the autoencoder.
        folder: gets the files that `data.latents` describes, and reconstructions.png to look at.

    Raises:
        UserError: the folder holds latents of other images or of another autoencoder.
    """
    if config.data.horizontal_flip:
        raise UserError("config.data.horizontal_flip=True cannot act on stored latents; set it to False")
    sources = dict(_splits(config))
    height, width, channels = space.shape
    latents.write_contents(
        folder,
        {
            "data": f"{config.data.source} {config.data.preset or config.data.path}",
            "image_size": config.data.image_size,
            "shape": [height, width, 2 * channels],
            "autoencoder": _digest(space),
            "shard_size": SHARD_SIZE,
            "splits": {split: len(source) for split, source in sources.items()},
        },
    )
    params = jax.device_put(space.params)
    moments = jax.jit(partial(space.moments, params))
    size = min(config.data.batch_size, SHARD_SIZE)
    run = lambda source, indices: _encode_rows(moments, source, indices, size)

    fitted = list(range(min(FIT_IMAGES, len(sources["train"]))))
    mean = run(sources["train"], fitted)[..., :channels]
    images = np.stack([_image(sources["train"], i) for i in fitted])
    rgb_map = fit_rgb_map(mean, images)
    write_rgb_map(rgb_map, folder)
    _show(space, params, mean, images, rgb_map, folder / "reconstructions.png")
    for split, source in sources.items():
        _encode_split(run, source, folder, split)
    print(f"latents of {', '.join(f'{len(s)} {name}' for name, s in sources.items())} images are in {folder}")


def _splits(config: ConfigDict) -> Iterator[tuple[str, Any]]:
    yield "train", data.source(config.data, "train")
    split, source = data.held_out(config.data)
    if split != "train":
        yield split, source


def _encode_split(run: Any, source: Any, folder: Path, split: str) -> None:
    """Writes the shards that are not there yet; with several processes each takes its share."""
    starts = list(enumerate(range(0, len(source), SHARD_SIZE)))[jax.process_index() :: jax.process_count()]
    todo = [(i, start) for i, start in starts if not latents.shard_path(folder, split, i).is_file()]
    done = sum(min(SHARD_SIZE, len(source) - start) for i, start in starts if (i, start) not in todo)
    with tqdm(total=len(source), initial=done, desc=f"encode {split}", unit="img") as bar:
        for number, start in todo:
            rows = range(start, min(start + SHARD_SIZE, len(source)))
            encoded = run(source, rows)
            records = [source[i] | {"latent": latent} for i, latent in zip(rows, encoded, strict=True)]
            latents.write_shard(latents.shard_path(folder, split, number), records)
            bar.update(len(rows))


def _encode_rows(moments: Any, source: Any, indices: Any, batch_size: int) -> np.ndarray:
    """Mean and standard deviation of these images' latents, float32 [n, h, w, 2 C]."""
    out, indices = [], list(indices)
    for start in range(0, len(indices), batch_size):
        part = indices[start : start + batch_size]
        # The last batch is filled up with its own first image: one shape, one compilation.
        images = np.stack([_image(source, i) for i in part + part[:1] * (batch_size - len(part))])
        out.append(np.asarray(moments(images))[: len(part)])
    return np.concatenate(out)


def _image(source: Any, index: int) -> np.ndarray:
    """An image in [-1, 1]."""
    return source[index]["image"].astype(np.float32) / 127.5 - 1.0


def _digest(space: Latents) -> str:
    """What tells one autoencoder from another: a hash of its weights."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(space.params["vae"]):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def _show(space: Latents, params: Any, mean: np.ndarray, images: np.ndarray, rgb_map: dict, path: Path) -> None:
    """Some images, their decodings and what the adapter's CLIP will see of them."""
    count = min(SHOWN, len(images))
    decoded = np.asarray(jax.jit(space.decode)(params, mean[:count]))
    small = np.clip(mean[:count] @ rgb_map["kernel"] + rgb_map["bias"], -1, 1)
    factor = images.shape[1] // small.shape[1]
    small = small.repeat(factor, axis=1).repeat(factor, axis=2)
    rows = {"image": images[:count], "decoded": decoded, "linear map": small}
    captions = [name for name in rows for _ in range(count)]
    caption_grid(np.concatenate(list(rows.values())), captions, path, columns=count)
