"""Tokenisation against transformers' own for CLIP and T5, and the BPE that the mini CLIP is trained with."""

import json
import subprocess
import sys

import numpy as np
import pytest
import sentencepiece
import transformers
from transformers.convert_slow_tokenizer import import_protobuf

from contextdiff_jax.data import captions
from contextdiff_jax.errors import UserError
from contextdiff_jax.formats.spiece import read_spiece
from contextdiff_jax.formats.tokenizers import END, START, load_tokenizer, train_bpe

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
    "MiXeD CaSe  with  double  spaces ",
    "</s> hi</s> <pad> <unk> <extra_id_0> <extra_id_99><extra_id_100> ▁a",
    "Ａ１ ﬃ x²",
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


@pytest.mark.parametrize("layout", ["tokenizer.json", "vocab.json", "only named in the config"])
def test_another_padding_token(openai_style, tmp_path, layout):
    """Stable Diffusion 2 pads with "!", which is then special in a text as well."""
    pad = {} if layout == "only named in the config" else dict(pad_token="!")
    transformers.CLIPTokenizer.from_pretrained(openai_style, **pad).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | dict(pad_token="!")))
    if layout == "vocab.json":
        (tmp_path / "tokenizer.json").unlink()
        for name in ("vocab.json", "merges.txt"):
            (tmp_path / name).write_bytes((openai_style / name).read_bytes())
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    assert_same(tmp_path, tokenizer)
    assert load_tokenizer(tmp_path, LENGTH)([""])["tokens"][0, -1] == tokenizer.convert_tokens_to_ids("!")


@pytest.fixture(scope="module")
def unigram():
    """(piece, log probability) of T5's kind: control pieces first, then words and letters."""
    words = [f"▁{word}" for caption in captions("demo") for word in caption.split()]
    words += ["▁", *"abcdefghijklmnopqrstuvwxyzA.,!ﬁé½²", "fi", "▁fi", "只", "红色", "猫", "😀", "ing", "▁it", "'s"]
    scored = [(word, -1.0 - 0.01 * i - 1 / len(word)) for i, word in enumerate(dict.fromkeys(words))]
    return [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *scored]


@pytest.fixture(scope="module")
def t5_tokenizer(unigram):
    return transformers.T5Tokenizer(vocab=[*unigram, *((f"<extra_id_{i}>", 0.0) for i in range(99, -1, -1))])


def test_t5_from_tokenizer_json(t5_tokenizer, tmp_path):
    t5_tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").is_file()
    assert_same(tmp_path, transformers.AutoTokenizer.from_pretrained(tmp_path))
    assert_same(tmp_path, t5_tokenizer)
    assert list(load_tokenizer(tmp_path, LENGTH)([""])["tokens"][0, :3]) == [1, 0, 0]


def spiece_file(unigram, **trainer) -> bytes:
    """spiece.model by Google's own description of the format."""
    proto = import_protobuf().ModelProto()
    kinds = {"<pad>": 3, "</s>": 3, "<unk>": 2}  # control, control, unknown; all others are normal
    for piece, score in unigram:
        proto.pieces.add(piece=piece, score=score, type=kinds.get(piece, 1))
    for name, value in (dict(model_type=1, unk_id=2, vocab_size=len(unigram)) | trainer).items():
        setattr(proto.trainer_spec, name, value)
    proto.normalizer_spec.name = "identity"
    return proto.SerializeToString()


def test_t5_from_spiece_model(unigram, t5_tokenizer, tmp_path):
    (tmp_path / "spiece.model").write_bytes(spiece_file(unigram))
    assert_same(tmp_path, t5_tokenizer)
    read = read_spiece(tmp_path / "spiece.model")
    assert [piece for piece, _ in read.vocab] == [piece for piece, _ in unigram]
    np.testing.assert_array_equal(*(np.float32([score for _, score in vocab]) for vocab in (read.vocab, unigram)))
    assert read.added == [("<pad>", True), ("</s>", True)]


def test_number_of_sentinels_comes_from_the_config(unigram, tmp_path):
    (tmp_path / "spiece.model").write_bytes(spiece_file(unigram))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(dict(extra_ids=3)))
    tokens = load_tokenizer(tmp_path, LENGTH)(["<extra_id_2> <extra_id_0>", "<extra_id_3>"])["tokens"]
    assert list(tokens[0, :2]) == [len(unigram), len(unigram) + 2]
    assert tokens[1].max() < len(unigram)


def test_spiece_model_equals_transformers_with_sentencepiece(tmp_path):
    """Trained by the library itself, with its table of characters and symbols of the user's."""
    (tmp_path / "texts").write_text("\n".join(["red ﬁ ２ ½ é 猫 😀", *captions("demo")] * 9), "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "texts"),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=150,
        hard_vocab_limit=False,
        user_defined_symbols=["red", "<tag>"],
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    assert len(read_spiece(tmp_path / "spiece.model").charsmap) > 1000
    assert_same(tmp_path, transformers.T5Tokenizer.from_pretrained(tmp_path))


def test_damaged_spiece_models_are_one_line_errors(unigram, tmp_path):
    whole = spiece_file(unigram)
    for content in (b"", b"not a message", whole[: len(whole) // 2], b"\xff" * 50):
        (tmp_path / "spiece.model").write_bytes(content)
        with pytest.raises(UserError, match="spiece.model is damaged") as error:
            load_tokenizer(tmp_path, LENGTH)
        assert "\n" not in str(error.value)
    (tmp_path / "spiece.model").write_bytes(spiece_file(unigram, model_type=2))
    with pytest.raises(UserError, match="spiece.model is not a unigram vocabulary"):
        load_tokenizer(tmp_path, LENGTH)


@pytest.mark.parametrize(
    "text, lost",
    [
        ("A red apple On a " + "Blue " * 17 + "Background, 😀 at night", "Background, 😀 at night"),
        ("a red apple on a blue background", None),
    ],
)
def test_what_is_cut_is_logged_once(trained, caplog, text, lost):
    tokenize = load_tokenizer(trained, LENGTH)
    for _ in range(2):
        tokenize(["short", text])
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == (lost is not None)
    if lost:
        assert repr(text) in warnings[0] and f"cut: {lost!r}" in warnings[0]


def test_what_t5_cuts_is_logged(t5_tokenizer, tmp_path, caplog):
    t5_tokenizer.save_pretrained(tmp_path)
    load_tokenizer(tmp_path, 4)(["a red apple on a blue background"])
    assert "cut: 'on a blue background'" in caplog.text


def test_mask_covers_start_words_and_end(trained):
    out = load_tokenizer(trained, LENGTH)(["a red apple", "", "word " * 500])
    assert (out["tokens"][:, 0] == 0).all()
    ends = [np.flatnonzero(mask)[-1] for mask in out["token_mask"]]
    assert [out["tokens"][i, end] for i, end in enumerate(ends)] == [1, 1, 1]
    assert ends[1:] == [1, LENGTH - 1] and 2 < ends[0] < LENGTH - 1


def test_no_room_for_start_and_end(trained):
    assert load_tokenizer(trained, 2)(["a red apple"])["tokens"].tolist() == [[0, 1]]
    with pytest.raises(UserError, match="texts of 1 tokens .* at least 2"):
        load_tokenizer(trained, 1)


def test_no_texts_have_the_right_shape(trained):
    out = load_tokenizer(trained, LENGTH)([])
    assert out["tokens"].shape == out["token_mask"].shape == (0, LENGTH)


def test_training_is_reproducible_in_another_process(trained, tmp_path):
    """The trainer's own numbering follows a hash map that every process seeds anew."""
    script = (
        "from contextdiff_jax.data import captions\n"
        "from contextdiff_jax.formats.tokenizers import train_bpe\n"
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
        ({"vocab.json": "{", "merges.txt": ""}, "the tokenizer in .* is damaged"),
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
