"""Small pictures: the digits, the embedded scenes and Fashion-MNIST, through the library's own tasks, step and data."""

import base64
import functools
import io
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from configs import cifar10_nll
from contextdiff_jax import data
from contextdiff_jax import task as task_lib
from contextdiff_jax.data import pipeline as data_pipeline
from contextdiff_jax.evaluate import class_judge
from contextdiff_jax.evaluate.alignment import alignment
from contextdiff_jax.evaluate.conditions import spread
from contextdiff_jax.models.recogniser import load_recogniser
from contextdiff_jax.process import schedule
from contextdiff_jax.samplers import sampling
from contextdiff_jax.training.setup import Setup
from contextdiff_jax.training.state import stream
from contextdiff_jax.types import Batch, Params, TrainState
from docs.study import measure
from docs.study.variants import Variant

SHOWN = 20  # samples kept of each run, to look at


@dataclass(frozen=True)
class Size:
    """How much is trained and measured.

    Attributes:
        preset: of configs/cifar10_nll.py.
        overrides: to that preset.
        num_test: held-out images of the bound.
        num_t: times drawn for each of them.
        num_curves: images of the curves over t.
        num_samples: pictures for the measure of quality.
        axes: principal axes of the Frechet distance.
    """

    preset: str
    overrides: dict[str, Any]
    num_test: int
    num_t: int
    num_curves: int
    num_samples: int
    axes: int


_SMALL = {
    "data.num_threads": 2,
    "model.channels": 32,
    "model.num_blocks": 1,
    "model.head_dim": 32,
    "adapter.depth": 1,
    "adapter.num_heads": 2,
    "adapter.width": 32,
    "optim.lr": 3e-3,
    "optim.warmup_steps": 50,
    "ema.decay": 0.99,
    "sample.sampler": "ddpm",
    "sample.num_steps": 50,
}
# For a GPU: a U-Net of patches of 2 x 2, the same for the emoji at 32 x 32 and for Fashion-MNIST
_PATCHES = {
    "data.num_threads": 4,
    "data.prefetch": 4,
    "data.batch_size": 128,
    "model.backbone": "unet",
    "model.patch_size": 2,
    "model.channels": 64,
    "model.multipliers": (1, 2),
    "model.num_blocks": 1,
    "model.self_attention_levels": (1,),
    "model.cross_attention_levels": (1,),
    "model.head_dim": 32,
    "model.dropout": 0.0,
    "adapter.depth": 1,
    "adapter.num_heads": 4,
    "adapter.width": 64,
    "adapter.patch_size": 4,
    "optim.lr": 2e-3,
    "optim.warmup_steps": 50,
    "ema.decay": 0.99,
    "train.num_steps": 800,
}
# The same on two cores: a quarter of the channels' work, and of the pictures
_FEW_CHANNELS = {"data.num_threads": 2, "data.batch_size": 32, "model.channels": 32, "adapter.width": 32}
# Fashion-MNIST at 14 x 14: its tokens and convolutions are on 7 x 7 patches
_FASHION14 = {"data.image_size": 14, "model.multipliers": (1,), "model.channels": 48, "model.head_dim": 24}
_FASHION14 |= {"model.self_attention_levels": (0,), "model.cross_attention_levels": (0,), "adapter.patch_size": 2}
FASHION = os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist")  # the folder of its four files
SIZES = {
    "digits": Size("digits", _SMALL | {"data.batch_size": 32, "train.num_steps": 600}, 180, 32, 60, 200, 16),
    "emoji16": Size("emoji16", _SMALL | {"data.batch_size": 16, "train.num_steps": 400}, 96, 16, 32, 72, 32),
    "emoji32": Size("emoji16", _PATCHES | {"data.image_size": 32}, 256, 16, 32, 256, 32),
    "fashion": Size("fashion", _PATCHES | {"data.path": FASHION}, 500, 16, 32, 500, 32),
    "fashion14": Size("fashion", _PATCHES | _FEW_CHANNELS | _FASHION14 | {"data.path": FASHION}, 500, 16, 32, 500, 32),
    "fashion-small": Size("fashion", _PATCHES | _FEW_CHANNELS | {"data.path": FASHION}, 200, 16, 32, 500, 32),
}
JUDGE_STEPS = 1200  # of the classifier of Fashion-MNIST
JUDGES = Path("runs/study-judge")  # where it is kept, in a folder for each set


def config_of(name: str, size: Size) -> ConfigDict:
    """The library's preset at this study's size."""
    config = cifar10_nll.get_config(size.preset)
    config.update_from_flattened_dict(size.overrides)
    return config


def _setup(config: ConfigDict, seed: int) -> Setup:
    config = config.copy_and_resolve_references()
    config.seed = seed
    return Setup.of(measure.Seeded(task_lib.build(config)))


def run(name: str, variant: Variant, seeds: list[int], size: Size) -> Iterator[tuple[int, dict[str, Any]]]:
    """Trains and measures one variant, compiled once, under each seed."""
    config = variant.apply(config_of(name, size))
    task, test, label = task_lib.build(config), held_out(name, size), asked(name, size.num_samples)
    figures, draw = _measures(task, size)
    for seed, state, frozen, facts in trained(config, seeds):
        pictures = np.asarray(draw(state.ema, frozen, label))
        result = measure.record(*figures(state.ema, frozen, test))
        result |= {"quality": quality(name, size, pictures, label)} | facts
        yield seed, result | ({"picture": png(pictures[:SHOWN])} if seed == 0 else {})


def trained(config: ConfigDict, seeds: list[int]) -> Iterator[tuple[int, TrainState, Params, dict[str, Any]]]:
    """(seed, state, frozen parameters, facts of the run) of each seed; the step is compiled once."""
    setup, step = _setup(config, 0), None
    for seed in seeds:
        start = time.perf_counter()
        of_seed = _setup(config, seed)
        batches, state, guard, last = of_seed.train_iterator(), of_seed.init_state(), setup.init_guard(), []
        for _ in range(config.train.num_steps):
            batch = next(batches)
            batch = setup.put(batch | {"run": np.full(len(batch["image"]), seed, np.int32)})
            step = step or setup.compile(batch)
            state, guard, metrics = step(state, guard, setup.frozen, batch)
            last = [*last[-49:], metrics["loss"]]
        facts = {"last_loss": float(np.mean(last)), "bad_step": int(guard.bad_step)}
        yield seed, state, setup.frozen, facts | {"seconds": round(time.perf_counter() - start, 1)}


def _measures(task: Any, size: Size) -> tuple[Callable, Callable]:
    """Compiled (params, frozen, batch) -> bound and curves, and (params, frozen, label) -> pictures."""
    times, key = jnp.asarray(measure.times(task.schedule.num_timesteps)), stream(0, "measure")

    @jax.jit
    def figures(params: Params, frozen: Params, batch: Batch) -> tuple[Any, Any]:
        some = jax.tree.map(lambda v: v[: size.num_curves], batch)
        bound = measure.bound(task, params, frozen, batch, key, size.num_t)
        return bound, measure.over_time(task, params, frozen, some, key, times)

    @jax.jit
    def draw(params: Params, frozen: Params, label: jax.Array) -> jax.Array:
        keys = jax.random.split(stream(0, "sample"), len(label))
        plan, numbers = sampling.Plan.of(task, task.config.sample), sampling.Numbers.of(task.config.sample)
        context = task.encode(params, frozen, {"label": label})
        return sampling.sample(task, params, frozen, context, keys, numbers, plan=plan)

    return figures, draw


def _data(name: str) -> ConfigDict:
    return config_of(name, SIZES[name]).data


@functools.lru_cache
def _records(name: str, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first images of a split, [N, H, W, C] in [-1, 1], and their labels."""
    source = data.source(_data(name), split)
    records = [source[i] for i in range(min(count, len(source)))]
    batch = data_pipeline.collate(records, None, source.levels)
    return batch["image"], batch["label"]


def _of_clothes(name: str) -> bool:
    return SIZES[name].preset == "fashion"


def held_out(name: str, size: Size) -> Batch:
    """The test images of the bound."""
    image, label = _records(name, "test", size.num_test)
    return {"image": jnp.asarray(image), "label": jnp.asarray(label)}


def asked(name: str, count: int) -> np.ndarray:
    """Labels of the pictures to be drawn: all classes that training has seen, equally often."""
    if name == "digits" or _of_clothes(name):
        return np.arange(count, dtype=np.int32) % 10
    words = data.vocabulary(_data(name).preset)
    pairs = np.array(spread(words.seen, count))
    return (pairs[:, 0] * len(words.backgrounds) + pairs[:, 1]).astype(np.int32)


def quality(name: str, size: Size, pictures: np.ndarray, label: np.ndarray) -> dict[str, float | None]:
    """Share of pictures in which a judge finds their class, and their Frechet distance to the training images."""
    if not np.isfinite(pictures).all():
        return {"accuracy": None, "frechet": None}
    project, real = _axes(name, size.axes)
    return {"accuracy": _judge(name)(pictures, label), "frechet": measure.frechet(project(pictures), real)}


@functools.lru_cache
def _axes(name: str, count: int) -> tuple[Callable, np.ndarray]:
    image, _ = _records(name, "train", 1400)
    project = measure.principal_axes(image, count)
    return project, project(image)


@functools.lru_cache
def _judge(name: str) -> Callable[[np.ndarray, np.ndarray], float]:
    """(pictures, label) -> accuracy, by a network or classifier that has nothing to do with the models."""
    if name == "digits":
        import sklearn.svm

        image, label = _records(name, "train", 1437)
        flat = lambda x: x.reshape(len(x), -1)
        judge = sklearn.svm.SVC(C=10.0).fit(flat(image), label)
        return lambda pictures, asked: float(np.mean(judge.predict(flat(pictures)) == asked))
    if _of_clothes(name):
        config = config_of(name, SIZES[name])
        config.eval.judge_steps = JUDGE_STEPS
        judge = class_judge.judge_of(config, JUDGES / name)
        return lambda pictures, asked: float(np.mean(judge.predict(pictures) == asked))
    preset = _data(name).preset
    judge, backgrounds = load_recogniser(preset), len(data.vocabulary(preset).backgrounds)
    return lambda pictures, asked: alignment(pictures, *np.divmod(asked, backgrounds), judge)["both"]


def reference(name: str, size: Size) -> dict[str, Any]:
    """What real held-out pictures score, and the times of the curves."""
    config = config_of(name, size)
    s = schedule.from_config(config.process)
    times = measure.times(s.num_timesteps)
    return floor(name, size) | {
        "times": times.tolist(),
        "k": np.asarray(s.k)[times].tolist(),
        "unit": "bits per dimension",
        "size": vars(size) | {"test images": len(held_out(name, size)["label"])},
    }


def floor(name: str, size: Size) -> dict[str, Any]:
    """What real held-out pictures score, as many as are drawn from the models."""
    image, label = _records(name, "test", size.num_samples)
    if name == "digits":  # the test split has fewer
        image, label = (
            np.concatenate([a, b])[: size.num_samples]
            for a, b in zip((image, label), _records(name, "val", size.num_samples), strict=True)
        )
    return {"floor": quality(name, size, image, label), "picture": png(image[:SHOWN])}


def png(images: np.ndarray) -> str:
    """Images [N, H, W, C] in [-1, 1] side by side, as a PNG in base 64."""
    strip = np.concatenate(list(images), axis=1)
    strip = np.clip((strip + 1) * 127.5, 0, 255).round().astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(strip[..., 0] if strip.shape[-1] == 1 else strip).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
