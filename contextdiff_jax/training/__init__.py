"""One training loop for every task: pure step, sharded state, checkpoints that survive."""

from contextdiff_jax.training.checkpoint import check_workdir, load_params
from contextdiff_jax.training.distributed import initialize_if_needed as initialize_distributed
from contextdiff_jax.training.loop import train
from contextdiff_jax.training.setup import Setup
from contextdiff_jax.training.watch import NonFiniteLoss

__all__ = ["NonFiniteLoss", "Setup", "check_workdir", "initialize_distributed", "load_params", "train"]
