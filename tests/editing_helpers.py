"""A tiny random Stable Diffusion as an editor of clips, and embedded clips to edit."""

from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import video_edit
from contextdiff_jax import task as task_lib
from contextdiff_jax.editing.methods import values_of
from contextdiff_jax.training.state import stream

SIZE, FRAMES, STEPS = 32, 3, 4


def config_of(folder: Path, preset: str = "contextdiff", **changed) -> ConfigDict:
    """A recipe at the smallest size, on the random pipeline in `folder`; `changed` are keys with __ for the dots."""
    config = video_edit.get_config(f"{preset}+tiny")
    config.model.pretrained = str(folder)
    config.condition.encoder = config.adapter.start = config.space.rgb_map = ""
    config.space.rgb = "decode"
    config.data.image_size, config.data.num_frames, config.data.index = SIZE, FRAMES, 0  # a star
    config.adapter.width, config.adapter.depth, config.adapter.num_heads = 16, 1, 2
    config.sample.num_steps = STEPS
    for key, value in changed.items():
        section, name = key.split("__")
        with config[section].ignore_type():
            config[section][name] = value
    return config


def model_of(config: ConfigDict, seed: int = 0):
    """The task and random parameters for it, none of them zero, so that every part acts; nothing is compiled."""
    task, rng = task_lib.build(config), np.random.default_rng(seed)

    def drawn(path, leaf):
        noise = rng.normal(size=leaf.shape).astype(np.float32)
        if path[-1].key == "scale":
            return 1.0 + 0.1 * noise
        return 0.1 * noise if leaf.ndim < 2 else noise / np.sqrt(np.prod(leaf.shape[:-1]))

    expected = jax.eval_shape(task.init, stream(seed, "init"))
    return task, jax.device_put(jax.tree_util.tree_map_with_path(drawn, expected))


def use_method(config: ConfigDict, names: str) -> ConfigDict:
    """The config with the `edit` section of another method or recipe; the network stays."""
    changed = ConfigDict(config.to_dict())
    for name in names.split("+"):
        for key, value in values_of(name).items():
            section, *rest = key.split(".")
            if section == "edit":
                with changed.edit.ignore_type():
                    changed.edit[rest[0]] = value
    return changed
