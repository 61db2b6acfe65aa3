"""What a method asks for must act: settings, words, factors and shares that would change nothing are refused."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from contextdiff_jax.editing.control import Control
from contextdiff_jax.editing.methods import DEMO, NOTHING
from contextdiff_jax.editing.words import Prompt
from contextdiff_jax.errors import UserError

OF_WORDS = ("attention", "outside")  # masks that are made of attention to words
OF_THE_BACKGROUND = ("outside", "around")  # masks that leave the object alone: all else is edited
OF_TARGETS = ("equalizer", "cross_replace_words")  # pairs of a word of an edited prompt and a number
# What else says how a mask is made; a recipe may set these whether or not its method has a mask.
OF_MASKS = ("mask", "mask_threshold")


def masked(edit: Any) -> bool:
    """Whether a mask is used."""
    return edit.self_blend or bool(edit.latent_blend)


def needs_words(edit: Any) -> bool:
    """Whether a mask is made of attention to words."""
    return edit.mask in OF_WORDS and masked(edit)


def equalized(edit: Any) -> bool:
    """Whether any word has a factor."""
    return bool(edit.equalizer) or edit.equalize_added != 1.0


def steps_of(share: float, num_steps: int) -> float:
    """How many of the steps are this share of them: 0.14 * 50 is a little more than 7, and means 7."""
    return np.floor(share * num_steps + 1e-9)


def blended(edit: Any, num_steps: int) -> np.ndarray:
    """The steps after which latents outside the mask become the source's, bool [num_steps]."""
    steps, (first, last) = np.arange(num_steps), edit.latent_blend or (0.0, 0.0)
    return (first * num_steps - 1e-9 <= steps) & (steps < last * num_steps - 1e-9)


def check(edit: Any, num_steps: int) -> None:
    """Refuses settings that cannot act, whatever the prompts.

    Raises:
        UserError: names the keys, their values and the remedy.
    """
    if edit.blend_words and not needs_words(edit):
        raise UserError(
            f"edit.blend_words={tuple(edit.blend_words)} cannot act: with edit.mask={edit.mask!r}, edit.self_blend="
            f"{edit.self_blend} and edit.latent_blend={tuple(edit.latent_blend)} no mask is made of words; leave it out"
        )
    _check_blends(edit, num_steps)
    if edit.cross_replace_steps and edit.alignment == "none" and not equalized(edit):
        raise UserError(
            f"edit.cross_replace_steps={edit.cross_replace_steps:g} cannot act: with edit.alignment='none' no word "
            "takes the source's attention; take 'refine' or 'replace' (as contextdiff and fatezero do), or 0"
        )
    if edit.cross_replace_words and edit.alignment == "none" and not equalized(edit):
        raise UserError(
            "edit.cross_replace_words says how long words take the source's attention, but with edit.alignment='none' "
            "none does; take 'refine' or 'replace'"
        )


def _check_blends(edit: Any, num_steps: int) -> None:
    """Refuses a mask that is used nowhere."""
    if edit.latent_blend and not blended(edit, num_steps).any():
        raise UserError(
            f"edit.latent_blend={tuple(edit.latent_blend)} holds none of the sample.num_steps={num_steps} steps; widen "
            "it, e.g. to (0.2, 0.8), take more steps, or () for none"
        )
    if edit.self_blend and not edit.latent_blend and not steps_of(edit.self_replace_steps, num_steps):
        raise UserError(
            f"edit.self_blend=True cannot act: with edit.self_replace_steps={edit.self_replace_steps:g} no step takes "
            "the source's self-attention; raise it, e.g. to 0.5, or set edit.self_blend to False"
        )
    for key in _idle_masks(edit):
        raise UserError(
            f"edit.{key}={edit[key]!r} cannot act: edit.self_blend=False and edit.latent_blend=() use no mask; leave "
            "it out, or set e.g. edit.latent_blend to (0.2, 0.8)"
        )


def _idle_masks(edit: Any) -> list[str]:
    """Those of `OF_MASKS` that are neither at rest nor used."""
    if masked(edit):
        return []
    at_rest = lambda name: (NOTHING[name], DEMO.get(name))
    return [key for key in OF_MASKS if edit[key] not in at_rest(f"edit.{key}")]


def masks_at_rest(edit: Any, asked: Collection[str] = ()) -> None:
    """Of a run's own settings those of a mask that its method does not use; what a caller asks for himself stays, and
    is refused where it cannot act."""
    edit.update({key: NOTHING[f"edit.{key}"] for key in _idle_masks(edit) if key not in asked})


def blends_at_rest(edit: Any, num_steps: int) -> None:
    """Of a run's own settings those of masks that act in no step, which were taken once."""
    if edit.latent_blend and not blended(edit, num_steps).any():
        edit.latent_blend = ()
    if not edit.latent_blend and not steps_of(edit.self_replace_steps, num_steps):
        edit.self_blend = False
    if not masked(edit):
        edit.blend_words = ()
    masks_at_rest(edit)


def words_at_rest(edit: Any, source: Prompt, prompts: Sequence[Prompt], asked: Collection[str] = ()) -> list[str]:
    """Of a run's own settings the words of a mask that the source prompt has not, and factors and shares of words that
    none of the edited prompts has: they are of another clip, or of other prompts. What a caller asks for himself stays,
    and is refused by `check_words`.

    Returns:
        What is left out: "edit.key: words".
    """
    has = {"blend_words": lambda word: source.has(word)}
    has |= {key: lambda pair: any(prompt.has(pair[0]) for prompt in prompts) for key in OF_TARGETS if prompts}
    found = []
    for key in has.keys() - set(asked):
        if gone := [value for value in edit[key] if not has[key](value)]:
            edit[key] = tuple(value for value in edit[key] if value not in gone)
            found.append(f"edit.{key}: " + ", ".join(value if isinstance(value, str) else value[0] for value in gone))
    if found and edit.alignment == "none" and not equalized(edit):  # beside a factor alone these acted
        of_factors = {"cross_replace_steps": 0.0, "cross_replace_words": ()}
        edit.update({key: rest for key, rest in of_factors.items() if key not in asked})
    return sorted(found)


def check_word(prompt: Prompt, word: str, key: str) -> None:
    """Refuses a word of `edit` that a prompt has not.

    Raises:
        UserError: names the key, and the words that the prompt has.
    """
    try:
        prompt.positions(word)
    except UserError as error:
        raise UserError(f"edit.{key}: {error}; take one of those, or leave it out") from error


def check_words(edit: Any, prompts: Sequence[Prompt]) -> None:
    """Refuses a factor or a share of a word that no edited prompt has."""
    for key in OF_TARGETS:
        for word, _ in edit[key]:
            if not prompts or any(prompt.has(word) for prompt in prompts):
                continue
            if len(prompts) == 1:
                check_word(prompts[0], word, key)
            texts = ", ".join(repr(prompt.text) for prompt in prompts)
            raise UserError(f"edit.{key}: word {word!r} is in none of the edited prompts {texts}; leave it out")


def check_shares(edit: Any, prompts: Sequence[Prompt], controls: Sequence[Control]) -> None:
    """Refuses factors that act in no step, and shares of words that take nothing from the source."""
    for control in controls:
        if not control.cross[:, control.equalizer != 1.0].any(axis=0).all():
            raise UserError(
                f"edit.equalizer={tuple(edit.equalizer)} and edit.equalize_added={edit.equalize_added:g} act in the "
                f"steps of edit.cross_replace_steps={edit.cross_replace_steps:g}, of which a word has none; raise it, "
                "e.g. to 0.8"
            )
    for word, share in idle_shares(edit, prompts, controls):
        raise UserError(
            f"edit.cross_replace_words: {share:g} for the word {word!r} cannot act: with edit.alignment="
            f"{edit.alignment!r} a word that the source prompt has not takes nothing from it, and it has no factor "
            "in edit.equalizer; leave it out"
        )


def idle_shares(edit: Any, prompts: Sequence[Prompt], controls: Sequence[Control]) -> list[tuple[str, float]]:
    """Those of `edit.cross_replace_words` whose words take nothing from the source in any of the edited prompts."""
    found = []
    for word, share in edit.cross_replace_words:
        acts = [
            (control.taken[places] > 0).any() or (control.equalizer[places] != 1.0).any()
            for prompt, control in zip(prompts, controls, strict=True)
            if prompt.has(word) and (places := prompt.positions(word))
        ]
        if acts and not any(acts):
            found.append((word, share))
    return found
