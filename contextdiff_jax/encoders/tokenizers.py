"""The tokenizers' earlier place: they are other libraries' files, and have moved to `contextdiff_jax.formats`."""

import warnings

from contextdiff_jax.formats.tokenizers import (
    TOKENIZER_FILES,
    Tokenize,
    has_tokenizer,
    load_tokenizer,
    read_tokenizer,
    train_bpe,
    trained_length,
)

__all__ = [
    "TOKENIZER_FILES",
    "Tokenize",
    "has_tokenizer",
    "load_tokenizer",
    "read_tokenizer",
    "train_bpe",
    "trained_length",
]
warnings.warn(f"{__name__} has moved; import contextdiff_jax.formats.tokenizers", DeprecationWarning, stacklevel=2)
