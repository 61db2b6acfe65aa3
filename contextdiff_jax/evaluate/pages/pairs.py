"""What can be paired in two runs: marks of the same prompts, from the same noise where they have it, and bits."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from contextdiff_jax.evaluate.groups import Seen
from contextdiff_jax.evaluate.pages import protocols
from contextdiff_jax.evaluate.pages.run import Run
from contextdiff_jax.evaluate.paired import Difference, holm, p_value, paired

SAME_IMAGES = ("data.source", "data.preset", "data.seed", "data.image_size")  # keys that say which held-out images
BOUND = ("chosen", "batch_size", "timesteps", "dequantize")  # and what of them was measured how


class Compared(NamedTuple):
    """One run against the first.

    Attributes:
        name: of the run on the page.
        rows: (pictures, measure, difference, its p-value after Holm over all rows of the page).
        left_out: why the rest cannot be paired.
    """

    name: str
    rows: list[tuple[str, str, Difference, float]]
    left_out: list[str]


def compared(runs: Sequence[Run], names: Sequence[str]) -> tuple[list[Compared], int]:
    """Every run against the first, and over how many differences Holm's p-values are; a single pair is not among
    them."""
    found = [measured(runs[0], run) for run in runs[1:]]
    own = {(i, k): p_value(row[2]) for i, (rows, _) in enumerate(found) for k, row in enumerate(rows)}
    adjusted = holm({place: p for place, p in own.items() if not np.isnan(p)})
    shown = [
        Compared(name, [(*row, adjusted.get((i, k), np.nan)) for k, row in enumerate(rows)], left_out)
        for i, (name, (rows, left_out)) in enumerate(zip(names[1:], found, strict=True))
    ]
    return shown, len(adjusted)


def same_questions(first: Run, other: Run) -> tuple[list[tuple[Seen, Seen]], list[str]]:
    """Pairs of groups with the same prompts; and why others are no pairs.

    Another seed is refused, because the same one can be had; the noise of another size cannot.
    """
    if not first.seen or not other.seen:
        missing = first if not first.seen else other
        return [], [f"{missing.name} has no kept marks: evaluate it with --mode=eval"]
    if first.seed != other.seed:
        return [], [_other_noise(first, other)]
    by_name = {kept.name: kept for kept in other.seen}
    for kept in other.seen:  # a run without an adapter has one setting, which is compared with the other's adapter on
        by_name.setdefault(f"{kept.group}, adapter on" if not kept.setting else kept.group, kept)
    alike, other_prompts = [], []
    for a, b in ((kept, by_name[kept.name]) for kept in first.seen if kept.name in by_name):
        if (a.captions, a.places) == (b.captions, b.places):
            alike.append((a, b))
        else:
            other_prompts.append(a.name)
    differ = f"{first.name} and {other.name} were not asked the same prompts"
    return alike, [f"{name}: {differ}" for name in other_prompts] if alike else [differ]


def same_noise(first: Run, other: Run, a: Seen, b: Seen) -> bool:
    """Whether pictures of one seed started from the same noise: of one size, in spaces of one shape."""
    kinds, keys = {run.flat_config().get("space.kind") for run in (first, other)}, [_latents(first), _latents(other)]
    if None in keys:  # one does not say: the same autoencoder then, by its place
        keys = [run.flat_config().get("model.pretrained") for run in (first, other)]
    in_one_shape = len(kinds) == 1 and (kinds != {"latents"} or keys[0] == keys[1])
    return a.images.shape[1:] == b.images.shape[1:] and in_one_shape


def _latents(run: Run) -> tuple[int, str] | None:
    """What sets the shape of a picture's latents: how many sizes the autoencoder has, and the channels; None where the
    run does not say."""
    said = run.frozen.get("vae", {}).get("settings", {})
    if not {"block_out_channels", "latent_channels"} <= said.keys():
        return None
    width = said.get("vq_embed_dim", "None")
    return len(re.findall("[0-9]+", said["block_out_channels"])), said["latent_channels"] if width == "None" else width


def _other_noise(first: Run, other: Run) -> str:
    return f"the noise differs: seed {first.seed} of {first.name}, {other.seed} of {other.name}"


def same_images(first: Run, other: Run) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], list[str]]:
    """{setting: bits of both runs} on the same held-out images; and why others are no pairs. A run without an adapter
    is compared with the other under both of its settings."""
    if not first.bits or not other.bits:
        return {}, []
    settings, flat = first.bits if len(first.bits) > 1 else other.bits, [run.flat_config() for run in (first, other)]
    differ = [key for key in SAME_IMAGES if flat[0].get(key) != flat[1].get(key)]
    asked = [next(iter(run.figures.get("bits_per_dim", {}).values()), {}).get("protocol", {}) for run in (first, other)]
    differ += [f"the bound's {key}" for key in BOUND if asked[0].get(key) != asked[1].get(key)]
    if first.records != other.records:
        differ.append("the records")
    if differ:
        return {}, [f"bits per dimension: the held-out images or the bound differ ({', '.join(differ)})"]
    if first.seed != other.seed:
        return {}, [f"bits per dimension: {_other_noise(first, other)}"]
    of = lambda run, setting: next(iter(run.bits.values())) if len(run.bits) == 1 else run.bits.get(setting, ())
    pairs = {setting: (of(first, setting), of(other, setting)) for setting in settings}
    alike = {setting: (a, b) for setting, (a, b) in pairs.items() if len(a) == len(b)}
    why = [
        f"bits per dimension, {setting}: {len(a)} images against {len(b)}; evaluate both again with --mode=eval"
        for setting, (a, b) in pairs.items()
        if setting not in alike
    ]
    return alike, why


def measured(first: Run, other: Run) -> tuple[list[tuple[str, str, Difference]], list[str]]:
    """[(pictures, measure, Difference)] of what can be paired, and why the rest cannot."""
    rows: list[tuple[str, str, Difference]] = []
    pairs, left_out = same_questions(first, other)
    if pairs and (why := protocols.other_judge(first, other)):
        pairs, left_out = [], [*left_out, why]
    for a, b in pairs:
        noise = "" if same_noise(first, other, a, b) else ", from other noise (another size or space)"
        for measure in (m for m in a.marks if m in b.marks):
            _add(rows, left_out, f"{a.name}{noise}", measure, a.marks[measure], b.marks[measure])
    bits, why = same_images(first, other)
    for setting, (a, b) in bits.items():
        _add(rows, left_out, f"held-out images, {setting}", "bits per dimension", a, b)
    return rows, left_out + why


def _add(rows: list, left_out: list[str], what: str, measure: str, a: np.ndarray, b: np.ndarray) -> None:
    """Another row; or why there is none."""
    if len(a) != len(b):
        left_out.append(f"{what}: {len(a)} pictures against {len(b)}")
    elif np.isnan(np.subtract(a, b)).all():
        left_out.append(f"{what}: no picture has a value of {measure} in both")
    else:
        rows.append((what, measure, paired(a, b)))
