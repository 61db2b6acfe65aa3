"""Kills a real training run with SIGKILL at random moments and compares what it ends with, bit by bit.

    python tests/training/kill_test.py --kills=10
    python tests/training/kill_test.py --kills=3 --config=configs/t2i.py:small --config.train.num_steps=40

One run is left alone; another, with the same command, is killed again and again: during start-up and
compilation, between steps, and while a checkpoint is being written. Both must end with the same bits in every
array of the last checkpoint (parameters, average, optimizer), the same data iterator and the same metrics.
"""

import argparse
import collections
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = Path(__file__).resolve().parents[2]
MAIN = (sys.executable, "-m", "contextdiff_jax.main")


def last_logged(workdir: Path) -> int:
    """The newest step in metrics.jsonl."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1])["step"] if lines and lines[-1].endswith("}") else 0


def moment(workdir: Path) -> str:
    """What a run was doing just now, judged by its files."""
    folder = workdir / "checkpoints"
    if not (workdir / "metrics.jsonl").exists():
        return "starting"
    if any(folder.glob("*.orbax-checkpoint-tmp*")):
        return "writing a checkpoint"
    steps = [p for p in folder.iterdir() if p.name.isdigit()]
    return "training" if all((p / "checksums.json").exists() for p in steps) else "writing checksums"


def kill_once(command: Sequence[str], workdir: Path, rng: random.Random, total: int, left: int) -> str | None:
    """Starts the run and kills it; returns what it was doing, or None if it finished first.

    The moment: in one of five kills during the first seconds; otherwise a random step, so that the kills
    spread over the whole run, and then a random delay of the order of a few steps or a save.
    """
    with (workdir.parent / "killed.log").open("ab") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    step = last_logged(workdir)
    goal = None if rng.random() < 0.2 else rng.randint(step, step + max(1, 2 * (total - step) // (left + 1)))
    deadline = time.monotonic() + (rng.uniform(1, 15) if goal is None else 900)
    while process.poll() is None and time.monotonic() < deadline:
        if goal is not None and last_logged(workdir) >= goal and last_logged(workdir) > 0:
            time.sleep(rng.uniform(0, 0.3))
            break
        time.sleep(0.005)
    doing = moment(workdir)
    process.send_signal(signal.SIGKILL)
    return doing if process.wait() == -signal.SIGKILL else None


def finish(command: Sequence[str], log: Path) -> None:
    """Runs the command to its end."""
    with log.open("ab") as file:
        status = subprocess.run(command, cwd=ROOT, stdout=file, stderr=file).returncode
    if status:
        raise SystemExit(f"{' '.join(command)} ended with status {status}; see {log}:\n{log.read_text()[-3000:]}")


def arrays(workdir: Path) -> tuple[int, dict[str, np.ndarray]]:
    """The last step and every array of its checkpoint by name, read by Orbax alone."""
    step = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    leaves = {}
    for item in ("params", "ema", "optimizer"):
        tree = ocp.PyTreeCheckpointer().restore(workdir.absolute() / "checkpoints" / str(step) / item)
        for path, value in jax.tree_util.tree_leaves_with_path(tree):
            leaves[item + jax.tree_util.keystr(path)] = np.asarray(value)
    return step, leaves


def differences(one: Path, other: Path) -> list[str]:
    """Everything in which two finished runs differ, in words."""
    (step, a), (other_step, b) = arrays(one), arrays(other)
    found = [f"last step {step} and {other_step}"] if step != other_step else []
    found += [f"{name} is in one of them only" for name in a.keys() ^ b.keys()]
    found += [name for name in a.keys() & b.keys() if a[name].tobytes() != b[name].tobytes()]
    for item in ("data", "config"):
        texts = [(w / "checkpoints" / str(step) / item / "metadata").read_text() for w in (one, other)]
        found += [item] if json.loads(texts[0]) != json.loads(texts[1]) else []
    logs = []
    for workdir in (one, other):
        records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        timings = ("images_per_second", "step_ms", "peak_memory_mib")
        logs.append([{k: v for k, v in record.items() if k not in timings} for record in records])
    return found + (["metrics.jsonl"] if logs[0] != logs[1] else [])


def kill_test(command: Sequence[str], folder: Path, kills: int, seed: int = 0) -> collections.Counter:
    """Runs `command` (to which --workdir is appended) once alone and once with `kills` kills, and compares.

    Returns:
        How often a kill hit which activity.

    Raises:
        SystemExit: a run failed, or the two ended differently.
    """
    folder.mkdir(parents=True, exist_ok=True)
    alone, killed = folder / "alone", folder / "killed"
    finish([*command, f"--workdir={alone}"], folder / "alone.log")
    total, leaves = arrays(alone)
    print(
        f"alone: {total} steps, {len(leaves)} arrays, {sum(a.nbytes for a in leaves.values())} bytes",
        flush=True,
    )
    rng, hits = random.Random(seed), collections.Counter()
    while hits.total() < kills:
        doing = kill_once([*command, f"--workdir={killed}"], killed, rng, total, kills - hits.total())
        if doing is None:
            print(f"finished after {hits.total()} kills; starting over for the rest", flush=True)
            check(alone, killed)
            killed = folder / f"killed-{hits.total()}"
            continue
        hits[doing] += 1
        print(f"kill {hits.total()}: at step {last_logged(killed)}, {doing}", flush=True)
    finish([*command, f"--workdir={killed}"], folder / "killed.log")
    check(alone, killed)
    return hits


def check(alone: Path, killed: Path) -> None:
    """Ends the program if the runs differ."""
    if found := differences(alone, killed):
        raise SystemExit(f"{killed} differs from {alone} in: {', '.join(found)}")


def main() -> None:
    """Command line; flags it does not know go to the training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--config", default="configs/t2i.py:tiny")
    parser.add_argument("--workdir", help="where both runs go; default a temporary folder")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args, passed = parser.parse_known_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    warnings.filterwarnings("ignore", message="Sharding info not provided")
    command = [*MAIN, f"--config={args.config}", *passed]
    with tempfile.TemporaryDirectory() as temporary:
        hits = kill_test(command, Path(args.workdir or temporary).absolute(), args.kills, args.seed)
    what = ", ".join(f"{count} while {doing}" for doing, count in hits.most_common())
    print(f"bitwise equal after {args.kills} kills ({what})")


if __name__ == "__main__":
    main()
