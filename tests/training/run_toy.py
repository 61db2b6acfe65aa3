"""Trains the toy task in a process of its own, for tests with signals, devices and several processes."""

import argparse
import ast
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def main() -> None:
    """Trains and prints the final step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--coordinator", default="")
    parser.add_argument("--num_processes", type=int)
    parser.add_argument("--process_id", type=int)
    parser.add_argument("--slow", type=float, default=0.0, help="seconds that every batch takes to read")
    parser.add_argument("--bad_index", type=int, help="a record whose target is NaN")
    parser.add_argument("--learned_process", action="store_true", help="looks at one first, split over all devices")
    parser.add_argument("--allow_config_change", action="store_true")
    parser.add_argument("overrides", nargs="*", help="config keys, e.g. train.num_steps=6")
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    flags = os.environ.get("XLA_FLAGS", "")  # of the tests, which compile quickly
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={args.devices}"

    from contextdiff_jax import training
    from contextdiff_jax.errors import UserError
    from tests.training.toy_task import ToyTask, toy_config

    overrides = {key: ast.literal_eval(value) for key, value in (o.split("=", 1) for o in args.overrides)}

    class SlowTask(ToyTask):
        def train_iterator(self, process_index: int, process_count: int):
            iterator = super().train_iterator(process_index, process_count)
            return _Slow(iterator, args.slow)

    try:
        training.initialize_distributed(args.coordinator, args.num_processes, args.process_id)
        if args.learned_process:
            look_at_a_process_that_is_split()
        task = SlowTask(toy_config(**overrides), args.bad_index)
        state = training.train(task, args.workdir, allow_config_change=args.allow_config_change)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    assert "torch" not in sys.modules, "nothing here needs PyTorch, whose import takes as long as all others together"
    print(f"final step {int(state.step)}")


def look_at_a_process_that_is_split() -> None:
    """What is looked at before every save may lie on devices of all processes."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    from contextdiff_jax.errors import UserError
    from contextdiff_jax.process import schedule
    from contextdiff_jax.process.learned import Process
    from contextdiff_jax.tasks.diffusion import DiffusionTask
    from contextdiff_jax.training.sharding import put_tree

    process = Process(schedule.cosine(17), learned=True)
    task = SimpleNamespace(parts=SimpleNamespace(process=process))
    mesh = jax.make_mesh((jax.device_count(),), ("all",))
    places = dict(gamma_1=NamedSharding(mesh, PartitionSpec()), steps=NamedSharding(mesh, PartitionSpec("all")))
    params = process.init()
    DiffusionTask.check_params(task, {"process": put_tree(params, places)})
    try:
        bad = params | {"steps": params["steps"].at[9].set(-200.0)}
        DiffusionTask.check_params(task, {"process": put_tree(bad, places)})
    except UserError as error:
        assert "does not fall at t=11" in str(error), error
    else:
        raise AssertionError("a schedule that does not fall was accepted")


class _Slow:
    """An iterator that takes its time."""

    def __init__(self, iterator, seconds: float):
        self._iterator, self._seconds = iterator, seconds
        self.get_state, self.set_state = iterator.get_state, iterator.set_state

    def __next__(self):
        time.sleep(self._seconds)
        return next(self._iterator)


if __name__ == "__main__":
    main()
