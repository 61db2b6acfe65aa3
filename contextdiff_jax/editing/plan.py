"""A method as data: which parts of editing act, from the config's `edit` section."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from absl import logging

from contextdiff_jax.data.clips import Clip
from contextdiff_jax.data.one_clip import window_starts
from contextdiff_jax.editing import alignment, effects
from contextdiff_jax.editing.control import Control
from contextdiff_jax.editing.effects import OF_WORDS, equalized, masked, needs_words
from contextdiff_jax.editing.words import Prompt, Read, names_something
from contextdiff_jax.errors import UserError
from contextdiff_jax.models.controlnet import ControlNet
from contextdiff_jax.samplers.sampling import Plan


@dataclass(frozen=True)
class EditPlan:
    """What the compiled edit depends on; hashable.

    Attributes:
        sampling: steps, guidance or none, adapter.
        fused: whether attention takes the source's weights: then the source runs as a row of its own.
        self_blend: whether self-attention inside the mask stays the edited row's.
        latent_blend: whether latents outside the mask become the source's.
        mask: where the mask comes from: attention, outside (all but that), clip (the clip's own masks), around (all but
            those).
        mask_scale: how attention becomes a mask, see `masks.mask`.
        resolution: side of the cross-attention maps that make the mask.
        max_tokens: attention of more positions is left alone.
        recorded: whether the inversion remembers its attention to the source prompt, to be shown.
        length: frames of the clip.
        window: frames that the network takes at once.
        overlap: of windows.
        controlnet: what adds the clip's edges to the network; None for nothing.
    """

    sampling: Plan
    fused: bool
    self_blend: bool
    latent_blend: bool
    mask: str
    mask_scale: str
    resolution: int
    max_tokens: int
    recorded: bool
    length: int
    window: int
    overlap: int
    controlnet: ControlNet | None = None

    @property
    def masked(self) -> bool:
        """Whether there is a mask."""
        return self.self_blend or self.latent_blend

    @property
    def attention_mask(self) -> bool:
        """Whether there is a mask that is made of attention maps."""
        return self.masked and self.mask in OF_WORDS


def controls_of(edit: Any, num_steps: int, source: str, targets: Sequence[str], read: Read) -> list[Control]:
    """The arrays of a method for each edited prompt.

    Args:
        edit: the config's `edit` section: alignment, cross_replace_steps, cross_replace_words, self_replace_steps,
            equalizer, equalize_added, self_blend, latent_blend, blend_words, mask, mask_threshold.
        num_steps: of sampling.
        source: the source prompt.
        targets: the edited prompts; a word with a factor or a share is in one of them at the least.
        read: texts to token fields.

    Raises:
        UserError: prompts that cannot be aligned, words that are not in them, a mask without words, factors, shares,
            words or settings of a mask that would do nothing.
    """
    old, prompts = Prompt.read(source, read), [Prompt.read(target, read) for target in targets]
    for word in edit.blend_words:
        effects.check_word(old, word, "blend_words")  # whether or not there is a mask
    effects.check(edit, num_steps)
    effects.check_words(edit, prompts)
    controls = [_control_of(edit, num_steps, old, new) for new in prompts]
    effects.check_shares(edit, prompts, controls)
    return controls


def words_at_rest(edit: Any, source: str, targets: Sequence[str], read: Read, asked: Collection[str] = ()) -> None:
    """Leaves out of a run's own `edit` section words that these prompts have not, and says which; `asked` are keys that
    a caller has set himself."""
    prompts = [Prompt.read(target, read) for target in targets]
    if gone := effects.words_at_rest(edit, Prompt.read(source, read), prompts, asked):
        logging.warning("of the run's own settings these are of no word of the prompts: left out (%s)", "; ".join(gone))


def shares_at_rest(edit: Any, num_steps: int, source: str, targets: Sequence[str], read: Read) -> None:
    """Leaves out of a run's own `edit` section shares of words that take nothing from the source, which were taken
    once; arguments and errors are those of `controls_of`."""
    if edit.cross_replace_words:
        old, prompts = Prompt.read(source, read), [Prompt.read(target, read) for target in targets]
        idle = effects.idle_shares(edit, prompts, [_control_of(edit, num_steps, old, new) for new in prompts])
        edit.cross_replace_words = tuple(pair for pair in edit.cross_replace_words if tuple(pair) not in idle)


def control_of(edit: Any, num_steps: int, source: str, target: str, read: Read) -> Control:
    """The same of one edited prompt."""
    return controls_of(edit, num_steps, source, [target], read)[0]


def _control_of(edit: Any, num_steps: int, old: Prompt, new: Prompt) -> Control:
    """The arrays for one prompt."""
    found = alignment.align(edit.alignment, old, new)
    steps, length = np.arange(num_steps), len(new.ids)
    words = np.zeros((2, length), np.float32)
    if needs_words(edit):
        words[0, _words_of_mask(edit, old, new)] = 1.0
        words[1, new_tokens(old, new)] = 1.0
    factors, shares = ([(w, v) for w, v in edit[key] if new.has(w)] for key in effects.OF_TARGETS)
    return Control(
        mapping=found.mapping,
        taken=found.taken,
        equalizer=alignment.equalizer(new, factors, new_tokens(old, new), edit.equalize_added),
        cross=alignment.replaced_steps(new, num_steps, edit.cross_replace_steps, shares),
        self_attention=(steps < effects.steps_of(edit.self_replace_steps, num_steps)).astype(np.float32),
        blend=effects.blended(edit, num_steps).astype(np.float32),
        source_words=words[0],
        target_words=words[1],
        threshold=np.float32(edit.mask_threshold),
    )


def _words_of_mask(edit: Any, old: Prompt, new: Prompt) -> list[int]:
    """Source tokens of the mask: those of the words that were named, or else of those that the edit takes away."""
    if edit.inversion_prompt == "empty":
        raise UserError(
            f"edit.inversion_prompt='empty' with edit.mask={edit.mask!r}: that mask is made of the inversion's "
            "attention to the source prompt; take edit.inversion_prompt='source', or the recipe background, which has "
            "no mask"
        )
    if edit.blend_words:
        return [p for word in edit.blend_words for p in old.positions(word)]
    if edit.mask == "outside":
        raise UserError(
            f"edit.mask='outside' edits all but what some words of {old.text!r} show: name them by edit.blend_words"
        )
    gone = new_tokens(new, old)
    if not gone:
        raise UserError(
            f"a mask is made of attention to words that an edit takes away; {new.text!r} keeps all of {old.text!r}: "
            "name words of the source prompt by edit.blend_words, or switch edit.self_blend and edit.latent_blend off "
            "(as the recipes style and background do)"
        )
    return gone


def new_tokens(old: Prompt, new: Prompt) -> list[int]:
    """Positions of the words of `new` that `old` has not, those that name nothing (articles, prepositions) only where
    there are no others; punctuation makes no word another one."""
    partner = alignment.longest_alignment(old.ids[: old.real], new.ids[: new.real])
    pairs = zip(new.words, new.cores, strict=True)
    added = [(word, core) for word, core in pairs if any(partner[p] < 0 for p in core)]
    named = [(word, core) for word, core in added if names_something(word)]
    return [p for _, core in named or added for p in core]


def plan_of(edit: Any, sampling: Plan, clip: Clip, window: int, overlap: int) -> EditPlan:
    """The static part of a method for a clip.

    Raises:
        UserError: a mask of the clip's own that it has not; windows that do not fit it.
    """
    window_starts(len(clip.frames), window, overlap)
    if masked(edit) and edit.mask not in OF_WORDS and clip.masks is None:
        accepted = " or ".join(map(repr, OF_WORDS))
        raise UserError(f"edit.mask={edit.mask!r}: this clip has no masks; give data.mask_path, or take {accepted}")
    return EditPlan(
        sampling=sampling,
        fused=edit.alignment != "none" or edit.self_replace_steps > 0 or equalized(edit),
        self_blend=edit.self_blend,
        latent_blend=bool(edit.latent_blend),
        mask=edit.mask,
        mask_scale=edit.mask_scale,
        resolution=edit.mask_resolution,
        max_tokens=edit.max_tokens,
        recorded=edit.inversion_prompt == "source",
        length=len(clip.frames),
        window=window,
        overlap=overlap,
    )
