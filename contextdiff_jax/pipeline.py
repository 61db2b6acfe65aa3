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
        self.task, self.params, self.step = task, params, step
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
            config: None takes the run's own; otherwise one that may differ from it in `sample`, `eval` and cadence.

        Raises:
            UserError: no such folder, no checkpoint, not a diffusion run, or another run's config.
        """
        params, saved, step = checkpoint.load_params(path, step=step, ema=ema)
        saved = ConfigDict(saved)
        if saved.task != "diffusion":
            raise UserError(f"{path} holds a run of the task {saved.task!r}; only diffusion runs can be sampled")
        if config is not None:
            checkpoint.check_same_run(saved, config, path)
        return cls(task_lib.build(config or saved), params, step)

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
        root = jax.random.key(key) if isinstance(key, int | np.integer) else key
        text = self.task.clip.tokenize(prompts)
        keys = jax.vmap(partial(jax.random.fold_in, root))(np.arange(len(prompts)))
        images = []
        for start in range(0, len(prompts), batch_size):
            rows = np.minimum(np.arange(start, start + batch_size), len(prompts) - 1)
            out = run(self.params, self.task.frozen, text["tokens"][rows], text["token_mask"][rows], keys[rows])
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


def check_prompts(prompts: Sequence[str]) -> None:
    """Refuses an empty list and blank prompts."""
    if not prompts:
        raise UserError("no prompt given; pass at least one, e.g. --prompt='a red apple on a blue background'")
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str) or not prompt.strip():
            raise UserError(f"prompt {i + 1} of {len(prompts)} is empty ({prompt!r}); describe what to draw")
