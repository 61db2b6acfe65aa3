"""Tokenizers: texts to int32 tokens and a mask, by the libraries that defined them."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from contextdiff_jax.encoders.pretrained import read_json
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import write_json

Tokenize = Callable[[list[str]], dict[str, np.ndarray]]
START, END = "<|startoftext|>", "<|endoftext|>"


def load_tokenizer(folder: str | Path, max_length: int) -> Tokenize:
    """The tokenizer of a CLIP folder: tokenizer.json, or vocab.json with merges.txt.

    Returns:
        texts -> {"tokens": int32 [n, max_length], "token_mask": bool [n, max_length]}: padded and truncated;
        the mask covers start, words and end.

    Raises:
        UserError: the folder has no tokenizer, or a damaged one.
    """
    folder = Path(folder)
    has = lambda *names: all((folder / name).is_file() for name in names)
    if has("tokenizer.json"):
        encode = _fast(read_tokenizer(folder), _pad_token(folder), max_length)
    elif has("vocab.json", "merges.txt"):
        encode = _by_transformers(folder, max_length)
    else:
        raise UserError(f"{str(folder)!r} has no tokenizer; needs tokenizer.json or vocab.json, merges.txt")

    def tokenize(texts: list[str]) -> dict[str, np.ndarray]:
        tokens, mask = encode(list(texts))
        table = lambda rows, dtype: np.asarray(rows, dtype).reshape(-1, max_length)
        return dict(tokens=table(tokens, np.int32), token_mask=table(mask, bool))

    return tokenize


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


def _pad_token(folder: Path) -> str:
    """The padding token that tokenizer_config.json or special_tokens_map.json names, else CLIP's own."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            pad = read_json(folder / name).get("pad_token")
            if pad:
                return pad["content"] if isinstance(pad, dict) else pad
    return END


def _fast(tokenizer: Tokenizer, pad: str, max_length: int) -> Callable:
    """Encoder by tokenizer.json itself."""
    if tokenizer.token_to_id(pad) is None:
        raise UserError(f"padding token {pad!r} is not in tokenizer.json; correct tokenizer_config.json")
    tokenizer.enable_truncation(max_length)
    tokenizer.enable_padding(length=max_length, pad_token=pad, pad_id=tokenizer.token_to_id(pad))

    def encode(texts: list[str]) -> tuple[list, list]:
        encodings = tokenizer.encode_batch(texts)
        return [e.ids for e in encodings], [e.attention_mask for e in encodings]

    return encode


def _by_transformers(folder: Path, max_length: int) -> Callable:
    """Encoder by transformers, for folders that have only vocab.json and merges.txt."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder)

    def encode(texts: list[str]) -> tuple[list, list]:
        out = tokenizer(texts, padding="max_length", truncation=True, max_length=max_length)
        return out["input_ids"], out["attention_mask"]

    return encode


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
