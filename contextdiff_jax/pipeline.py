"""A trained model in three lines: load, sample, look."""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from contextdiff_jax import config as config_lib
from contextdiff_jax import sampling, saved, trees
from contextdiff_jax import task as task_lib
from contextdiff_jax.data.images import asked_for, square
from contextdiff_jax.errors import UserError
from contextdiff_jax.pictures import to_uint8
from contextdiff_jax.runtime import here
from contextdiff_jax.tasks.diffusion import DiffusionTask
from contextdiff_jax.training.state import initial_params, stream
from contextdiff_jax.types import Array, Params

PROGRAMS = 16  # compiled samplers that a pipeline keeps
Picture = Image.Image | str | Path | np.ndarray


class Pipeline:
    """Text to images with a trained contextual diffusion model.

        pipe = cdx.Pipeline.load("runs/demo")
        images = pipe.sample(["a red apple on a blue background"], key=0)

    Attributes:
        task: the assembled model.
        params: {"denoiser", "adapter"}, the averaged ones unless asked otherwise.
        frozen: the encoders' parameters.
        step: the training step they come from.
    """

    def __init__(self, task: DiffusionTask, params: Params, step: int):
        self.task, self.params, self.step = task, jax.device_put(params), step
        self.frozen = jax.device_put(task.frozen)
        self._program = lru_cache(maxsize=PROGRAMS)(self._compile)

    @classmethod
    def load(
        cls, path: str | Path, *, step: int | None = None, ema: bool = True, config: ConfigDict | None = None
    ) -> "Pipeline":
        """Reads a trained model: a run's newest intact checkpoint (or that of `step`), an export, or a Stable Diffusion
        1.x or 2.x folder in the diffusers layout as it is.

        Args:
            path: the run's workdir, or the folder.
            step: training step; None takes the newest.
            ema: the exponential moving average of the parameters, or the last ones; of a run only, an export holds one.
            config: None takes the run's own; otherwise one of the same model, whose `sample` and `eval` sections count.

        Raises:
            UserError: no such folder, no checkpoint, not a diffusion run, or another model's config.
        """
        model = saved.find(path, step=step, ema=ema, config=config)
        task = task_lib.build(model.config)
        expected = jax.eval_shape(task.init, stream(model.config.seed, "init"))
        return cls(task, _with_untrained(task, expected, model.read(expected)), model.step)

    @property
    def config(self) -> ConfigDict:
        """The config of the training run."""
        return self.task.config

    def sample(self, prompts: str | int | Sequence[str], **options: Any) -> list[Image.Image]:
        """One picture per prompt; the options are those of `sample_arrays`."""
        return self.to_images(self.sample_arrays(prompts, **options))

    @staticmethod
    def to_images(arrays: np.ndarray) -> list[Image.Image]:
        """Pictures from [N, H, W, 3] or [N, H, W, 1] in [-1, 1]."""
        return [Image.fromarray(pixels) for pixels in to_uint8(arrays)]

    def sample_arrays(
        self,
        prompts: str | int | Sequence[str],
        *,
        key: int | Array = 0,
        steps: int | None = None,
        guidance: float | None = None,
        sampler: str | None = None,
        image: Picture | Sequence[Picture] | None = None,
        strength: float = 0.8,
        **overrides: Any,
    ) -> np.ndarray:
        """Pictures as float32 [N, H, W, C] in [-1, 1].

        Args:
            prompts: one or several captions, or classes; how many pictures, where the model takes no prompt.
            key: seed or jax key; picture i uses fold_in(key, i).
            steps: sampling steps; None takes config.sample.num_steps.
            guidance: guidance scale, at most 1 for none; None takes config.sample.guidance.
            sampler: ddpm, ddim, heun or dpmpp_2m; None takes config.sample.sampler.
            image: start from this picture (PIL, path, or array uint8 or float in [-1, 1]), or from one per prompt,
                cropped to the centre and resized: img2img.
            strength: how far it is noised first, by the contextual forward process: the share of the steps taken.
            **overrides: any other key of the config's `sample` section, e.g. adapter=False, eta=1.0, batch_size=16.

        Raises:
            UserError: empty prompts, unknown options, more steps than the process has.
        """
        prompts = self.check_prompts(prompts)
        given = dict(num_steps=steps, guidance=guidance, sampler=sampler)
        given = {k: v for k, v in given.items() if v is not None} | overrides
        starts = None if image is None else self._pictures(image, len(prompts))
        run, numbers, batch_size = self._sampler(given, None if starts is None else strength)
        # A power of two keeps the number of compilations small when the number of prompts varies.
        batch_size = min(batch_size, 1 << (len(prompts) - 1).bit_length())
        root = jax.random.key(check_seed(key)) if isinstance(key, int | np.integer) else key
        condition = self.task.parts.condition.read(prompts)
        keys = jax.vmap(partial(jax.random.fold_in, root))(np.arange(len(prompts)))
        images = []
        for start in range(0, len(prompts), batch_size):
            rows = np.minimum(np.arange(start, start + batch_size), len(prompts) - 1)
            part, start_from = {k: v[rows] for k, v in condition.items()}, None if starts is None else starts[rows]
            out = run(self.params, self.frozen, part, keys[rows], numbers, start_from)
            images.append(np.asarray(out))
        return np.concatenate(images)[: len(prompts)]

    def check_prompts(self, prompts: str | int | Sequence[str]) -> list[str]:
        """The prompts as a list, one per picture.

        Raises:
            UserError: none, empty ones, or prompts for a model that takes none.
        """
        if self.task.parts.condition.takes_prompts:
            prompts = [prompts] if isinstance(prompts, str) else prompts
            if isinstance(prompts, int):
                raise UserError(f"prompts={prompts}: this model draws what it is asked for; pass one or several texts")
            check_prompts(list(prompts))
            return list(prompts)
        if not isinstance(prompts, int | np.integer) or prompts < 1:
            raise UserError(f"prompts={prompts!r}: this model takes no prompt; pass how many pictures, e.g. 16")
        return [""] * int(prompts)

    def _pictures(self, image: Picture | Sequence[Picture], count: int) -> np.ndarray:
        """Pictures to start from, float32 [count, H, W, 3] in [-1, 1]."""
        one = isinstance(image, str | Path | Image.Image) or (isinstance(image, np.ndarray | Array) and image.ndim < 4)
        images = [image] if one else list(image)
        if len(images) not in (1, count):
            raise UserError(f"{len(images)} images for {count} prompts; give one for all, or one for each")
        size = self.config.data.image_size
        arrays = np.stack([as_array(picture, size) for picture in images])
        if self.config.space.kind == "pixels" and self.task.sample_shape[-1] == 1:
            arrays = arrays.mean(axis=-1, keepdims=True)
        return np.broadcast_to(arrays, (count, *arrays.shape[1:]))

    def _sampler(self, overrides: dict[str, Any], strength: float | None = None):
        """The jitted sampler under these overrides of config.sample, its numbers and its batch size."""
        config = ConfigDict(self.config.to_dict())
        for name, value in overrides.items():
            if name not in config.sample:
                accepted = ", ".join(sorted(config.sample))
                raise UserError(f"sampling option {name}={value!r} is unknown; accepted: {accepted}")
            try:
                config.sample[name] = value
            except TypeError as error:
                raise UserError(f"sampling option {name}={value!r} has the wrong type: {error}") from error
        config_lib.check(config)
        if strength is not None:
            check_strength(strength, config.sample.num_steps)
        plan = sampling.Plan.of(self.task, config.sample, 1.0 if strength is None else strength)
        return self._program(plan), sampling.Numbers.of(config.sample), config.sample.batch_size

    def _compile(self, plan: sampling.Plan) -> Callable[..., Array]:
        return jax.jit(partial(sampling.sample, self.task, plan=plan))


def _with_untrained(task: DiffusionTask, expected: Params, params: Params) -> Params:
    """Parameters that were read together with those that training left as they were."""
    have = set(trees.names(params))
    place = jax.sharding.SingleDeviceSharding(here().devices[0])
    places = jax.tree.map(lambda _: place, trees.select(expected, lambda name: name not in have))
    return trees.merge(initial_params(task, places, task.config.seed) if places else {}, params)


def check_strength(strength: float, num_steps: int) -> None:
    """Refuses a strength that leaves no step, or asks for more than all."""
    if not 1 <= num_steps * strength <= num_steps:
        raise UserError(f"strength={strength} of {num_steps} steps; accepted: {1 / num_steps:.3g} to 1")


def as_array(picture: Picture, size: int) -> np.ndarray:
    """A picture as float32 [size, size, 3] in [-1, 1], cropped to the centre and resized.

    Raises:
        UserError: a file that is not there or no image; an array of another shape or range.
    """
    if isinstance(picture, str | Path):
        return asked_for(picture, size).astype(np.float32) / 127.5 - 1.0
    if not isinstance(picture, Image.Image):
        array = np.asarray(picture)
        if array.ndim != 3 or array.shape[-1] not in (1, 3):
            raise UserError(f"image of shape {array.shape}; give [height, width, 3]")
        if array.dtype != np.uint8 and (not np.isfinite(array).all() or np.abs(array).max() > 1.001):
            raise UserError(
                f"image with values from {array.min():g} to {array.max():g}; give uint8, or floats in [-1, 1]"
            )
        picture = Image.fromarray(to_uint8(array[None])[0])
    return square(picture, size).astype(np.float32) / 127.5 - 1.0


def check_seed(seed: int) -> int:
    """The seed; outside 0..2**32-1 different seeds would silently give the same pictures."""
    if not 0 <= seed < 2**32:
        raise UserError(f"seed {seed} is outside 0..{2**32 - 1}")
    return int(seed)


def check_prompts(prompts: Sequence[str]) -> None:
    """Refuses an empty list and blank prompts."""
    if not prompts:
        raise UserError("no prompt given; pass at least one, e.g. --prompt='a red apple on a blue background'")
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str) or not prompt.strip():
            raise UserError(f"prompt {i + 1} of {len(prompts)} is empty ({prompt!r}); describe what to draw")
