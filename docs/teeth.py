"""Do the metrics see what they should? Real renders are spoilt in known ways and measured against other real renders.

    python -m docs.teeth [--pictures=1000] [--efficientnet=300]

prints the tables of docs/RESULTS.md. Each spoiling should move the figures that are meant to see it and leave the
others alone: shuffled captions move the alignment and nothing else; duplicates and a single class move coverage and not
quality.
"""

import argparse
import io
import time
from collections.abc import Callable

import numpy as np
import PIL.Image
import PIL.ImageFilter

from contextdiff_jax.data import OpenMojiSource
from contextdiff_jax.evaluate.feature_spaces import FeatureSpace, open_space
from contextdiff_jax.evaluate.metrics import (
    Accuracy,
    ClipScore,
    Cmmd,
    Frechet,
    Kid,
    Metric,
    Moments,
    PrecisionAndRecall,
)
from contextdiff_jax.models.recogniser import load_recogniser
from docs import scripts

SIDE = 32
Records = list[dict]


def each(change: Callable[[PIL.Image.Image], PIL.Image.Image]) -> Callable[[Records], Records]:
    """A change of every picture."""
    spoil = lambda r: r | {"image": np.asarray(change(PIL.Image.fromarray(r["image"])))}
    return lambda records: [spoil(r) for r in records]


def blur(image: PIL.Image.Image) -> PIL.Image.Image:
    """A Gaussian of one pixel."""
    return image.filter(PIL.ImageFilter.GaussianBlur(1.0))


def jpeg(image: PIL.Image.Image) -> PIL.Image.Image:
    """At quality 20."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=20)
    return PIL.Image.open(file).convert("RGB")


def noise(records: Records) -> Records:
    """Of 40 levels in every channel."""
    rng = np.random.default_rng(0)
    spoil = lambda image: np.clip(image + rng.normal(0, 40, image.shape), 0, 255).astype(np.uint8)
    return [r | {"image": spoil(r["image"])} for r in records]


def duplicates(records: Records) -> Records:
    """One picture in twenty, twenty times each."""
    few = records[: max(1, len(records) // 20)]
    return [few[i % len(few)] for i in range(len(records))]


def shuffled(records: Records) -> Records:
    """Each picture with the caption, and what was asked for, of another."""
    order = np.roll(np.arange(len(records)), 1)
    keys = ("caption", "object", "background")
    return [r | {k: records[j][k] for k in keys} for r, j in zip(records, order, strict=True)]


CHANGES: dict[str, Callable[[Records], Records]] = {
    "other real renders": lambda records: records,
    "blurred": each(blur),
    "noise": noise,
    "JPEG": each(jpeg),
    "duplicates": duplicates,
    "shuffled captions": shuffled,
}
ONE_CLASS = "one class only"


def renders(count: int, skip: int = 0, only: int | None = None) -> Records:
    """Test renders, `count` of them after the first `skip`; of one object where `only` names it."""
    source = OpenMojiSource("demo", "test", SIDE)
    chosen = (i for i in range(skip, len(source)) if only is None or source.scene(i).objects[0] == only)
    return [source[i] for _, i in zip(range(count), chosen, strict=False)]


def stacked(records: Records) -> tuple[np.ndarray, Records]:
    """Pictures [N, H, W, 3] and records numbered anew."""
    return np.stack([r["image"] for r in records]), [r | {"index": i} for i, r in enumerate(records)]


def figures(metrics: list[Metric], records: Records) -> dict[str, float]:
    """All results of one set, under their own names."""
    images, records = stacked(records)
    found = {}
    for metric in metrics:
        metric.update(images, records)
        found |= metric.result()
    return found


def table(make: Callable[[], list[Metric]], count: int) -> dict[str, dict[str, float]]:
    """A row of figures for each way of spoiling."""
    real = renders(count)
    rows = CHANGES | {ONE_CLASS: lambda records: renders(len(records), only=2)}  # fewer: so many there are
    return {name: figures(make(), change(real)) for name, change in rows.items()}


def small_space(space: FeatureSpace, reference: Records, judge=None) -> Callable[[], list[Metric]]:
    """The metrics of the embedded CLIP, and accuracy by the judge."""
    y = space.pooled(stacked(reference)[0])
    return lambda: [
        Frechet(space.pooled, Moments.of(y)),
        Kid(space.pooled, y),
        PrecisionAndRecall(space.pooled, y),
        Cmmd(space.pooled, y),
        ClipScore(space.cropped, space.captioned.embed, prefix=space.captioned.prefix),
        *([Accuracy(judge)] if judge is not None else []),
    ]


def main() -> None:
    """Prints both tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=int, default=1000, help="in the embedded CLIP")
    parser.add_argument("--efficientnet", type=int, default=300, help="in ImageNet's features; 0 leaves them out")
    args = parser.parse_args()
    clip = open_space("clip:builtin:clip_mini")
    reference = renders(args.pictures, skip=args.pictures)
    show(table(small_space(clip, reference, load_recogniser("demo")), args.pictures), CLIP_COLUMNS)
    if args.efficientnet:
        start, imagenet = time.process_time(), open_space("efficientnet")
        y = imagenet.pooled(stacked(renders(args.efficientnet, skip=args.efficientnet))[0])
        per_thousand = 1000 * (time.process_time() - start) / args.efficientnet
        make = lambda: [Kid(imagenet.pooled, y), PrecisionAndRecall(imagenet.pooled, y)]
        show(table(make, args.efficientnet), IMAGENET_COLUMNS)
        print(f"\nEfficientNet-Lite0: {per_thousand:.0f} s of processor time for 1,000 pictures, compilation included")


IMAGENET_COLUMNS = {"kernel_distance": "kernel distance", "precision": "precision", "recall": "recall"}
CLIP_COLUMNS = {"frechet_distance": "Frechet"} | IMAGENET_COLUMNS
CLIP_COLUMNS |= {"cmmd": "CMMD", "clip_score": "CLIPScore", "both": "judge"}


def show(rows: dict[str, dict[str, float]], columns: dict[str, str]) -> None:
    """A Markdown table."""
    print("\n| pictures | n |", " | ".join(columns.values()), "|")
    print("|-|-|" + "-|" * len(columns))
    for name, row in rows.items():
        error = lambda key, row=row: f" ± {row[key + '_stderr']:.1g}" if f"{key}_stderr" in row else ""
        print(f"| {name} | {row['n']} |", " | ".join(f"{row[key]:.3g}{error(key)}" for key in columns), "|")


if __name__ == "__main__":
    scripts.run(main)
