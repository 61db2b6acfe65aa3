"""Writes and reads a folder of weights and prints how much memory each took at most, beside the arrays themselves.

Run by test_pretrained_files.py in a process of its own: `python measure_memory.py FOLDER DTYPE`.
"""

import gc
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.formats import pretrained

WIDE = 2560  # columns: a square kernel has 26 MB in float32
SHARD = 60 << 20


def names(path: str) -> str:
    return path.replace("/kernel", ".weight").replace("/", ".")


def shapes() -> dict:
    """Kernels of the usual size, and some that fill a float32 shard by themselves: 315 MB in float32."""
    kernel = lambda rows: {"kernel": jax.ShapeDtypeStruct((rows, WIDE), jnp.float32)}
    return {f"{size}_{i}": kernel(rows) for i in range(3) for size, rows in (("a", WIDE), ("b", WIDE), ("c", 2 * WIDE))}


def memory() -> tuple[int, int]:
    """(now, at most) of this process, bytes."""
    status = Path("/proc/self/status").read_text()
    return tuple(int(re.search(rf"{key}:\s*(\d+)", status)[1]) * 1024 for key in ("VmRSS", "VmHWM"))


def measured(call: Callable[[], Any], arrays: int) -> tuple[Any, int]:
    """(result, the most that the call took beside the `arrays` bytes that it returns)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest value so far
    start, _ = memory()
    result = call()
    end, peak = memory()
    assert end - start > 0.9 * arrays, "the arrays are not in memory"
    return result, peak - start - arrays


def write(folder: Path, dtype: str) -> tuple[dict, int]:
    """(some of the values that were written, what writing took)."""
    params = jax.tree.map(lambda s: jax.random.normal(jax.random.key(s.shape[0]), s.shape), shapes())
    jax.block_until_ready(params)
    call = lambda: pretrained.write_params(folder, params, names, {}, dtype, max_shard_bytes=SHARD)
    _, writing = measured(call, 0)
    return jax.tree.map(lambda value: np.asarray(value[::512]).astype(dtype), params), writing


def main(folder: Path, dtype: str) -> None:
    exact, writing = write(folder, dtype)
    shardings = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), shapes())
    total = sum(4 * np.prod(s.shape) for s in jax.tree.leaves(shapes()))
    read, reading = measured(lambda: pretrained.read_params(folder, shapes(), names, shardings=shardings), total)
    jax.tree.map(lambda ours, theirs: np.testing.assert_array_equal(ours[::512], theirs), read, exact)
    shard = max(file.stat().st_size for file in folder.glob("*.safetensors"))
    print(json.dumps(dict(writing=writing, reading=int(reading), shard=shard, total=int(total))))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
