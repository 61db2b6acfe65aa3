"""`--mode=encode`: images -> latents on disk, once, with the linear map from latents to colours."""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from contextdiff_jax import data
from contextdiff_jax.conditions.spaces import Latents, fit_rgb_map, nearest_multiple, write_rgb_map
from contextdiff_jax.data import latents
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import check_writable
from contextdiff_jax.pictures import caption_grid
from contextdiff_jax.progress import Progress
from contextdiff_jax.runtime import here
from contextdiff_jax.tasks.records import same_held_out, same_source
from contextdiff_jax.training import distributed

FIT_IMAGES = 64
SHOWN = 8


def encode(config: ConfigDict, space: Latents, folder: Path, factor: int = 1) -> None:
    """Encodes the training and validation images of a config's data, continuing where an earlier call stopped.

    Args:
        config: the whole config; `data` says which images.
        space: the autoencoder.
        folder: gets the files that `data.latents` describes, and reconstructions.png to look at.
        factor: what the network to be trained divides the sides of latents by.

    Raises:
        UserError: the network cannot take the images; the folder cannot be made, or holds latents of other images or
            of another autoencoder.
    """
    _check_images(config, space, factor)
    contents = latents.contents_of(config, space, {})
    with distributed.together():
        _make_folder(folder)
    sources = dict(_splits(config))
    counts = {split: min(len(source), config.space.max_latents or len(source)) for split, source in sources.items()}
    images = {split: source.identity for split, source in sources.items()}
    with _writing(folder), distributed.together():
        stored = latents.write_contents(folder, contents | {"splits": counts, latents.RECORDS: images})
    # An earlier version took the first ones, and what it has begun is ended so.
    some = partial(data.chosen, seed=config.data.seed) if latents.RECORDS in stored else _first
    chosen = {split: some(len(source), counts[split]) for split, source in sources.items()}
    params, moments, size = _on_local_devices(space, min(config.data.batch_size, latents.SHARD_SIZE))
    run = lambda source, indices: _encode_rows(partial(moments, params), source, indices, size, config.data)
    with _writing(folder):
        fitted = [chosen["train"][i] for i in some(counts["train"], FIT_IMAGES)]
        _fit(space, params, run(sources["train"], fitted), folder)
        for split, source in sources.items():
            _encode_split(run, source, chosen[split], folder, split)
    print(f"latents of {', '.join(f'{count} {split}' for split, count in counts.items())} images are in {folder}")


def _first(length: int, count: int) -> list[int]:
    return list(range(min(length, count)))


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """A disk that is full, or may not be written, is said in a line."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"config.space.latents: {str(folder)!r} cannot be written ({error.strerror or error}); make room, or make "
            "it writable, and run --mode=encode again, which continues where it stopped"
        ) from error


def _fit(space: Latents, params: Any, records: Iterator[dict[str, Any]], folder: Path) -> None:
    """Writes the linear map from latents to colours, and what it makes of some of these records."""
    fitted = list(records)
    mean = np.stack([record["latent"] for record in fitted])[..., : space.shape[-1]]
    images = _images(fitted)
    rgb_map = fit_rgb_map(mean, images)
    write_rgb_map(rgb_map, folder)
    shown = data.chosen(len(images), SHOWN, 0)
    _show(space, params, mean[shown], images[shown], rgb_map, folder / "reconstructions.png")


def _on_local_devices(space: Latents, batch_size: int) -> tuple[Any, Any, int]:
    """(the autoencoder's parameters, (parameters, images) -> latents, images at a time): every device of this process
    takes an equal share of each batch."""
    mesh = Mesh(np.array(here().local), ("data",))
    rows, count = NamedSharding(mesh, PartitionSpec("data")), mesh.size
    params = jax.device_put(space.params, NamedSharding(mesh, PartitionSpec()))
    moments = jax.jit(space.moments)
    return params, lambda params, images: moments(params, jax.device_put(images, rows)), -(-batch_size // count) * count


def _check_images(config: ConfigDict, space: Latents, factor: int) -> None:
    """UserError where autoencoder or network cannot take images of this size and kind."""
    if config.data.source == "clip" or config.data.num_frames > 1:
        raise UserError(
            f"--mode=encode stores the latents of single pictures, not of config.data.source={config.data.source!r} "
            f"with config.data.num_frames={config.data.num_frames}; a clip is encoded as it is tuned "
            "(config.space.precomputed=False): leave this mode out"
        )
    size, multiple = config.data.image_size, space.vae.downscale * factor
    if size % multiple:
        raise UserError(
            f"config.data.image_size={size} is no multiple of {multiple} (the autoencoder's {space.vae.downscale} x "
            f"the U-Net's {factor}); try {nearest_multiple(size, multiple)}"
        )
    if (channels := data.describe(config.data).channels) != 3:
        raise UserError(f"config.data.source={config.data.source!r} has {channels} channels; autoencoders take 3")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # a file of that name, no permission
        raise UserError(
            f"config.space.latents: {str(folder)!r} cannot be made a folder ({error.strerror}); name another"
        ) from error
    check_writable(folder, "config.space.latents:", "name another folder")


def _splits(config: ConfigDict) -> Iterator[tuple[str, Any]]:
    yield "train", same_source(config.data, "train")
    split, source = same_held_out(config.data)
    if split != "train":
        yield split, source


def _encode_split(run: Any, source: Any, chosen: Sequence[int], folder: Path, split: str) -> None:
    """Writes the shards of the chosen images that are not there yet; each process does its share."""
    size = latents.SHARD_SIZE
    starts = list(enumerate(range(0, len(chosen), size)))[jax.process_index() :: jax.process_count()]
    shards = [(latents.shard_path(folder, split, i), chosen[k : k + size]) for i, k in starts]
    todo = [(path, rows) for path, rows in shards if not path.is_file()]
    total, left = (sum(len(rows) for _, rows in some) for some in (shards, todo))
    encoded = run(source, [index for _, rows in todo for index in rows])
    with Progress(f"encoding {split}", total, "img", done=total - left) as bar:
        for path, rows in todo:
            latents.write_shard(path, itertools.islice(encoded, len(rows)))
            bar.update(len(rows))


def _encode_rows(
    moments: Any, source: Any, indices: Sequence[int], batch_size: int, cfg_data: ConfigDict
) -> Iterator[dict[str, Any]]:
    """These records, each with its latent: mean and standard deviation, float32 [h, w, 2 C]."""
    read = lambda start: [source[i] for i in indices[start : start + batch_size]]
    for records in data.in_threads(read, range(0, len(indices), batch_size), cfg_data):
        # The last batch is filled up with its own first image: one shape, one compilation.
        encoded = np.asarray(moments(_images(records + records[:1] * (batch_size - len(records)))))
        for record, latent in zip(records, encoded[: len(records)], strict=True):
            yield record | {"latent": latent}


def _images(records: list[dict[str, Any]]) -> np.ndarray:
    """Their images in [-1, 1], [n, H, W, 3]."""
    return np.stack([record["image"] for record in records]).astype(np.float32) / 127.5 - 1.0


def _show(space: Latents, params: Any, mean: np.ndarray, images: np.ndarray, rgb_map: dict, path: Path) -> None:
    """Some images, their decodings and what the adapter's CLIP will see of them."""
    count = len(images)
    decoded = np.asarray(jax.jit(space.decode)(params, mean))
    small = np.clip(mean @ rgb_map["kernel"] + rgb_map["bias"], -1, 1)
    factor = images.shape[1] // small.shape[1]
    small = small.repeat(factor, axis=1).repeat(factor, axis=2)
    rows = {"image": images, "decoded": decoded, "linear map": small}
    captions = [name for name in rows for _ in range(count)]
    caption_grid(np.concatenate(list(rows.values())), captions, path, columns=count)
