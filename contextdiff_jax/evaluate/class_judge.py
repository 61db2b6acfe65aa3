"""A judge of classes where none ships: a small classifier trained on the data's own training set.

It shares nothing with the model it judges but that data; how often it is right on real test images is the ceiling.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from contextdiff_jax import data, trees
from contextdiff_jax.data.base import ImageSource
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import composed, read_object
from contextdiff_jax.formats import judges
from contextdiff_jax.formats.kinds import check
from contextdiff_jax.progress import Progress
from contextdiff_jax.training import distributed
from contextdiff_jax.training.checkpoint_format import brief
from contextdiff_jax.types import Array, Params

SEED = 20_231  # not the seed of any model that it judges
BATCH, LEARNING_RATE, WIDTHS, CHUNK = 128, 2e-3, (32, 64), 500
_AGAIN = "delete it, and the evaluation trains another"


class ClassNet(nn.Module):
    """Two convolutions, each halved by its maxima, and two dense layers; 0.4 M parameters for 28 x 28 pixels."""

    num_classes: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, H, W, C] in [-1, 1] -> logits [B, num_classes]."""
        for i, width in enumerate(WIDTHS):
            x = nn.relu(nn.Conv(width, (3, 3), name=f"conv_{i}")(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Dense(128, name="hidden")(x.reshape(len(x), -1)))
        return nn.Dense(self.num_classes, name="class")(x)


@dataclasses.dataclass(frozen=True)
class ClassJudge:
    """A trained classifier.

    Attributes:
        names: of the classes.
        shape: (H, W, C) of the images that it takes.
        params: of `ClassNet`.
        trained: "steps" of its training and the identity of the "data"; {} where it was kept by an older version.
    """

    names: tuple[str, ...]
    shape: tuple[int, int, int]
    params: Params
    trained: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def about(self) -> dict[str, Any]:
        """What tells this judge from others."""
        name = f"classifier of {len(self.names)} classes"
        return {"name": name, "digest": trees.digest(self.params), "resize": "none"} | dict(self.trained)

    @functools.cached_property
    def _labels(self) -> Callable[[Params, Array], Array]:
        net = ClassNet(len(self.names))
        return jax.jit(lambda params, images: net.apply({"params": params}, images).argmax(-1))

    def predict(self, images: np.ndarray) -> np.ndarray:
        """The class of each image, int [N], from [N, H, W, C], float in [-1, 1] or uint8 of 256 levels."""
        found = []
        for start in range(0, len(images), CHUNK):
            part = as_float(images[start : start + CHUNK])
            # Always whole chunks: one compilation for every N.
            padding = np.zeros((CHUNK - len(part), *part.shape[1:]), part.dtype)
            found.append(np.asarray(self._labels(self.params, np.concatenate([part, padding])))[: len(part)])
        return np.concatenate(found)


def as_float(images: np.ndarray, levels: int = 256) -> np.ndarray:
    """Images as networks see them: the first level at -1, the last at 1."""
    if not np.issubdtype(images.dtype, np.integer):
        return np.clip(images, -1.0, 1.0).astype(np.float32)
    return images.astype(np.float32) * np.float32(2 / (levels - 1)) - 1


def train(source: ImageSource, steps: int) -> ClassJudge:
    """The classifier of a training set, after so many steps of Adam on batches that pass through it in random order."""
    net, shape = ClassNet(source.num_classes), source[0]["image"].shape
    init = jax.jit(net.init)(jax.random.key(SEED), jnp.zeros((1, *shape)))
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps))

    @jax.jit
    def step(params: Params, state: optax.OptState, images: Array, labels: Array) -> tuple[Params, optax.OptState]:
        def loss(p: Params) -> Array:
            logits = net.apply({"params": p}, images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    params, rng, order = init["params"], np.random.RandomState(SEED), np.zeros(0, int)
    state = optimizer.init(params)
    with Progress("training the judge", steps, "step") as progress:
        for _ in range(steps):
            while len(order) < BATCH:
                order = np.concatenate([order, rng.permutation(len(source))])
            rows, order = order[:BATCH], order[BATCH:]
            records = [source[int(i)] for i in rows]
            images = as_float(np.stack([r["image"] for r in records]), source.levels)
            params, state = step(params, state, images, np.array([r["label"] for r in records]))
            progress.update()
    return ClassJudge(tuple(source.class_names), tuple(shape), params, _training(source, steps))


def _training(source: ImageSource, steps: int) -> dict[str, Any]:
    """What makes one judge of a data set another."""
    return {"steps": int(steps), "data": source.identity}


def judge_of(config: ConfigDict, folder: Path) -> ClassJudge:
    """The judge that `eval.recogniser` names, else the one in `folder`, which is trained where there is none yet, or
    one that was trained for other steps or on other data: of several processes by the first, and by others that do not
    see its folder.

    Raises:
        UserError: a judge of other classes or images, one that is damaged, one that is named and was trained otherwise,
            or another one in another process.
    """
    return distributed.the_same(lambda: _judge_of(config, folder), _described)


def _described(judge: ClassJudge) -> str:
    return f"judge of {len(judge.names)} classes, digest {trees.digest(judge.params)}"


def _judge_of(config: ConfigDict, folder: Path) -> ClassJudge:
    if config.eval.recogniser and not (Path(config.eval.recogniser) / judges.CONFIG).is_file():
        raise UserError(
            f"config.eval.recogniser={config.eval.recogniser!r} holds no judge; give the folder `judge` of another "
            "run, or leave it empty"
        )
    folder = Path(config.eval.recogniser) if config.eval.recogniser else folder
    source = data.source(config.data, "train")
    wanted = _training(source, config.eval.judge_steps)
    judge = read(folder) if (folder / judges.CONFIG).is_file() else None
    if judge is not None and judge.trained not in ({}, wanted):
        was = f"the judge in {folder} had {judge.trained['steps']} steps on {judge.trained['data']}"
        if config.eval.recogniser:
            asked = f"{wanted['steps']} on {wanted['data']}"
            raise UserError(f"{was}, and config.eval.judge_steps and config.data ask for {asked}; set them to that")
        print(f"{was}: it is trained anew")
        judge = None
    if judge is None:
        print(f"training the judge of the samples: {config.eval.judge_steps} steps on the training set")
        judge = train(source, config.eval.judge_steps)
        write(judge, folder)
    shape = tuple(source[0]["image"].shape)
    spelled = lambda names: [composed(name) for name in names]
    if spelled(judge.names) != spelled(source.class_names) or judge.shape != shape:
        raise UserError(f"the judge in {folder} is of other classes or images ({judge.shape}, now {shape}); {_AGAIN}")
    return judge


def write(judge: ClassJudge, folder: Path) -> None:
    """Writes model.safetensors, and config.json after it."""
    judges.write(folder, judge.params, {"classes": list(judge.names), "shape": list(judge.shape), **judge.trained})


def read(folder: Path) -> ClassJudge:
    """What `write` wrote.

    Raises:
        UserError: it is damaged.
    """
    saved = read_object(folder / judges.CONFIG, _AGAIN)
    kinds = {"classes": tuple[str, ...], "shape": tuple[int, ...], "steps": int, "data": str}
    trained = {key: saved[key] for key in ("steps", "data") if key in saved}
    if not {"classes", "shape"} <= saved.keys() or len(trained) == 1:
        raise UserError(f"the judge in {folder} is damaged (config.json says only {', '.join(saved)}); {_AGAIN}")
    check(f"the judge in {folder}:", saved, kinds)
    names, shape = tuple(saved["classes"]), tuple(saved["shape"])
    try:
        params, expected = judges.read(folder), judges.expected(ClassNet(len(names)), shape)
    except Exception as error:  # safetensors raises its own kinds for a damaged file, Flax for sides of no image
        raise UserError(f"the judge in {folder} cannot be read ({brief(error)}); {_AGAIN}") from error
    if judges.misfits(params, expected):
        raise UserError(f"the judge in {folder} does not fit its config.json; {_AGAIN}")
    return ClassJudge(names, shape, params, trained)
