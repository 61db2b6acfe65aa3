"""Prompt alignment against references that find the same by other means."""

import itertools

import numpy as np
import pytest

from contextdiff_jax.editing import alignment
from contextdiff_jax.editing.words import Prompt
from contextdiff_jax.errors import UserError

LENGTH = 16
SOURCE = "a silver jeep driving down a road"


def read(texts):
    """A tokenizer that divides words into pieces of at most four letters, between a start 1 and an end 2."""
    tokens, mask = np.full((len(texts), LENGTH), 2, np.int32), np.zeros((len(texts), LENGTH), bool)
    for row, text in enumerate(texts):
        pieces = [w[i : i + 4] for w in text.split() for i in range(0, len(w), 4)]
        ids = [1, *(3 + sum(ord(c) * 131**k for k, c in enumerate(p)) % 10_007 for p in pieces), 2][:LENGTH]
        tokens[row, : len(ids)], mask[row, : len(ids)] = ids, True
    return {"tokens": tokens, "token_mask": mask}


def prompt(text: str) -> Prompt:
    return Prompt.read(text, read)


def test_words_know_their_tokens():
    found = prompt(SOURCE)
    assert found.places == ((1,), (2, 3), (4,), (5, 6), (7,), (8,), (9,)) and found.real == 11
    assert found.positions("Jeep") == [4]
    assert found.positions("a") == [1, 8]
    assert found.positions("silver jeep") == [2, 3, 4]
    marked = prompt("jeep, a silver: 'home.' ..")
    assert marked.places == ((1, 2), (3,), (4, 5), (6, 7), (8,))
    assert marked.cores[:3] == ((1,), (3,), (4, 5)) and marked.cores[4] == ()
    assert [marked.positions(word) for word in ("jeep", "silver home", "..")] == [[1], [4, 5, 6, 7], [8]]
    with pytest.raises(UserError, match="its words are: a, silver, jeep"):
        found.positions("horse")
    with pytest.raises(UserError, match="has 18 tokens; the text encoder has room for 16"):
        prompt("a " * 16)
    with pytest.raises(UserError, match="empty prompt"):
        prompt("  ")


def best_score(x, y) -> int:
    """By trying every pair of rising places: a match counts 1, a mismatch -1, a gap 0."""
    best = 0
    for n in range(1, min(len(x), len(y)) + 1):
        for i, j in itertools.product(itertools.combinations(x, n), itertools.combinations(y, n)):
            best = max(best, sum(1 if a == b else -1 for a, b in zip(i, j, strict=True)))
    return best


def test_the_alignment_scores_as_well_as_any():
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y = rng.integers(0, 3, rng.integers(1, 6)), rng.integers(0, 3, rng.integers(1, 6))
        partner = alignment.longest_alignment(x, y)
        pairs = [(i, j) for j, i in enumerate(partner) if i >= 0]
        assert all(x[i] == y[j] for i, j in pairs) and [i for i, _ in pairs] == sorted({i for i, _ in pairs})
        assert len(pairs) == best_score(list(x), list(y))


def test_refine_gives_common_tokens_their_weights_and_leaves_new_ones_alone():
    source, target = prompt(SOURCE), prompt("a shiny red jeep driving down a road at night")
    found = alignment.refine(source, target)
    weights = np.random.default_rng(1).random((5, LENGTH)).astype(np.float32)
    moved = weights @ found.mapping
    texts = lambda p: [w for w, places in zip(p.words, p.places, strict=True) for _ in places]
    shared = {"a", "jeep", "driving", "down", "road"}
    words = ["<start>", *texts(target), "<end>"]
    source_words = ["<start>", *texts(source), "<end>"]
    queue = iter([i for i, w in enumerate(source_words) if w != "silver"])
    for j, word in enumerate(words):
        kept = word in shared or word in ("<start>", "<end>")
        assert found.taken[j] == kept
        if kept:
            np.testing.assert_array_equal(moved[:, j], weights[:, next(queue)])
    np.testing.assert_array_equal(moved[:, target.real :], weights[:, target.real :])
    assert found.taken[target.real :].all()


def test_replace_goes_word_by_word():
    source, target = prompt("a silver jeep at home"), prompt("a red motorbike at home")
    found = alignment.replace(source, target)
    w = np.random.default_rng(2).random(LENGTH).astype(np.float32)
    # tokens: start a silv er jeep at home end | start a red moto rbik e at home end
    expected = [w[0], w[1], w[2] + w[3], w[4] / 3, w[4] / 3, w[4] / 3, w[5], w[6], *w[7:15]]
    np.testing.assert_allclose(w @ found.mapping, expected, rtol=1e-6)
    assert found.taken.all()
    with pytest.raises(UserError, match="has 5, 'a red car' has 3"):
        alignment.replace(source, prompt("a red car"))


def test_identical_prompts_change_nothing():
    same = prompt(SOURCE)
    for kind in ("refine", "replace"):
        found = alignment.align(kind, same, same)
        np.testing.assert_array_equal(found.mapping, np.eye(LENGTH))
    assert not alignment.align("none", same, same).taken.any()
    with pytest.raises(UserError, match="accepted: refine, replace, none"):
        alignment.align("swap", same, same)


def test_factors_and_shares_reach_the_words_they_name():
    target = prompt("a red jeep in snow")
    factors = alignment.equalizer(target, (("snow", 10.0), ("red jeep", 2.0)))
    assert factors.tolist() == [1, 1, 2, 2, 1, 10] + [1] * (LENGTH - 6)
    gates = alignment.replaced_steps(target, 10, 0.8, (("red", 0.25),))
    assert gates.shape == (10, LENGTH)
    assert gates.sum(axis=0).tolist() == [8, 8, 2] + [8] * (LENGTH - 3)
    assert gates[:2, 2].all() and not gates[2:, 2].any()
    with pytest.raises(UserError, match="is not in the prompt"):
        alignment.equalizer(target, (("rain", 2.0),))
