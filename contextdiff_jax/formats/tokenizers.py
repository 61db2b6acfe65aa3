"""Tokenizers: texts to int32 tokens and a mask, by the libraries that defined them."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging
from tokenizers import (
    AddedToken,
    Encoding,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from contextdiff_jax.errors import UserError
from contextdiff_jax.files import read_object, write_json
from contextdiff_jax.formats import hub
from contextdiff_jax.formats.kinds import check, unsupported
from contextdiff_jax.formats.spiece import read_spiece

if TYPE_CHECKING:
    import transformers

Tokenize = Callable[[list[str]], dict[str, np.ndarray]]
START, END = "<|startoftext|>", "<|endoftext|>"
T5_PAD = "<pad>"
JSON, BPE, SPIECE = LAYOUTS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",))
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "special_tokens_map.json",
    "added_tokens.json",
)
_NO_LIMIT = 10**9  # transformers writes 1e30
SHOWN = 200  # characters of a text in a warning


def has_tokenizer(folder: Path) -> bool:
    """Whether there are files that `load_tokenizer` can read."""
    return any(all((folder / name).is_file() for name in names) for names in LAYOUTS)


def settings(folder: Path) -> dict[str, Any]:
    """What tells a folder's tokenizer from others, as far as it is read: {file or key: digest or value}."""
    layout = next((names for names in LAYOUTS if all((folder / name).is_file() for name in names)), ())
    found = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest()[:16] for name in layout}
    sides = {key: _side(folder, key) for key in ("padding_side", "truncation_side")}
    return found | sides | {"pad_token": _pad_token(folder)}


def trained_length(folder: Path) -> int | None:
    """The number of tokens that tokenizer_config.json names as the model's limit; None where it names none."""
    path = folder / "tokenizer_config.json"
    length = read_object(path).get("model_max_length") if path.is_file() else None
    if isinstance(length, int | float) and length >= _NO_LIMIT:
        return None
    check(f"{path}:", dict(model_max_length=length), dict(model_max_length=int | None))
    return length


def load_tokenizer(folder: str | Path, max_length: int) -> Tokenize:
    """The tokenizer of a CLIP or T5 folder: tokenizer.json, or vocab.json with merges.txt, or spiece.model.

    The first text that is too long is logged, with the part that was cut.

    Returns:
        texts -> {"tokens": int32 [n, max_length], "token_mask": bool [n, max_length]}: padded and truncated;
        the mask covers start, words and end.

    Raises:
        UserError: the folder has no tokenizer, or a damaged one; max_length is too small for any text.
    """
    tokenizer, pad = _open(Path(folder))
    if pad is None or tokenizer.token_to_id(pad) is None:
        raise UserError(f"padding token {pad!r} of {str(folder)!r} has no id; correct its tokenizer_config.json")
    if max_length < (least := tokenizer.num_special_tokens_to_add(is_pair=False)):
        raise UserError(f"texts of {max_length} tokens have no room for their start and end; take at least {least}")
    tokenizer.add_special_tokens([pad])  # as transformers does; in a text it is the padding token as well
    padded, cut_from = (_side(Path(folder), key) for key in ("padding_side", "truncation_side"))
    tokenizer.enable_truncation(max_length, direction=cut_from)
    tokenizer.enable_padding(direction=padded, length=max_length, pad_token=pad, pad_id=tokenizer.token_to_id(pad))
    warned = False

    def tokenize(texts: list[str]) -> dict[str, np.ndarray]:
        nonlocal warned
        texts = list(texts)
        encodings = tokenizer.encode_batch(texts)
        cut = next((i for i, encoding in enumerate(encodings) if encoding.overflowing), None)
        if cut is not None and not warned:
            warned = True
            _warn(texts[cut], encodings[cut], max_length)
        table = lambda name, dtype: np.asarray([getattr(e, name) for e in encodings], dtype).reshape(-1, max_length)
        return dict(tokens=table("ids", np.int32), token_mask=table("attention_mask", bool))

    return tokenize


def token_counter(folder: str | Path) -> Callable[[Sequence[str]], np.ndarray]:
    """How many tokens texts have before any is cut, start and end among them: texts -> int [n].

    Raises:
        UserError: as `load_tokenizer`, of the folder.
    """
    tokenizer, _ = _open(Path(folder))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda texts: np.array([len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts))], np.int64)


def _side(folder: Path, key: str) -> str:
    """On which side tokenizer_config.json has texts padded or cut; transformers' default is the right."""
    path = folder / "tokenizer_config.json"
    side = read_object(path).get(key, "right") if path.is_file() else "right"
    if side not in ("left", "right"):
        raise unsupported(f"{path}:", key, side, "left or right")
    return side


def _warn(text: str, encoding: Encoding, max_length: int) -> None:
    """Says what of a text is lost."""
    real = zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
    end = max((stop for (_, stop), special in real if not special), default=0)
    short = lambda s: s if len(s) <= SHOWN else f"{s[:SHOWN]}..."
    logging.warning(
        "the text %r is longer than the text encoder's %d tokens; this part is cut: %r (later texts are cut silently)",
        short(text),
        max_length,
        short(text[end:].strip()),
    )


def _open(folder: Path) -> tuple[Tokenizer, str]:
    """A folder's tokenizer and its padding token."""
    has = lambda names: all((folder / name).is_file() for name in names)
    if has(JSON):
        tokenizer = read_tokenizer(folder)
        return tokenizer, _pad_token(folder) or (T5_PAD if tokenizer.token_to_id(END) is None else END)
    try:
        if has(BPE):
            from transformers import CLIPTokenizer

            slow = CLIPTokenizer.from_pretrained(folder)
        elif has(SPIECE):
            slow = _t5_tokenizer(folder)
        else:
            needed = ", or ".join(" with ".join(names) for names in LAYOUTS)
            remedy = hub.remedy(folder, "put these files there")
            raise UserError(f"{str(folder)!r} has no tokenizer; needs {needed}; {remedy}")
    except UserError:
        raise
    except Exception as error:  # the libraries raise no narrower type
        raise UserError(f"the tokenizer in {str(folder)!r} is damaged ({error}); download it again") from error
    return slow.backend_tokenizer, slow.pad_token


def _t5_tokenizer(folder: Path) -> "transformers.T5Tokenizer":
    """As transformers makes it from spiece.model, for which it would need the sentencepiece library."""
    from transformers import T5Tokenizer

    spiece = read_spiece(folder / "spiece.model")
    path = folder / "tokenizer_config.json"
    extra_ids = read_object(path).get("extra_ids", 100) if path.is_file() else 100
    sentinels = [f"<extra_id_{i}>" for i in reversed(range(extra_ids))]
    return T5Tokenizer(
        vocab=[*spiece.vocab, *((sentinel, 0.0) for sentinel in sentinels)],
        _spm_precompiled_charsmap=spiece.charsmap or None,
        extra_ids=extra_ids,
        additional_special_tokens=[
            *(AddedToken(piece, normalized=False, special=control) for piece, control in spiece.added),
            *sentinels,
        ],
    )


def read_tokenizer(folder: str | Path) -> Tokenizer:
    """tokenizer.json of a folder.

    Raises:
        UserError: it is damaged.
    """
    path = Path(folder) / "tokenizer.json"
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower type
        raise UserError(f"{path} is damaged ({error}); download or build it again") from error


def _pad_token(folder: Path) -> str | None:
    """The padding token that tokenizer_config.json or special_tokens_map.json names."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        said = read_object(path).get("pad_token") if path.is_file() else None
        pad = said.get("content") if isinstance(said, dict) else said
        if said is not None and not isinstance(pad, str):
            raise unsupported(f"{path}:", "pad_token", said, 'a token, or an object with it as "content"')
        if pad:
            return pad
    return None


def train_bpe(captions: Iterable[str], vocab_size: int, max_length: int, out_dir: str | Path) -> None:
    """Trains CLIP's kind of byte-level BPE (lower case, "</w>" ends a word) for transformers as well.

    Args:
        captions: the texts; the result depends on nothing else but the two sizes.
        vocab_size: at most; small collections stop earlier.
        max_length: model_max_length in tokenizer_config.json.
        out_dir: gets tokenizer.json and tokenizer_config.json.

    Raises:
        UserError: vocab_size has no room for all bytes.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # Any byte may end a word, also one that never did in `captions`. Naming these tokens beforehand also
    # makes the result reproducible: a trainer numbers new ones in a hash map's order, and so decides ties.
    ends = [f"{byte}</w>" for byte in alphabet]
    smallest = len(alphabet) + len(ends) + len([START, END])
    if vocab_size < smallest:
        raise UserError(f"vocab_size={vocab_size} has no room for all bytes; give at least {smallest}")
    out_dir = Path(out_dir)
    tokenizer = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=END))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[START, END, *ends],
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    ids = {token: tokenizer.token_to_id(token) for token in (START, END)}
    tokenizer.post_processor = processors.RobertaProcessing(
        (END, ids[END]), (START, ids[START]), trim_offsets=False, add_prefix_space=False
    )
    layout = json.loads(tokenizer.to_str())
    # To the trainer the word ends were special; in a text, "a</w>" is nothing special.
    layout["added_tokens"] = [token for token in layout["added_tokens"] if token["content"] in (START, END)]
    write_json(layout, out_dir / "tokenizer.json")
    special = dict(bos_token=START, eos_token=END, pad_token=END, unk_token=END)
    config = dict(tokenizer_class="PreTrainedTokenizerFast", model_max_length=max_length, **special)
    write_json(config, out_dir / "tokenizer_config.json")
