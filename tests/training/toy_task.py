"""The smallest task: a two-layer regression with every hook that the loop uses."""

from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from configs.common import base


def toy_config(**overrides: Any) -> ConfigDict:
    """A config of a few milliseconds per step; overrides like {"train.num_steps": 6}."""
    config = base("toy")
    config.data.batch_size = 16
    config.optim.lr = 1e-2
    config.optim.warmup_steps = 2
    config.train.update(num_steps=12, log_every=2, checkpoint_every=4, keep=3)
    config.update_from_flattened_dict(overrides)
    return config


class ToyTask:
    """y = sin(x W) regressed by a small network, with noise on the inputs and dropout-like noise in the loss.

    Args:
        config: from `toy_config`.
        bad_index: a record whose target is NaN.
    """

    def __init__(self, config: ConfigDict, bad_index: int | None = None):
        self.config = config
        rng = np.random.default_rng(0)
        self.x = rng.standard_normal((200, 8)).astype(np.float32)
        self.y = np.sin(self.x @ rng.standard_normal((8, 4))).astype(np.float32)
        if bad_index is not None:
            self.y[bad_index] = np.nan
        self.frozen = {"scale": {"kernel": np.full((8,), 0.5, np.float32)}}

    def train_iterator(self, process_index: int, process_count: int) -> grain.DatasetIterator:
        def rows(indices: np.ndarray) -> dict[str, np.ndarray]:
            n = len(indices) // process_count
            own = indices[process_index * n : (process_index + 1) * n]
            return {"x": self.x[own], "y": self.y[own], "index": own.astype(np.int32)}

        order = grain.MapDataset.range(len(self.x)).seed(self.config.seed).shuffle().repeat()
        batches = order.batch(self.config.data.batch_size).map(rows)
        return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)))

    def init(self, key: jax.Array) -> Any:
        key_in, key_out = jax.random.split(key)
        return {
            "denoiser": {"kernel": 0.3 * jax.random.normal(key_in, (8, 32)), "bias": jnp.zeros(32)},
            "adapter": {"kernel": 0.3 * jax.random.normal(key_out, (32, 4))},
        }

    def draw(self, batch: Any, key: jax.Array) -> Any:
        return batch | {"noise": 0.1 * jax.random.normal(key, batch["x"].shape)}

    def loss(
        self, params: Any, frozen: Any, batch: Any, key: jax.Array, train: bool = True
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        x = (batch["x"] + batch["noise"]) * frozen["scale"]["kernel"]
        h = jax.nn.gelu(x @ params["denoiser"]["kernel"] + params["denoiser"]["bias"])
        error = jnp.sum((h @ params["adapter"]["kernel"] - batch["y"]) ** 2, axis=-1)
        return error, {"rmse": jnp.sqrt(error), "norm": jnp.linalg.norm(params["adapter"]["kernel"])}

    def preview(self, params: Any, frozen: Any, key: jax.Array) -> tuple[np.ndarray, list[str]]:
        draw = jax.jit(lambda p, k: jnp.tanh(jax.random.normal(k, (2, 8, 8, 3)) + p["denoiser"]["bias"].sum()))
        return np.asarray(draw(params, key)), ["one", "two"]
