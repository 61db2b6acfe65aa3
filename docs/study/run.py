"""Trains and measures what docs/study.md compares; what is stored already is not run again.

    python -m docs.study.run                                  # everything that is missing
    python -m docs.study.run --data=mixture --variants=posterior,nelbo --seeds=0,1,2

Plots and tables are docs/study/plots.py's; launch/study.sh does both.
"""

import argparse
import json
import re
import time
from pathlib import Path
from typing import Any

import jax

from contextdiff_jax.errors import UserError
from contextdiff_jax.files import atomic
from docs import scripts
from docs.study import toy
from docs.study.variants import VARIANTS, names

RESULTS = Path(__file__).parent / "results"
SETS = (*toy.DATA, "digits", "emoji16")
SEEDS = (0, 1, 2)


def load(path: Path) -> dict[str, Any]:
    """{"reference": ..., "runs": {variant: {seed: figures}}}."""
    return json.loads(path.read_text()) if path.is_file() else {"reference": {}, "runs": {}}


def save(stored: dict[str, Any], path: Path) -> None:
    """Readable JSON, lists of numbers on one line each."""
    text = json.dumps(stored, indent=1, allow_nan=False)
    text = re.sub(r"\[[^\[\]{}]*\]", lambda m: re.sub(r"\s+", " ", m[0]).replace("[ ", "[").replace(" ]", "]"), text)
    with atomic(path) as temporary:
        temporary.write_text(text + "\n")


def study(name: str, variants: list[str], seeds: list[int], results: Path = RESULTS, size: Any = None) -> None:
    """Runs whatever of these is not in results/NAME.json yet, and stores it run by run."""
    if name in toy.DATA:
        size = size or toy.Size()
        reference, run = lambda: toy.reference(name, size), toy.run
    else:
        from docs.study import images  # scikit-learn and the judges, which points can do without

        size = size or images.SIZES[name]
        reference, run = lambda: images.reference(name, size), images.run
    path = results / f"{name}.json"
    stored = load(path)
    stored["reference"] = stored["reference"] or reference()
    for variant in variants:
        missing = [seed for seed in seeds if str(seed) not in stored["runs"].get(variant, {})]
        if not missing:
            continue
        start = time.perf_counter()
        for seed, figures in run(name, VARIANTS[variant], missing, size):
            stored["runs"].setdefault(variant, {})[str(seed)] = figures
            save(stored, path)
            bound = figures["bound"]
            print(
                f"{name:9s} {variant:16s} seed {seed}: bound {bound['mean']:.4f} +- {bound['stderr']:.4f}, "
                f"Eq. 6 {figures['eq6']:.5f}, {figures['quality']}, {time.perf_counter() - start:.0f} s",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=",".join(SETS))
    parser.add_argument("--variants", default="", help="empty: all; on all but the mixture without the extra ones")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--cache", default="runs/study-compiled", help="folder of compiled programs")
    args = parser.parse_args()
    jax.config.update("jax_compilation_cache_dir", str(Path(args.cache).absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    for name in args.data.split(","):
        if name not in SETS:
            raise UserError(f"--data={name} is unknown; accepted: {', '.join(SETS)}")
        variants = args.variants.split(",") if args.variants else names(extra=name == "mixture")
        if unknown := set(variants) - set(VARIANTS):
            raise UserError(f"--variants={','.join(sorted(unknown))} is unknown; accepted: {', '.join(VARIANTS)}")
        study(name, variants, [int(seed) for seed in args.seeds.split(",")])


if __name__ == "__main__":
    scripts.run(main)
