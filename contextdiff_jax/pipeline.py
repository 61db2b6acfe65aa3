"""A trained model in three lines: load, sample, look."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from contextdiff_jax import config as config_lib
from contextdiff_jax import task as task_lib
from contextdiff_jax.errors import UserError
from contextdiff_jax.tasks.diffusion import DiffusionTask
from contextdiff_jax.training import checkpoint
from contextdiff_jax.types import Array, Params


class Pipeline:
    """Text to images with a trained contextual diffusion model.

        pipe = cdx.Pipeline.load("runs/demo")
        images = pipe.sample(["a red apple on a blue background"], key=0)

    Attributes:
        task: the assembled model.
        params: {"denoiser", "adapter"}, the averaged ones unless asked otherwise.
        step: the training step they come from.
    """

    def __init__(self, task: DiffusionTask, params: Params, step: int):
        self.task, self.params, self.step = task, jax.device_put(params), step
        self._frozen = jax.device_put(task.frozen)
        self._compiled = {}

    @classmethod
    def load(
        cls, path: str | Path, *, step: int | None = None, ema: bool = True, config: ConfigDict | None = None
    ) -> "Pipeline":
        """Reads the newest intact checkpoint (or that of `step`) of a training run.

        Args:
            path: the run's workdir.
            step: training step; None takes the newest.
            ema: the exponential moving average of the parameters, or the last ones.
            config: None takes the run's own; otherwise one of the same model, whose `sample` and `eval` sections count.

        Raises:
            UserError: no such folder, no checkpoint, not a diffusion run, or another model's config.
        """
        params, saved, step = checkpoint.load_params(path, step=step, ema=ema)
        saved = ConfigDict(saved)
        if saved.task != "diffusion":
            raise UserError(f"{path} holds a run of the task {saved.task!r}; only diffusion runs can be sampled")
        if config is not None:
            saved = _with_sampling_of(saved, config, path)
        return cls(task_lib.build(saved), params, step)

    @property
    def config(self) -> ConfigDict:
        """The config of the training run."""
        return self.task.config

    def sample(self, prompts: str | Sequence[str], **options: Any) -> list[Image.Image]:
        """One picture per prompt; the options are those of `sample_arrays`."""
        return self.to_images(self.sample_arrays(prompts, **options))

    @staticmethod
    def to_images(arrays: np.ndarray) -> list[Image.Image]:
        """Pictures from [N, H, W, 3] in [-1, 1]."""
        pixels = np.clip(np.rint((arrays + 1.0) * 127.5), 0, 255).astype(np.uint8)
        return [Image.fromarray(p) for p in pixels]

    def sample_arrays(
        self,
        prompts: str | Sequence[str],
        *,
        key: int | Array = 0,
        steps: int | None = None,
        guidance: float | None = None,
        sampler: str | None = None,
        **overrides: Any,
    ) -> np.ndarray:
        """Pictures as float32 [N, H, W, 3] in [-1, 1].

        Args:
            prompts: one or several captions.
            key: seed or jax key; picture i uses fold_in(key, i).
            steps: sampling steps; None takes config.sample.num_steps.
            guidance: guidance scale, 1 for none; None takes config.sample.guidance.
            sampler: ddpm, ddim, heun or dpmpp_2m; None takes config.sample.sampler.
            **overrides: any other key of the config's `sample` section, e.g. adapter=False, eta=1.0, batch_size=16.

        Raises:
            UserError: empty prompts, unknown options, more steps than the process has.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        check_prompts(prompts)
        given = dict(num_steps=steps, guidance=guidance, sampler=sampler)
        run, batch_size = self._sampler({k: v for k, v in given.items() if v is not None} | overrides)
        # A power of two keeps the number of compilations small when the number of prompts varies.
        batch_size = min(batch_size, 1 << (len(prompts) - 1).bit_length())
        root = jax.random.key(check_seed(key)) if isinstance(key, int | np.integer) else key
        text = self.task.clip.tokenize(prompts)
        keys = jax.vmap(partial(jax.random.fold_in, root))(np.arange(len(prompts)))
        images = []
        for start in range(0, len(prompts), batch_size):
            rows = np.minimum(np.arange(start, start + batch_size), len(prompts) - 1)
            out = run(self.params, self._frozen, text["tokens"][rows], text["token_mask"][rows], keys[rows])
            images.append(np.asarray(out))
        return np.concatenate(images)[: len(prompts)]

    def _sampler(self, overrides: dict[str, Any]):
        """The jitted sampler under these overrides of config.sample, and its batch size."""
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
        cache_key = json.dumps(config.sample.to_dict(), sort_keys=True)
        if cache_key not in self._compiled:
            self._compiled[cache_key] = jax.jit(partial(self.task.sample, sample=config.sample))
        return self._compiled[cache_key], config.sample.batch_size


# What makes a config another model; all else about a run does not matter once it is trained.
_MODEL_KEYS = ["task", "encoder.", "process.", "model.", "adapter.", "data.source", "data.preset", "data.image_size"]


def _with_sampling_of(saved: ConfigDict, config: ConfigDict, path: str | Path) -> ConfigDict:
    """The run's own config with the `sample` and `eval` sections of another one for the same model."""
    differing = [
        line for line in config_lib.differences(saved, config) if any(line.startswith(key) for key in _MODEL_KEYS)
    ]
    if differing:
        raise UserError(f"{path} holds another model than --config describes ({'; '.join(differing)}); give its own")
    result = saved.copy_and_resolve_references()
    result.sample, result.eval = config.sample, config.eval
    return result


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
