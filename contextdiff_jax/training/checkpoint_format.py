"""What a checkpoint consists of, and how its parts are read and compared."""

import contextlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from contextdiff_jax.errors import UserError
from contextdiff_jax.training import distributed, integrity
from contextdiff_jax.types import TrainState

ARRAYS = ("params", "ema", "optimizer")
ITEMS = (*ARRAYS, "data", "config", "fingerprints")
_OF_THE_SYSTEM = "[OS error"  # TensorStore's


def items_of(state: TrainState) -> dict[str, Any]:
    """A state as the array items of a checkpoint; the parameters can so be read without the optimizer."""
    optimizer = {"step": state.step, "opt_state": state.opt_state}
    return {"params": state.params, "ema": state.ema, "optimizer": optimizer}


def abstract_items(abstract: TrainState) -> dict[str, ocp.args.PyTreeRestore]:
    """How to restore each array item onto the shardings of `abstract`."""

    def restore(tree: Any) -> ocp.args.PyTreeRestore:
        how = jax.tree.map(
            lambda x: ocp.ArrayRestoreArgs(sharding=x.sharding, global_shape=x.shape, dtype=x.dtype), tree
        )
        return ocp.args.PyTreeRestore(item=tree, restore_args=how)

    return {name: restore(tree) for name, tree in items_of(abstract).items()}


def on_host(item: Path) -> ocp.args.PyTreeRestore:
    """How to restore an array item as numpy arrays, whatever devices it was saved from."""
    tree = ocp.PyTreeCheckpointHandler().metadata(item).tree
    how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return ocp.args.PyTreeRestore(restore_args=how)


def read(directory: Path, arrays: dict[str, ocp.args.PyTreeRestore]) -> dict[str, Any]:
    """The given array items and the JSON items of one checkpoint.

    No process waits for another here, as it would in an `ocp.Checkpointer`: one may fail alone.
    """
    jsons = {name: ocp.args.JsonRestore() for name in ITEMS if name not in ARRAYS}
    with contextlib.closing(ocp.CompositeCheckpointHandler()) as handler:
        return dict(handler.restore(epath.Path(directory), args=ocp.args.Composite(**arrays, **jsons)).items())


def refusal(error: Exception, directory: Path, intact: bool) -> str | None:
    """Why a checkpoint cannot be used that may well be whole, in one line; None where it is damaged.

    Args:
        error: what reading it has raised.
        directory: of the checkpoint.
        intact: whether its checksums have been found right.
    """
    text, reason = str(error), brief(error)
    of_the_system = _OF_THE_SYSTEM in text
    if isinstance(error, MemoryError) or ("RESOURCE_EXHAUSTED" in text and not of_the_system):
        return f"checkpoint {directory} does not fit these devices ({reason}); take more, with a larger mesh.fsdp"
    missing = isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError)
    if of_the_system or (isinstance(error, OSError) and (intact or not missing)):
        return f"checkpoint {directory} cannot be read ({reason}); make it readable, and run the same command again"
    if intact:
        return (
            f"checkpoint {directory} is intact but does not fit this model ({reason}); undo the change of the config, "
            "or take another --workdir"
        )
    return None


def disagreement(loaded: dict[str, Any], items: dict[str, Any]) -> str | None:
    """How restored items differ from what was saved, in words; None if they are the same."""
    saved = loaded["fingerprints"]
    for name, digest in saved["json"].items():
        if integrity.json_digest(loaded[name]) != digest:
            return f"{name} differs from what was saved"
    _, prints = integrity.fingerprints(items)
    for name, value in prints.items():
        if saved["arrays"].get(name) != value:
            return f"array {name} differs from what was saved"
    return None


def brief(error: BaseException) -> str:
    """The first line of an error, with its type."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


def iterator_states(iterator: Any) -> dict[str, Any]:
    """The data iterators' states of all processes, as JSON."""
    return {"states": [json.loads(state) for state in distributed.gather_texts(json.dumps(iterator.get_state()))]}


def set_iterator(iterator: Any, data: dict[str, Any], batch_size: int, any_records: bool = False) -> None:
    """Moves the iterator to this process's saved state, or to the one that all processes shared.

    Args:
        iterator: this process's.
        data: what `iterator_states` returned.
        batch_size: that the states were saved with.
        any_records: whether the place counts in other records than those it was taken in, too.

    Raises:
        UserError: several processes' states differ and their number has changed, or the records have.
    """
    states = data["states"]
    if len(states) == jax.process_count():
        state = states[jax.process_index()]
    elif all(state == states[0] for state in states):
        state = states[0]
    else:
        raise UserError(
            f"the checkpoint's data iterators are those of {len(states)} processes and differ; "
            f"continue with {len(states)} processes instead of {jax.process_count()}"
        )
    if "next_index" in state and "examples" in iterator.get_state():  # earlier versions counted batches
        state = {"examples": state["next_index"] * batch_size}
    if any_records:
        state = {name: value for name, value in state.items() if name != "records"}
    iterator.set_state(state)
