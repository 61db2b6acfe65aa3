"""The folder of a run as a training and an evaluation leave it, without either."""

import json

import numpy as np
from PIL import Image

from configs import t2i
from contextdiff_jax import data
from contextdiff_jax.evaluate.groups import Seen
from contextdiff_jax.evaluate.kept import write_kept
from contextdiff_jax.files import write_json

SETTINGS = ("adapter on", "adapter off")


def make_run(folder, seed=0, right=0.8, count=40, preset="tiny", shown=12):
    """A run whose pictures are renders, recognised by chance with the probability `right`; returns the folder."""
    rng, config = np.random.default_rng(seed), t2i.get_config(preset)
    folder.mkdir(parents=True)
    write_json(config.to_dict(), folder / "config.json")
    start = dict(step=0, time="2026-01-01T00:00:00+00:00", commit="c0ffee", hardware="1 x cpu", versions=dict(jax="0"))
    write_json(dict(records="openmoji demo train, seed 0", starts=[start]), folder / "about.json")
    lines = [
        dict(step=s, loss=2.0 / s**0.5 + 0.01 * rng.random(), grad_norm=1 / s, images_per_second=50.0 + rng.random())
        for s in range(1, 400, 2)
    ]
    lines += [dict(step=s, validation_loss=2.1 / s**0.5, validation_stderr=0.01) for s in range(20, 400, 20)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4')
    seen, rows = [], {}
    for group, split in {"seen combinations": "test", "unseen combinations": "unseen"}.items():
        source, places = data.OpenMojiSource("demo", split, 32), list(range(0, count, max(1, count // shown)))
        records = [source[i] for i in places]
        for setting in SETTINGS:
            images = np.stack([r["image"] for r in records])
            if setting == "adapter off":
                images = np.clip(images + rng.normal(0, 20, images.shape), 0, 255).astype(np.uint8)
            both = (rng.random(count) < right).astype(float)
            marks = dict(object=both, background=np.ones(count), both=both)
            seen.append(Seen(group, setting, [r["caption"] for r in records], places, images, marks))
            row = dict(object=both.mean(), background=1.0, both=both.mean(), n=count)
            rows[f"{group}, {setting}"] = row | {f"{m}_stderr": (row[m] * (1 - row[m]) / count) ** 0.5 for m in marks}
    rows |= {"ceiling: real renders, seen": dict(object=1.0, background=1.0, both=1.0, n=count)}
    rows |= {"chance": dict(object=1 / 12, background=1 / 6, both=1 / 72)}
    distances = {s: dict(frechet=3.0 + i, precision=0.8, recall=0.7, n=2 * count) for i, s in enumerate(SETTINGS)}
    bits = {setting: rng.normal(5.0, 0.2, 16) for setting in SETTINGS}
    terms = dict(prior=1e-4, reconstruction=0.1, split="test", images=16)
    figures = dict(
        title=folder.name,
        step=400,
        seed=0,
        sample=config.sample.to_dict(),
        hardware="1 x cpu, 2 cores",
        alignment=rows,
        judge_features=distances,
        bits_per_dim={s: dict(mean=v.mean(), stderr=0.05, diffusion=4.9) | terms for s, v in bits.items()},
        samples_per_second={s: 7.5 for s in SETTINGS},
    )
    write_json(figures, folder / "eval.json")
    write_kept(seen, bits, 400, 0, folder / "eval")
    (folder / "previews").mkdir()
    Image.new("RGB", (300, 200), "teal").save(folder / "previews" / "step-0000400.png")
    return folder
