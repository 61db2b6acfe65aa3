"""What the adapter's CLIP sees of latents: the linear map to a small picture, against the full decoding.

    python -m docs.rgb_map [--pictures=64]      # of builtin:demo, which was trained with the linear map

Held-out renders are encoded, and the adapter looks at the latents both ways. Operations are counted from the program
before compilation.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from contextdiff_jax import Pipeline, data
from contextdiff_jax import task as task_lib
from contextdiff_jax.samplers import sampling
from contextdiff_jax.types import Array
from docs import scripts

TIMES = (100, 500, 900)


def views(pipe: Pipeline) -> dict[str, Any]:
    """{"linear", "decode": the task of the model with that setting of config.space.rgb}."""
    found = {}
    for way in ("linear", "decode"):
        config = ConfigDict(pipe.config.to_dict())
        config.space.rgb = way
        found[way] = task_lib.build(config)
    return found


def held_out(pipe: Pipeline, count: int) -> tuple[Array, dict[str, Array]]:
    """Renders [N, H, W, 3] in [-1, 1] and the fields of their captions."""
    source = data.source(pipe.config.data, "test")
    records = [source[i] for i in range(min(count, len(source)))]
    image = np.stack([np.asarray(record["image"], np.float32) for record in records]) / 127.5 - 1.0
    return jnp.asarray(image), pipe.task.parts.condition.from_records(records)


def seen(task: Any, pipe: Pipeline, image: Array, fields: dict[str, Array]) -> tuple[Array, Array, Array]:
    """The tokens that the adapter sees [N, T, D], those of the picture itself, and r [times, N, ...]."""

    @jax.jit
    def look(params, frozen, image, fields):
        x0 = task.parts.space.encode(frozen["space"], {"image": image})
        b = task.shift(params, frozen, task.encode(params, frozen, fields))
        tokens = b.features(x0)
        r = [b.relate(tokens, jnp.full(len(x0), t), x0.shape[1:]) for t in TIMES]
        return tokens, task.parts.clip.encode_image(frozen["clip"], image).tokens, jnp.stack(r)

    return look(pipe.params, pipe.frozen, image, fields)


def operations(task: Any, pipe: Pipeline, adapter: bool = True) -> float:
    """Of one step of sampling one picture; the steps are a loop, whose body is counted once."""
    section = task.config.sample.copy_and_resolve_references()
    section.adapter = adapter
    plan, numbers = sampling.Plan.of(task, section), sampling.Numbers.of(section)
    keys, fields = jax.random.split(jax.random.key(0), 1), task.parts.condition.empty(1)

    def draw(params, frozen, context):
        x = sampling.start(task, params, frozen, context, keys, plan)
        chart = sampling.guided_chart(task, params, frozen, context, plan, numbers)
        return sampling.run(chart, task.schedule, keys, x, plan, numbers)

    context = jax.eval_shape(task.encode, pipe.params, pipe.frozen, fields)
    return jax.jit(draw).lower(pipe.params, pipe.frozen, context).cost_analysis()["flops"]


def cosine(a: Array, b: Array) -> Array:
    """Of the tokens of two views [N, T, D], their mean."""
    return jnp.mean(jnp.sum(a * b, -1) / (jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=int, default=64)
    args = parser.parse_args()
    pipe = Pipeline.load("builtin:demo")
    image, fields = held_out(pipe, args.pictures)
    tokens, shifts, tasks = {}, {}, views(pipe)
    print(f"without the adapter: {operations(pipe.task, pipe, adapter=False) / 1e6:.0f} million operations a step")
    for way, task in tasks.items():
        tokens[way], real, shifts[way] = seen(task, pipe, image, fields)
        work, near = operations(task, pipe) / 1e6, cosine(tokens[way], real)
        print(f"{way}: {work:.0f} million operations a step; cosine of its tokens to the picture's own {near:.3f}")
    print(f"cosine of one to the other: {cosine(*tokens.values()):.3f}")
    print(f"cosine of one picture to another: {cosine(real, jnp.roll(real, 1, axis=0)):.3f}")
    for t, linear, decoded in zip(TIMES, *shifts.values(), strict=True):
        gap, size = jnp.linalg.norm(linear - decoded), jnp.linalg.norm(linear)
        print(f"t = {t}: r through one less r through the other is {gap / size:.3f} of r")


if __name__ == "__main__":
    scripts.run(main)
