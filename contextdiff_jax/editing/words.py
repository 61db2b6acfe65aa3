"""Which tokens of a prompt are which word."""

import dataclasses
import textwrap
from collections.abc import Callable, Sequence

import numpy as np

from contextdiff_jax.errors import UserError

Read = Callable[[Sequence[str]], dict[str, np.ndarray]]  # texts -> {"tokens", "token_mask"}, as a text condition reads
MARKS = ".,;:!?\"'"  # around a word, but no part of it
# They name nothing that a picture shows.
_SMALL = (
    "a an the this that some its his her their on of in at by and or but with without to from into onto over under "
    "near behind beside between through for as is are left right above below"
)
SMALL_WORDS = frozenset(_SMALL.split())


def plain(word: str) -> str:
    """A word without the marks around it, in small letters."""
    return word.lower().strip(MARKS)


def names_something(word: str) -> bool:
    """Whether a word is more than an article, a preposition or the like."""
    return plain(word) not in SMALL_WORDS


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt as tokens.

    Attributes:
        text: the prompt.
        ids: tokens, padding included, int [L].
        real: how many of them are start, words and end.
        words: its words, as spaces divide them.
        places: the token positions of each word.
        cores: those of them that are no punctuation around it.
    """

    text: str
    ids: np.ndarray
    real: int
    words: tuple[str, ...]
    places: tuple[tuple[int, ...], ...]
    cores: tuple[tuple[int, ...], ...]

    @classmethod
    def read(cls, text: str, read: Read) -> "Prompt":
        """Tokens of a text.

        A word's tokens are those that it has alone: the tokenizers of CLIP and T5 divide a text at its spaces first.

        Raises:
            UserError: an empty prompt, or one with more tokens than the text encoder has room for.
        """
        words = tuple(text.split())
        if not words:
            raise UserError("an empty prompt cannot be aligned; say what the clip shows")
        fields = read([text, "", *words, *(w.rstrip(MARKS) for w in words), *(w.lstrip(MARKS) for w in words)])
        counts = fields["token_mask"].sum(axis=1)
        special, length = int(counts[1]), fields["tokens"].shape[1]
        lengths, without_end, without_start = np.split(counts[2:] - special, 3)
        if (needed := int(lengths.sum()) + special) > length:
            short = textwrap.shorten(text, 60, placeholder=" ...")
            raise UserError(f"prompt {short!r} has {needed} tokens; the text encoder has room for {length}: shorten it")
        starts = np.cumsum([special - 1, *lengths[:-1]])  # all but the end come before the first word
        places = tuple(tuple(range(a, a + n)) for a, n in zip(starts, lengths, strict=True))
        sides = zip(places, lengths - without_start, without_end, strict=True)
        cores = tuple(spots[before:stop] for spots, before, stop in sides)
        return cls(text, fields["tokens"][0], int(counts[0]), words, places, cores)

    def positions(self, word: str) -> list[int]:
        """Token positions of a word, or of several divided by spaces, wherever it occurs; case does not count, and
        punctuation around a word has none.

        Raises:
            UserError: the prompt has no such word; it names those that it has.
        """
        if not (found := self._found(word)):
            raise UserError(f"word {word!r} is not in the prompt {self.text!r}; its words are: {', '.join(self.words)}")
        return [p for i in found for w in range(len(word.split())) for p in self.cores[i + w] or self.places[i + w]]

    def has(self, word: str) -> bool:
        """Whether `positions` finds it."""
        return bool(self._found(word))

    def _found(self, word: str) -> list[int]:
        """Where a word begins, counted in words."""
        wanted, have = [plain(w) for w in word.split()], [plain(w) for w in self.words]
        return [i for i in range(len(have)) if wanted and have[i : i + len(wanted)] == wanted]
