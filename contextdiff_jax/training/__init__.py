"""One training loop for every task: pure step, sharded state, checkpoints that survive."""

from contextdiff_jax.training.checkpoint import load_params
from contextdiff_jax.training.distributed import initialize_if_needed as initialize_distributed
from contextdiff_jax.training.loop import train
from contextdiff_jax.training.setup import Setup
from contextdiff_jax.training.watch import NonFiniteLoss
from contextdiff_jax.training.workdir import check_workdir, known_classes

__all__ = ["NonFiniteLoss", "Setup", "check_workdir", "initialize_distributed", "known_classes", "load_params", "train"]
