"""Where words of the source prompt look, as an inversion has recorded it: what is shown beside an edit."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from contextdiff_jax.editing.control import Control
from contextdiff_jax.editing.plan import EditPlan, needs_words, new_tokens
from contextdiff_jax.editing.words import Prompt, Read, names_something


def heatmaps(
    maps: np.ndarray, edit: Any, source: str, targets: Sequence[str], controls: Sequence[Control], read: Read
) -> dict[str, dict[str, np.ndarray]]:
    """{edited prompt: {word of the source prompt: attention to it [F, h, w]}}; {} where nothing was recorded.

    The words are those of the prompt's mask; without a mask of words, those that the prompt takes away, or else all
    that name something.

    Args:
        maps: of an inversion, [F, h, w, L].
        edit: the config's `edit` section.
        source: the source prompt.
        targets: the edited prompts.
        controls: of each of them.
        read: texts to token fields.
    """
    if not maps.any():
        return {}
    old, found = Prompt.read(source, read), {}
    for target, control in zip(targets, controls, strict=True):
        chosen = control.source_words
        if not needs_words(edit):
            chosen = np.zeros(len(old.ids))
            chosen[new_tokens(Prompt.read(target, read), old)] = 1.0
        words = [w for w, places in zip(old.words, old.places, strict=True) if chosen[list(places)].any()]
        words = words or [word for word in old.words if names_something(word)]
        found[target] = {word: maps[..., old.positions(word)].sum(axis=-1) for word in words}
    return found


def no_heatmaps(plan: EditPlan) -> str:
    """Why there are none."""
    if not plan.recorded:
        return "heatmaps: under edit.inversion_prompt='empty' nothing attends to the source prompt"
    return f"heatmaps: no layer attends to the text at edit.mask_resolution={plan.resolution}; take a side that has one"
