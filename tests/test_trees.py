"""Splitting parameters by name and putting them together again."""

from contextdiff_jax import trees

TREE = {"denoiser": {"attn": {"kernel": 1, "bias": 2}, "conv": {"kernel": 3}}, "adapter": {"out": {"kernel": 4}}}


def test_split_and_merge_are_inverse():
    found, rest = trees.split(TREE, ("^adapter/", "attn/"))
    assert found == {"denoiser": {"attn": {"kernel": 1, "bias": 2}}, "adapter": {"out": {"kernel": 4}}}
    assert rest == {"denoiser": {"conv": {"kernel": 3}}}
    assert trees.merge(found, rest) == trees.merge(rest, found) == TREE


def test_everything_or_nothing():
    assert trees.split(TREE, (".*",)) == (TREE, {})
    assert trees.split(TREE, ()) == ({}, TREE)
    assert trees.merge({}, TREE) == TREE


def test_the_last_of_two_leaves_counts():
    assert trees.merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}) == {"a": {"b": 3, "c": 2}}


def test_names():
    assert trees.names(TREE)[0] == "denoiser/attn/kernel" and len(trees.names(TREE)) == 4
