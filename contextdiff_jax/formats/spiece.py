"""Reads spiece.model, the vocabulary of T5, without the sentencepiece library: it is one protocol buffer message.

Field numbers: sentencepiece_model.proto in https://github.com/google/sentencepiece.
"""

import dataclasses
import struct
from collections.abc import Iterator
from pathlib import Path

from contextdiff_jax.errors import UserError

PIECES, TRAINER, NORMALIZER = 1, 2, 3  # of the message itself
PIECE, SCORE, KIND = 1, 2, 3  # of a piece
CONTROL, USER_DEFINED = 3, 4  # kinds of pieces
MODEL_TYPE, UNIGRAM = 3, 1  # of the trainer's settings
CHARSMAP = 2  # of the normalizer's
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # kinds of fields


@dataclasses.dataclass(frozen=True)
class SentencePiece:
    """A unigram vocabulary.

    Attributes:
        vocab: (piece, log probability) by id.
        added: (piece, whether it is for control) of those that are found in a text before all others.
        charsmap: compiled normalisation of characters; empty for none.
    """

    vocab: list[tuple[str, float]]
    added: list[tuple[str, bool]]
    charsmap: bytes


def read_spiece(path: Path) -> SentencePiece:
    """The vocabulary in a file.

    Raises:
        UserError: it is damaged, or not of the unigram kind.
    """
    vocab, added, charsmap, model_type = [], [], b"", UNIGRAM
    try:
        for number, value in _fields(path.read_bytes()):
            if number == PIECES:
                piece = dict(_fields(value))
                name = piece[PIECE].decode("utf-8")
                vocab.append((name, struct.unpack("<f", piece.get(SCORE, bytes(4)))[0]))
                if piece.get(KIND) in (CONTROL, USER_DEFINED):
                    added.append((name, piece[KIND] == CONTROL))
            elif number == TRAINER:
                model_type = dict(_fields(value)).get(MODEL_TYPE, UNIGRAM)
            elif number == NORMALIZER:
                charsmap = dict(_fields(value)).get(CHARSMAP, b"")
        if not vocab:
            raise ValueError("it holds no pieces")
    except (ValueError, KeyError, IndexError, struct.error, AttributeError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}); download it again") from error
    if model_type != UNIGRAM:
        raise UserError(f"{path} is not a unigram vocabulary, which T5 has; give the tokenizer folder of a T5 model")
    return SentencePiece(vocab, added, charsmap)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of a message's fields: integers, or bytes for all other kinds."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == VARINT:
            value, at = _varint(message, at)
        else:
            if kind == BYTES:
                size, at = _varint(message, at)
            elif kind in (FIXED32, FIXED64):
                size = 4 if kind == FIXED32 else 8
            else:
                raise ValueError(f"field of kind {kind}")
            value, at = message[at : at + size], at + size
            if at > len(message):
                raise ValueError("it ends too early")
        yield key >> 3, value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """An integer in groups of 7 bits, lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
