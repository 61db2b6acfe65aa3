"""Tokenisation against transformers' CLIPTokenizer, and the BPE that the mini CLIP is trained with."""

import json
import subprocess
import sys

import numpy as np
import pytest
import transformers

from contextdiff_jax.data import captions
from contextdiff_jax.encoders.tokenizers import END, START, load_tokenizer, train_bpe
from contextdiff_jax.errors import UserError

LENGTH = 24
TEXTS = [
    "a red apple on a blue background",
    "",
    " ",
    "😀🍎 an apple 👩🏽‍🚀",
    "一只红色的猫 在树的左边",
    "Ünïcödé ÉCLAIR, Straße, é ﬁ ½ ²",
    "it's you're I'll we'd DON'T",
    "numbers 1234567890 and 3.14",
    "tabs\tand\nnew\r\nlines   and\u3000spaces",
    "!!! ... ??? #hash @at <tag> </w> a</w> {curly}",
    f"{END} inside {START} the text",
    "מילה عربية हिन्दी ไทย",
    "word " * 500,
    "x" * 3000,
    "\u200bzero\u200d width \x00 control",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder from `train_bpe`."""
    folder = tmp_path_factory.mktemp("trained")
    train_bpe(captions("demo"), 700, LENGTH, folder)
    return folder


@pytest.fixture(scope="module")
def openai_style(tmp_path_factory):
    """A folder as OpenAI's and Stable Diffusion's are: vocab.json and merges.txt, special tokens last."""
    folder = tmp_path_factory.mktemp("openai")
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    merges = ["a p", "ap p", "l e</w>", "app le</w>", "r e", "re d</w>", "c a", "ca t</w>", "ð Ł"]
    words = [m.replace(" ", "") for m in merges]
    tokens = [*alphabet, *(f"{a}</w>" for a in alphabet), *words, START, END]
    vocab = {token: i for i, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocab), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", "utf-8")
    return folder


def assert_same(folder, tokenizer) -> None:
    ours = load_tokenizer(folder, LENGTH)(TEXTS)
    theirs = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=LENGTH)
    assert ours["tokens"].dtype == np.int32 and ours["token_mask"].dtype == bool
    for i, text in enumerate(TEXTS):
        for name, key in (("tokens", "input_ids"), ("token_mask", "attention_mask")):
            np.testing.assert_array_equal(ours[name][i], theirs[key][i], err_msg=f"{name} {text[:40]!r}")


@pytest.mark.parametrize("kind", [transformers.AutoTokenizer, transformers.CLIPTokenizer])
def test_trained_tokenizer_equals_transformers(trained, kind):
    assert_same(trained, kind.from_pretrained(trained))


def test_vocab_and_merges_equal_transformers(openai_style):
    assert_same(openai_style, transformers.CLIPTokenizer.from_pretrained(openai_style))


def test_folder_saved_by_transformers(openai_style, tmp_path):
    tokenizer = transformers.CLIPTokenizer.from_pretrained(openai_style)
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").is_file()
    assert_same(tmp_path, tokenizer)


def test_another_padding_token(openai_style, tmp_path):
    """Stable Diffusion 2 pads with "!"."""
    tokenizer = transformers.CLIPTokenizer.from_pretrained(openai_style, pad_token="!")
    tokenizer.save_pretrained(tmp_path)
    assert_same(tmp_path, tokenizer)
    assert load_tokenizer(tmp_path, LENGTH)([""])["tokens"][0, -1] == tokenizer.convert_tokens_to_ids("!")


def test_mask_covers_start_words_and_end(trained):
    out = load_tokenizer(trained, LENGTH)(["a red apple", "", "word " * 500])
    assert (out["tokens"][:, 0] == 0).all()
    ends = [np.flatnonzero(mask)[-1] for mask in out["token_mask"]]
    assert [out["tokens"][i, end] for i, end in enumerate(ends)] == [1, 1, 1]
    assert ends[1:] == [1, LENGTH - 1] and 2 < ends[0] < LENGTH - 1


def test_no_texts_have_the_right_shape(trained):
    out = load_tokenizer(trained, LENGTH)([])
    assert out["tokens"].shape == out["token_mask"].shape == (0, LENGTH)


def test_training_is_reproducible_in_another_process(trained, tmp_path):
    """The trainer's own numbering follows a hash map that every process seeds anew."""
    script = (
        "from contextdiff_jax.data import captions\n"
        "from contextdiff_jax.encoders.tokenizers import train_bpe\n"
        f"[train_bpe(captions('demo'), 700, {LENGTH}, '{tmp_path}/' + str(i)) for i in range(3)]"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    expected = (trained / "tokenizer.json").read_bytes()
    assert all((tmp_path / str(i) / "tokenizer.json").read_bytes() == expected for i in range(3))


@pytest.mark.parametrize("vocab_size", [514, 520, 600])
def test_vocabulary_is_never_larger_than_asked(tmp_path, vocab_size):
    train_bpe(captions("demo"), vocab_size, LENGTH, tmp_path)
    vocab = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    assert sorted(vocab.values()) == list(range(len(vocab)))
    assert len(vocab) <= vocab_size
    assert vocab[START] == 0 and vocab[END] == 1
    assert load_tokenizer(tmp_path, LENGTH)(TEXTS)["tokens"].max() < vocab_size


def test_any_text_survives_in_bytes(trained):
    """No byte is unknown: every text decodes to itself, lower case and without its spaces."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(trained)
    for text in ("😀 一只猫 Straße zyx", "qwertz ½"):
        ids = tokenizer(text)["input_ids"][1:-1]
        assert not {START, END} & set(tokenizer.convert_ids_to_tokens(ids))
        decoded = tokenizer.backend_tokenizer.decode(ids).replace("</w>", "")
        assert decoded == text.lower().replace(" ", "")


@pytest.mark.parametrize(
    "files, words",
    [
        ({}, "no tokenizer"),
        ({"vocab.json": "{}"}, "no tokenizer"),
        ({"tokenizer.json": "{"}, "tokenizer.json is damaged"),
    ],
)
def test_unusable_folders(tmp_path, files, words):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=words):
        load_tokenizer(tmp_path, LENGTH)


def test_unknown_padding_token(trained, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((trained / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(dict(pad_token="<nothing>")))
    with pytest.raises(UserError, match="padding token '<nothing>'"):
        load_tokenizer(tmp_path, LENGTH)


def test_too_small_a_vocabulary(tmp_path):
    with pytest.raises(UserError, match="vocab_size=300.*at least 514"):
        train_bpe(["a"], 300, LENGTH, tmp_path)
