"""A tiny random Stable Diffusion as an editor of clips, and embedded clips to edit."""

from pathlib import Path

import jax
from ml_collections import ConfigDict

from configs import video_edit
from contextdiff_jax import task as task_lib
from contextdiff_jax.editing.methods import values_of
from contextdiff_jax.training.state import initial_params, stream

SIZE, FRAMES, STEPS = 32, 3, 4


def config_of(folder: Path, preset: str = "contextdiff", **changed) -> ConfigDict:
    """A recipe at the smallest size, on the random pipeline in `folder`; `changed` are keys with __ for the dots."""
    config = video_edit.get_config(f"{preset}+tiny")
    config.model.pretrained = str(folder)
    config.condition.encoder = config.adapter.start = config.space.rgb_map = ""
    config.space.rgb = "decode"
    config.data.image_size, config.data.num_frames = SIZE, FRAMES
    config.adapter.width, config.adapter.depth, config.adapter.num_heads = 16, 1, 2
    config.sample.num_steps = STEPS
    for key, value in changed.items():
        section, name = key.split("__")
        with config[section].ignore_type():
            config[section][name] = value
    return config


def model_of(config: ConfigDict, seed: int = 0, scale: float = 0.1):
    """The task and its parameters, those that start at zero made random, so that every part acts."""
    task = task_lib.build(config)
    expected = jax.eval_shape(task.init, stream(seed, "init"))
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    params = initial_params(task, jax.tree.map(lambda _: place, expected), seed)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noisy = [v + scale * jax.random.normal(k, v.shape) * (abs(v).max() == 0) for v, k in zip(leaves, keys, strict=True)]
    return task, jax.tree.unflatten(tree, noisy)


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
