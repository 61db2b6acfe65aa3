"""What the shift does to pictures while they are noised: held-out scenes of a trained model, at times from 1 to T.

    python -m docs.study.noising --model=runs/demo [--pictures=3] [--out=docs/study/noising.png]
    python -m docs.study.noising --model=runs/emoji4 --T=4 --out=docs/study/steps-noising.png   # minutes, once

For each scene three rows, over t: the mean of x_t without the shift, sqrt(alpha_bar_t) x0; the shift b_t, grey where it
is zero; and the mean with it (Eq. 1). Printed: the root mean square of r and b_t at these times. With --T the model is
the study's of emoji at 16 x 16 in so many steps, r free, which is trained in --model unless it is there.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax import Pipeline, data, training
from contextdiff_jax import task as task_lib
from contextdiff_jax.errors import UserError
from contextdiff_jax.tasks.records import held_out
from docs import scripts
from docs.study import steps_images
from docs.study.plots import figure, write
from docs.study.steps import ARMS

COLUMNS = 7
GAIN = 2.0  # of the shift in the picture, which else is pale


def means(pipeline: Pipeline, count: int) -> tuple[np.ndarray, dict[str, np.ndarray], list[str], dict[str, np.ndarray]]:
    """(times [K], {row: [K, N, H, W, C]}, captions, {"r" and "b": root mean squares [K]}) of held-out scenes.

    Raises:
        UserError: a model without an adapter, or of latents or clips.
    """
    task, config = pipeline.task, pipeline.config
    if task.adapter is None or config.space.kind != "pixels" or config.data.num_frames > 1:
        raise UserError("--model is no model of pictures in pixels with an adapter; train one: bash launch/demo.sh")
    records = held_out(config, task.parts)[1]
    shown = [records[i] for i in data.chosen(len(records), count, config.data.seed)]
    fields = {k: jnp.asarray(v) for k, v in task.parts.condition.from_records(shown).items()}
    x0 = jnp.stack([jnp.asarray(record["image"], jnp.float32) for record in shown]) / 127.5 - 1.0
    s, params = task.schedule_of(pipeline.params), pipeline.params
    times = np.unique(np.linspace(1, s.num_timesteps, COLUMNS).round().astype(int))

    @jax.jit
    def shift(t: jax.Array) -> jax.Array:
        return task.shift(params, pipeline.frozen, task.encode(params, pipeline.frozen, fields))(x0, t)

    b = np.stack([shift(jnp.int32(t)) for t in times])
    signal = np.sqrt(np.asarray(s.alpha_bar))[times].reshape(-1, 1, 1, 1, 1) * np.asarray(x0)
    rows = {"without": signal, f"shift x {GAIN:g}": GAIN * b, "with": signal + b}
    size = np.sqrt((b**2).mean(axis=(1, 2, 3, 4)))
    captions = task.parts.captions(task.parts.prompts(shown))
    return times, rows, captions, {"b": size, "r": size / np.asarray(s.k)[times]}


def draw(times: np.ndarray, rows: dict[str, np.ndarray], captions: list[str], path: Path) -> None:
    """The grid: a column for each t, three rows for each scene, whose caption stands over them."""
    lines = [(n, name) for n in range(len(captions)) for name in rows]
    fig, axes = figure(1.25 * len(times) + 0.8, 1.4 * len(lines), len(lines), len(times))
    for (n, name), of_line in zip(lines, axes, strict=True):
        for k, ax in enumerate(of_line):
            ax.imshow(np.clip(rows[name][k, n] / 2 + 0.5, 0, 1), interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            if name == next(iter(rows)):
                ax.set_title(f"t = {times[k]}" if n == 0 else " ", fontsize=8)
        of_line[0].set_ylabel(name, fontsize=8)
        if name == next(iter(rows)):
            above = dict(xycoords="axes fraction", textcoords="offset points", fontsize=8)
            caption = of_line[0].annotate(captions[n], (0, 1), (0, 18 if n == 0 else 4), **above)
            caption.set_in_layout(False)  # or the first column becomes as wide as the words
    fig.suptitle(" ")  # room for the first caption
    write(fig, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/demo")
    parser.add_argument("--pictures", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("noising.png"))
    parser.add_argument("--T", type=int, default=0, help="trains the study's emoji at 16 x 16 in so many steps first")
    args = parser.parse_args()
    if args.T:
        training.train(task_lib.build(steps_images.config_of("emoji16", args.T, ARMS["free"])), args.model)
    times, rows, captions, sizes = means(Pipeline.load(args.model), args.pictures)
    draw(times, rows, captions, args.out)
    for name, values in sizes.items():
        print(f"rms of {name}: " + ", ".join(f"t = {t}: {v:.3f}" for t, v in zip(times, values, strict=True)))


if __name__ == "__main__":
    scripts.run(main)
