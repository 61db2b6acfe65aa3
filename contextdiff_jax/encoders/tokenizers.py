"""Tokenizers: texts to int32 tokens and a mask, by the libraries that defined them."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from contextdiff_jax.errors import UserError
from contextdiff_jax.files import write_json

Tokenize = Callable[[list[str]], dict[str, np.ndarray]]
START, END = "<|startoftext|>", "<|endoftext|>"


def load_tokenizer(folder: str | Path, max_length: int) -> Tokenize:
    """The tokenizer of a CLIP folder: tokenizer.json, or vocab.json with merges.txt.

    Returns:
        texts -> {"tokens": int32 [n, max_length], "token_mask": bool [n, max_length]}: padded and truncated; the mask
        covers start, words and end.

    Raises:
        UserError: the folder has no tokenizer.
    """
    folder = Path(folder)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise UserError(f"{str(folder)!r} has no tokenizer; expected tokenizer.json, or vocab.json and merges.txt")
    if (folder / "tokenizer.json").is_file():
        encode = _fast(Tokenizer.from_file(str(folder / "tokenizer.json")), _pad_token(folder), max_length)
    else:
        encode = _by_transformers(folder, max_length)

    def tokenize(texts: list[str]) -> dict[str, np.ndarray]:
        tokens, mask = encode(list(texts))
        return dict(tokens=np.asarray(tokens, np.int32), token_mask=np.asarray(mask, bool))

    return tokenize


def _pad_token(folder: Path) -> str:
    """The padding token that tokenizer_config.json or special_tokens_map.json names; CLIP's own default otherwise."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            pad = json.loads((folder / name).read_text(encoding="utf-8")).get("pad_token")
            if pad:
                return pad["content"] if isinstance(pad, dict) else pad
    return END


def _fast(tokenizer: Tokenizer, pad: str, max_length: int) -> Callable:
    """Encoder by tokenizer.json itself."""
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
    """Trains CLIP's kind of byte-level BPE (lower case, "</w>" ends a word) and writes what transformers can load.

    Args:
        captions: the texts; the result depends on nothing else.
        vocab_size: at most; small collections stop earlier.
        max_length: model_max_length in tokenizer_config.json.
        out_dir: gets tokenizer.json and tokenizer_config.json.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
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
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(alphabet),
        special_tokens=[START, END],
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
    # Any byte may end a word; the trainer knows only those that did. Without them they would become END.
    vocab = layout["model"]["vocab"]
    for byte in alphabet:
        vocab.setdefault(f"{byte}</w>", len(vocab))
    write_json(layout, out_dir / "tokenizer.json")
    special = dict(bos_token=START, eos_token=END, pad_token=END, unk_token=END)
    config = dict(tokenizer_class="PreTrainedTokenizerFast", model_max_length=max_length, **special)
    write_json(config, out_dir / "tokenizer_config.json")
