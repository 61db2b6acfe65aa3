"""Figures of embedded clips that only their ground truth allows: does the judge name what was asked for?"""

import dataclasses
import re
from typing import Any

import numpy as np

from contextdiff_jax.data.vocabulary import Vocabulary, vocabulary
from contextdiff_jax.models.recogniser import Recogniser, load_recogniser, ships_recogniser


def is_embedded(cfg_data: Any) -> bool:
    """Whether a config's `data` names an embedded clip, of which everything is known."""
    return cfg_data.source == "clip" and not cfg_data.path


def objects_in(text: str, vocab: Vocabulary) -> list[int]:
    """Ids of the objects that a text names; of names that overlap the longest counts."""
    text, found = text.lower(), []
    for o in sorted(range(len(vocab.objects)), key=lambda o: -len(vocab.objects[o])):
        name = rf"(?<!\w){re.escape(vocab.objects[o].lower())}(?!\w)"
        if re.search(name, text):
            found.append(o)
            text = re.sub(name, "|", text)
    return found


def asked(prompt: str, vocab: Vocabulary, source: str = "") -> tuple[int | None, int | None]:
    """(object, background) ids that a prompt asks for, None where it asks for none, or for no single one.

    Of several objects the one that the source prompt does not name is what the edit was to make.
    """
    named, before = objects_in(prompt, vocab), objects_in(source, vocab)
    wanted = [o for o in named if o not in before] or named
    text = f" {prompt.lower()} "
    colours = (b for b, name in enumerate(vocab.backgrounds) if f" {name} background" in text)
    return wanted[0] if len(wanted) == 1 else None, next(colours, None)


@dataclasses.dataclass(frozen=True)
class Judge:
    """What names the object and the background of an embedded clip.

    Attributes:
        vocab: names by id.
        recogniser: says the ids.
    """

    vocab: Vocabulary
    recogniser: Recogniser

    @classmethod
    def of(cls, cfg_data: Any) -> "Judge | None":
        """That of a config's `data`; None for a user's clip, and for objects of which none has been trained.

        Raises:
            UserError: one that is damaged.
        """
        if not is_embedded(cfg_data) or not ships_recogniser(cfg_data.preset):
            return None
        return cls(vocabulary(cfg_data.preset), load_recogniser(cfg_data.preset))

    def named(self, frames: np.ndarray, prompt: str, source: str) -> dict[str, float]:
        """Share of frames [F, H, W, 3] in which the judge names the prompt's object and background.

        Returns:
            {"judge_object", "judge_background"}, each only where the prompt asks for one (`asked`).
        """
        wanted = dict(zip(("judge_object", "judge_background"), asked(prompt, self.vocab, source), strict=True))
        found = self.recogniser.predict(np.asarray(frames))
        shares = {name: float(np.mean(ids == wanted[name])) for name, ids in zip(wanted, found, strict=True)}
        return {name: share for name, share in shares.items() if wanted[name] is not None}

    def left_out(self, prompts: list[str], source: str) -> list[str]:
        """Why some of the rows have no judged object."""
        several = [p for p in prompts if asked(p, self.vocab, source)[0] is None and len(objects_in(p, self.vocab)) > 1]
        which = ", ".join(map(repr, several))
        return [f"judge_object: several objects, and none or several of them new, in {which}"] if several else []
