"""Config -> task: the one place that assembles, and what the training loop may expect of a task."""

from typing import Any, Protocol

from jax.sharding import Mesh
from ml_collections import ConfigDict

from contextdiff_jax import config as config_lib
from contextdiff_jax import data
from contextdiff_jax.errors import UserError
from contextdiff_jax.runtime import Runtime
from contextdiff_jax.types import Array, Batch, Params


class Task(Protocol):
    """What can be trained. A new task is a config and a class like this one, never a second loop."""

    config: ConfigDict
    frozen: Params

    def train_iterator(self, process_index: int, process_count: int) -> Any:
        """Checkpointable Grain iterator of numpy batches, this process's rows."""

    def init(self, key: Array) -> Params:
        """Fresh float32 parameters; pure."""

    # Optional: held_out_batches, like train_iterator but (split, iterator), of records that are not trained on, or of
    # "train" where none can be held out, with a loss that takes train=False, which leaves dropout out; load(shardings)
    # -> Params, whatever of these parameters is pretrained; check_start(), which refuses to begin where that is not
    # there, or what an old run may go on with but no new one should; keep(workdir), which puts what a checkpoint lacks
    # into the run, and which all processes call; check(), which refuses what would only be found out during the
    # training; check_params(params), which refuses to save what cannot be right; batch_spec(), the shapes of a global
    # batch;
    # computed(frozen, whole) and computed_spec(frozen), what follows from the frozen networks once, and its shapes.

    def draw(self, batch: Batch, key: Array) -> Batch:
        """The global batch with the step's per-example randomness added; pure."""

    def loss(self, params: Params, frozen: Params, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        """Loss [B] and metrics; pure."""

    def preview(self, params: Params, frozen: Params, key: Array) -> tuple[Any, list[str]] | None:
        """Pictures [N, H, W, 3] with captions to look at during training, or None."""

    def export(self, params: Params, out_dir: str) -> None:
        """Writes what a user keeps of the training."""


def build(
    config: ConfigDict, runtime: Runtime | None = None, weights: bool = True, mesh: Mesh | None = None
) -> Task:
    """The task that `config.task` names, after checking the config.

    Args:
        config: the whole config.
        runtime: what it will run on; None takes this machine.
        weights: whether to read the parameters of frozen networks; without them a step can be traced, not run.
        mesh: where those go as they are read, shard by shard, by the config's sharding rules; None: the host.

    Raises:
        UserError: for anything in the config that cannot work.
    """
    config_lib.check(config)
    config = data.settled(config_lib.with_later(config))
    match config.task:
        case "diffusion":
            from contextdiff_jax.tasks.diffusion import DiffusionTask

            return DiffusionTask(config, runtime, weights, mesh)
        case "contrastive":
            from contextdiff_jax.tasks.contrastive import ContrastiveTask as task
        case "recogniser":
            from contextdiff_jax.tasks.recogniser import RecogniserTask as task
        case "autoencoder":
            from contextdiff_jax.tasks.autoencoder import AutoencoderTask as task
        case _:
            accepted = "diffusion, contrastive, recogniser, autoencoder"
            raise UserError(f"config.task={config.task!r} is unknown; accepted: {accepted}")
    return task(config)
