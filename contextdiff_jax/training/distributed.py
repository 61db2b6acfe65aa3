"""Several processes as one machine."""

import jax
from jax.experimental import multihost_utils

from contextdiff_jax.errors import UserError


def initialize_if_needed(
    coordinator_address: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the processes of a run into one JAX cluster; must come before the first JAX computation.

    Args:
        coordinator_address: host:port of process 0; "auto" lets JAX ask the cluster (TPU pods, SLURM); empty
            for one process.
        num_processes: how many processes there are; not with "auto".
        process_id: which of them this is, from 0; not with "auto".

    Raises:
        UserError: incomplete or contradictory arguments, or processes that cannot reach each other.
    """
    if not coordinator_address:
        if num_processes not in (None, 1) or process_id not in (None, 0):
            raise UserError(
                f"num_processes={num_processes}, process_id={process_id} need a coordinator; "
                "give --coordinator=HOST:PORT of process 0"
            )
        return
    if jax.distributed.is_initialized():
        return
    # CPUs need a library for collectives between processes; other platforms bring their own and ignore this.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if coordinator_address == "auto":
        try:
            jax.distributed.initialize()
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"--coordinator=auto found no cluster to join ({error}); it works on TPU pods and under SLURM, "
                "elsewhere give --coordinator=HOST:PORT --num_processes=N --process_id=I"
            ) from error
        return
    if num_processes is None or process_id is None or not 0 <= process_id < num_processes:
        raise UserError(
            f"--coordinator={coordinator_address} needs --num_processes=N and --process_id in 0..N-1; "
            f"got {num_processes} and {process_id}"
        )
    try:
        jax.distributed.initialize(coordinator_address, num_processes, process_id)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"process {process_id} of {num_processes} could not join {coordinator_address}: {error}; "
            "check that all are started and can reach that address"
        ) from error


def is_primary() -> bool:
    """True in the one process that writes files and prints."""
    return jax.process_index() == 0


def agree(value: int) -> int:
    """Process 0's value, on every process."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(value))


def all_true(value: bool) -> bool:
    """Whether `value` holds on every process."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.process_allgather(int(value)).all())


def barrier(name: str) -> None:
    """Waits for all processes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
