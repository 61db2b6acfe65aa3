"""Figures of embedded clips that only their ground truth allows: does the judge name what was asked for?"""

import re

import numpy as np

from contextdiff_jax.data.vocabulary import Vocabulary
from contextdiff_jax.models.recogniser import Recogniser


def asked(prompt: str, vocab: Vocabulary) -> tuple[int | None, int | None]:
    """(object, background) ids that a prompt names, None where it names none: the longest name counts."""
    text = f" {prompt.lower()} "
    names = sorted(range(len(vocab.objects)), key=lambda o: -len(vocab.objects[o]))
    found = next((o for o in names if re.search(rf"\W{re.escape(vocab.objects[o].lower())}\W", text)), None)
    colours = (b for b, name in enumerate(vocab.backgrounds) if f" {name} background" in text)
    return found, next(colours, None)


def named(frames: np.ndarray, prompt: str, vocab: Vocabulary, judge: Recogniser) -> dict[str, float]:
    """Share of frames [F, H, W, 3] in which the judge names the prompt's object and background.

    Returns:
        {"judge_object", "judge_background"}, each only where the prompt names one.
    """
    wanted = dict(zip(("judge_object", "judge_background"), asked(prompt, vocab), strict=True))
    found = judge.predict(np.asarray(frames))
    shares = {name: float(np.mean(ids == wanted[name])) for name, ids in zip(wanted, found, strict=True)}
    return {name: share for name, share in shares.items() if wanted[name] is not None}
