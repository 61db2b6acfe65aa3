"""How long a training step takes on this machine, on random data: of any config, whose data are not read.

    python -m docs.step_time --config=configs/t2i.py:small
    python -m docs.step_time --config=configs/class2img.py:imagenet --config.data.batch_size=128 \\
        --config.model.pretrained=AUTOENCODER --config.encoder.clip=CLIP      # folders of config.json files suffice

Frozen networks have random weights. The input pipeline is not part of it (`--mode=bench` has that). Utilisation is the
FLOPs of the step as it is written (contextdiff_jax/flops.py), what it computes twice to save memory included, over the
maker's peak in bfloat16.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from contextdiff_jax import task as task_lib
from contextdiff_jax.plan import batch_spec, compiled
from contextdiff_jax.training import Setup, sharding
from contextdiff_jax.training.setup import spec_of
from docs import scripts

_CONFIG = config_flags.DEFINE_config_file("config", None, "a file of configs/, with a preset behind a colon")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "timed rounds")
_STEPS = flags.DEFINE_integer("steps", 10, "steps in each")


def filled(spec: jax.ShapeDtypeStruct, key: jax.Array) -> jax.Array:
    """Small random numbers; zeros where numbers mean classes or words."""
    if not jnp.issubdtype(spec.dtype, jnp.floating):
        return jax.device_put(np.zeros(spec.shape, spec.dtype), spec.sharding)
    draw = lambda key: 0.1 * jax.random.normal(key, spec.shape, spec.dtype)
    return jax.jit(draw, out_shardings=spec.sharding)(key)


def measured(config, rounds: int, steps: int) -> None:
    """Compiles the step, runs it, and prints what it takes."""
    setup = Setup.of(task_lib.build(config, weights=False))
    plan, step = compiled(setup)
    print("\n".join(plan.lines()), flush=True)
    rows = spec_of(batch_spec(setup.task), jax.sharding.NamedSharding(setup.mesh, sharding.ROWS))
    specs, tree = jax.tree.flatten((rows, setup.frozen_spec))
    keys = jax.random.split(jax.random.key(0), len(specs))
    batch, frozen = tree.unflatten([filled(spec, key) for spec, key in zip(specs, keys, strict=True)])
    state, guard, seconds = setup.init_state(), setup.init_guard(), []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        for _ in range(steps):
            state, guard, metrics = step(state, guard, frozen, batch)
        jax.block_until_ready(metrics["loss"])
        seconds.append((time.perf_counter() - start) / steps)
    taken = np.array(seconds[1:])  # the first round warms up
    median = float(np.median(taken))
    speed = plan.flops / median
    used = "" if plan.chip is None else f", {100 * speed / plan.chip.flops:.1f} % of the peak"
    print(
        f"measured: {1e3 * median:.1f} ms a step ({1e3 * taken.min():.1f} to {1e3 * taken.max():.1f}), "
        f"{config.data.batch_size / median:.4g} images/s, {plan.flops / 1e12:.3g} TFLOP a device and step, "
        f"{speed / 1e12:.3g} TFLOP/s{used}; loss {metrics['loss']:.4g}"
    )


def main(_: list[str]) -> None:
    measured(_CONFIG.value, _ROUNDS.value, _STEPS.value)


if __name__ == "__main__":
    app.run(lambda argv: scripts.run(lambda: main(argv)))
