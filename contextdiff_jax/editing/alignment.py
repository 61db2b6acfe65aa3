"""How the words of an edited prompt take over the attention of the source prompt's (Hertz et al. 2023).

Numpy: all of this is known before anything is traced.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from contextdiff_jax.editing.words import Prompt
from contextdiff_jax.errors import UserError

ALIGNMENTS = ("refine", "replace", "none")
GAP, MATCH, MISMATCH = 0, 1, -1


class Alignment(NamedTuple):
    """From the source prompt's attention to the edited prompt's.

    Attributes:
        mapping: weights @ mapping are the source's weights at the edited prompt's places, float32 [L, L].
        taken: 1 where a token of the edited prompt takes them, 0 where it keeps its own, float32 [L].
    """

    mapping: np.ndarray
    taken: np.ndarray


def align(kind: str, source: Prompt, target: Prompt) -> Alignment:
    """The alignment of that kind: refine, replace, or none, where every token keeps its own."""
    if kind == "refine":
        return refine(source, target)
    if kind == "replace":
        return replace(source, target)
    if kind != "none":
        raise UserError(f"edit.alignment={kind!r} is unknown; accepted: {', '.join(ALIGNMENTS)}")
    length = len(source.ids)
    return Alignment(np.eye(length, dtype=np.float32), np.zeros(length, np.float32))


def refine(source: Prompt, target: Prompt) -> Alignment:
    """Tokens that both prompts have take the source's attention, new ones keep their own.

    Needleman-Wunsch on the token ids, start and end included (gap 0, match 1, mismatch -1); padding takes what the
    source has in the same place, which of a longer source are words: so it is in the method's own code.
    """
    length = len(target.ids)
    mapping, taken = np.zeros((length, length), np.float32), np.ones(length, np.float32)
    partner = longest_alignment(source.ids[: source.real], target.ids[: target.real])
    for j, i in enumerate(partner):
        if i < 0:
            taken[j] = 0.0
        else:
            mapping[i, j] = 1.0
    for j in range(target.real, length):
        mapping[j, j] = 1.0
    return Alignment(mapping, taken)


def longest_alignment(source: np.ndarray, target: np.ndarray) -> list[int]:
    """For each target token the source token that it is aligned with, or -1."""
    score = np.zeros((len(source) + 1, len(target) + 1), int)
    for i, a in enumerate(source, 1):
        for j, b in enumerate(target, 1):
            along = score[i - 1, j - 1] + (MATCH if a == b else MISMATCH)
            score[i, j] = max(score[i, j - 1] + GAP, score[i - 1, j] + GAP, along)
    partner, i, j = [-1] * len(target), len(source), len(target)
    while i and j:
        if score[i, j] == score[i, j - 1] + GAP:  # of equally good ways, the one that leaves a new token alone
            j -= 1
        elif score[i, j] == score[i - 1, j] + GAP:
            i -= 1
        else:
            i, j = i - 1, j - 1
            partner[j] = i
    return partner


def replace(source: Prompt, target: Prompt) -> Alignment:
    """Each word takes the attention of the word in its place.

    Words of as many tokens pair them one by one; otherwise each token of the new word takes an equal share of all
    those of the old. End and padding pair in their order.

    Raises:
        UserError: the prompts have different numbers of words.
    """
    if len(source.words) != len(target.words):
        raise UserError(
            f"edit.alignment='replace' needs as many words: {source.text!r} has {len(source.words)}, {target.text!r} "
            f"has {len(target.words)}; use 'refine', or prompts of equal length"
        )
    length = len(target.ids)
    mapping = np.zeros((length, length), np.float32)
    first = source.places[0][0]  # what comes before the first word is the same in all texts
    mapping[range(first), range(first)] = 1.0
    for old, new in zip(source.places, target.places, strict=True):
        if len(old) == len(new):
            mapping[old, new] = 1.0
        else:
            mapping[np.ix_(old, new)] = 1.0 / len(new)
    old, new = source.places[-1][-1] + 1, target.places[-1][-1] + 1
    for j in range(new, length):
        mapping[min(old + j - new, length - 1), j] = 1.0
    return Alignment(mapping, np.ones(length, np.float32))


def equalizer(
    target: Prompt, factors: Sequence[tuple[str, float]], added: Sequence[int] = (), of_added: float = 1.0
) -> np.ndarray:
    """What the attention to each token is multiplied by, float32 [L].

    Args:
        target: the edited prompt.
        factors: (word, factor) of words that have their own.
        added: tokens of the words that the edit adds.
        of_added: their factor; all others have 1.

    Raises:
        UserError: a word that is not in the prompt.
    """
    values = np.ones(len(target.ids), np.float32)
    values[list(added)] = of_added
    for word, factor in factors:
        values[target.positions(word)] = factor
    return values


def replaced_steps(
    target: Prompt, num_steps: int, share: float, of_words: Sequence[tuple[str, float]] = ()
) -> np.ndarray:
    """1 in the steps in which a token takes the source's attention: the first share of them; float32 [num_steps, L].

    Args:
        target: the edited prompt.
        num_steps: of sampling.
        share: of all tokens, 0 to 1.
        of_words: (word, share) of those that have another.
    """
    shares = np.full(len(target.ids), share)
    for word, own in of_words:
        shares[target.positions(word)] = own
    return (np.arange(num_steps)[:, None] < np.floor(shares * num_steps + 1e-9)).astype(np.float32)
