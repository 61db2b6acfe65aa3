"""What guidance trades against the background: object swaps by `contextdiff` at several guidance scales, with the
adapter and on the base that never had one; prints a table and draws docs/video/guidance.png.

    python -m docs.video.guidance                        # half an hour of one core where docs/video/run.py has tuned
    python -m docs.video.guidance --seeds=1 --clips=9,15

An arm that follows the text better and keeps less may only stand at another point of one curve; so the two arms are
compared as curves. Tunings are those of docs/video/run.py, which are kept; figures that are stored in
docs/video/guidance are not measured again.
"""

import argparse
import itertools
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from contextdiff_jax.compilation import keep_programs
from contextdiff_jax.data.one_clip import clip_of
from contextdiff_jax.editing.cache import Kept
from contextdiff_jax.editing.editor import PROGRAMS, Editor
from contextdiff_jax.files import write_json
from contextdiff_jax.pipeline import Pipeline
from docs import scripts
from docs.video import base
from docs.video.run import CLIPS, PLAIN, RUNS, SEEDS, chosen, config_of, targets_of, tuned
from docs.video.table import ADAPTER

RESULTS, FIGURE = Path(__file__).parent / "guidance", Path(__file__).parent / "guidance.png"
SCALES = (1.5, 3.0, 4.5, 6.0, 7.5)
ARMS = ("adapter", "never")
FIGURES = (("judge_object", 100, 0), ("clip_text", 1, 3), ("background_psnr", 1, 1))  # name, factor, digits
Row = dict[str, float]


def measured(arm: str, index: int, seed: int, runs: Path) -> dict[str, Row]:
    """{guidance scale: figures of the object swap}."""
    config = config_of("contextdiff", arm, index, seed)
    pipeline, clip, kept = Pipeline.load(tuned(config, runs), config=config), clip_of(config.data), Kept(PROGRAMS)
    target, found = targets_of(index)["object"], {}
    for scale in SCALES:
        asked = pipeline.config.copy_and_resolve_references()
        asked.sample.guidance = scale
        editor = Editor(pipeline.task, pipeline.params, pipeline.frozen, clip, asked, progress=False, kept=kept)
        edit = editor.run([target])
        edit.write(runs / "shown" / f"guidance-{arm}-clip{index}-seed{seed}-{scale:g}")
        found[f"{scale:g}"] = edit.figures["rows"][target]
    return found


def study(indices: Sequence[int], seeds: Sequence[int], results: Path = RESULTS, runs: Path = RUNS) -> None:
    """Measures what is not in the results yet."""
    for seed, index, arm in itertools.product(seeds, indices, ARMS):
        path = results / f"{arm}-clip{index}-seed{seed}.json"
        if not path.is_file():
            if arm == "never":
                base.plain_base(PLAIN)
            write_json(dict(arm=arm, clip=index, seed=seed, rows=measured(arm, index, seed, runs)), path)
            print(path.stem, flush=True)


def over_clips(results: Path = RESULTS) -> dict[str, dict[str, list[dict[str, Row]]]]:
    """{arm: {clip: its runs}} of the pairs of a clip and a seed that both arms have."""
    runs = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    pairs = {arm: {(run["clip"], run["seed"]): run["rows"] for run in runs if run["arm"] == arm} for arm in ARMS}
    common = sorted(set.intersection(*(set(found) for found in pairs.values())))
    found = {arm: defaultdict(list) for arm in ARMS}
    for arm, pair in itertools.product(ARMS, common):
        found[arm][pair[0]].append(pairs[arm][pair])
    return found


def mean_and_error(clips: dict[str, list[dict[str, Row]]], scale: str, figure: str) -> tuple[float, float]:
    """Mean over clips of the mean over a clip's seeds, and its standard error over clips."""
    of_clips = [np.mean([run[scale][figure] for run in runs]) for runs in clips.values()]
    error = np.std(of_clips, ddof=1) / np.sqrt(len(of_clips)) if len(of_clips) > 1 else np.nan
    return float(np.mean(of_clips)), float(error)


def lines(found: dict[str, dict[str, list[dict[str, Row]]]]) -> list[str]:
    """The table: a row for each arm and guidance scale."""
    table = ["| adapter | guidance | object named, % | CLIP-text | background PSNR, dB |", "|-|-|-|-|-|"]
    for arm, scale in itertools.product(ARMS, [f"{scale:g}" for scale in SCALES]):
        cells = []
        for figure, factor, digits in FIGURES:
            mean, error = mean_and_error(found[arm], scale, figure)
            cells.append(f"{factor * mean:.{digits}f} ± {factor * error:.{digits}f}")
        table.append(f"| {ADAPTER[arm]} | {scale} | {' | '.join(cells)} |")
    return table


def draw(found: dict[str, dict[str, list[dict[str, Row]]]], path: Path = FIGURE) -> None:
    """The curves: what of the background is kept against how well the text is followed."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 4), sharey=True, layout="constrained")
    for axis, name, label in zip(axes, ("clip_text", "judge_object"), ("CLIP-text", "object named"), strict=True):
        for arm in ARMS:
            kept = [mean_and_error(found[arm], f"{scale:g}", "background_psnr") for scale in SCALES]
            text = [mean_and_error(found[arm], f"{scale:g}", name) for scale in SCALES]
            (x, dx), (y, dy) = zip(*text, strict=True), zip(*kept, strict=True)
            words = {"adapter": "with the adapter", "never": "a base that never had one"}[arm]
            axis.errorbar(x, y, xerr=dx, yerr=dy, marker="o", capsize=2, alpha=0.8, label=words)
            for scale, *point in zip(SCALES, x, y, strict=True):
                axis.annotate(f"{scale:g}", point, textcoords="offset points", xytext=(5, 5), fontsize=8)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("background PSNR, dB")
    axes[0].legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", default="", help="of docs/video/run.py; default all")
    parser.add_argument("--seeds", default="0")
    args = parser.parse_args()
    keep_programs("auto")
    study(chosen("clips", args.clips, tuple(CLIPS)), chosen("seeds", args.seeds, SEEDS))
    found = over_clips()
    print("\n".join(lines(found)))
    draw(found)


if __name__ == "__main__":
    scripts.run(main)
