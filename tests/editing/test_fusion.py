"""One layer of one step: fusion within a batch gives what a stored map gives, for each method and recipe."""

import jax.numpy as jnp
import numpy as np
import pytest
from editing.test_prompt_alignment import LENGTH, SOURCE, read
from ml_collections import ConfigDict

from contextdiff_jax.data.clips import Clip
from contextdiff_jax.editing import effects
from contextdiff_jax.editing.control import Fusion, Recorder
from contextdiff_jax.editing.methods import METHODS, RECIPES, values_of
from contextdiff_jax.editing.plan import control_of, controls_of, plan_of, shares_at_rest, words_at_rest
from contextdiff_jax.errors import UserError
from contextdiff_jax.models.video import Site

FRAMES, HEADS, SIDE, STEPS = 2, 3, 4, 10
TARGET = SOURCE.replace("silver", "red")


def settings(way: str) -> ConfigDict:
    """The `edit` section of a method, with a recipe behind a plus."""
    values = {}
    for name in way.split("+"):
        values |= values_of(name)
    return ConfigDict({key.removeprefix("edit."): v for key, v in values.items() if key.startswith("edit.")})


@pytest.mark.parametrize("way", [*METHODS, "fatezero+style", "fatezero+attribute", "fatezero+shape"])
def test_fusion_in_the_batch_is_that_of_stored_maps(way):
    edit, rng = settings(way), np.random.default_rng(0)
    if edit.cross_replace_steps and edit.equalize_added == 1.0:  # style asks for it of itself
        edit.equalizer = (("red", 10.0),)
    control = control_of(edit, STEPS, SOURCE, TARGET, read)
    inside = rng.random((FRAMES, SIDE, SIDE)) > 0.5
    region = (lambda size: jnp.asarray(inside, jnp.float32)) if edit.self_blend else None
    for kind, keys in (("cross", LENGTH), ("self", 2 * SIDE**2), ("temporal", FRAMES)):
        site = Site("layer", kind, SIDE, SIDE)
        weights = rng.random((3, FRAMES, HEADS, SIDE**2, keys)).astype(np.float32)
        null, own, stored = weights
        for k in range(STEPS):
            gates = control.cross[k], control.self_attention[k]
            fusion = Fusion(SIDE, SIDE**2, control, *gates, region, num_frames=FRAMES)
            folded = jnp.asarray(weights.reshape(-1, *weights.shape[2:]))
            found = np.asarray(fusion(folded, site)).reshape(weights.shape)
            expected = own.copy()
            if kind == "cross" and edit.alignment != "none" and k < edit.cross_replace_steps * STEPS:
                # "red" takes the place of "silver", whose tokens are 2 and 3; what follows moves up by one.
                expected[..., :2] = stored[..., :2]
                if edit.alignment == "replace":
                    expected[..., 2] = stored[..., 2] + stored[..., 3]
                expected[..., 2] *= 10.0 if edit.alignment == "replace" else 1.0
                expected[..., 3:10] = stored[..., 4:11]
                expected[..., 10:] = stored[..., 10:] if edit.alignment == "refine" else stored[..., np.r_[11:16, 15]]
                if edit.alignment == "refine":
                    expected[..., 2] = own[..., 2] * 10.0
            if kind == "self" and k < edit.self_replace_steps * STEPS:
                kept = inside.reshape(FRAMES, 1, -1, 1) if edit.self_blend else False
                expected = np.where(kept, own, stored)
            np.testing.assert_allclose(found[1], expected, rtol=1e-6)
            np.testing.assert_array_equal(found[0], null)
            np.testing.assert_array_equal(found[2], stored)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("method", METHODS)
def test_every_recipe_acts_on_every_method(method, recipe):
    edit = settings(f"{method}+{recipe}")
    control = control_of(edit, STEPS, SOURCE, TARGET, read)
    plan = plan_of(edit, None, Clip(np.zeros((2, 4, 4, 3), np.uint8)), 2, 0)
    assert (plan.fused or edit.reconstruct) and control.cross[0].all() and control.self_attention[0]


def test_factors_without_alignment_and_those_that_would_do_nothing():
    """Of `ddim` the words keep their own attention, times the factor in the steps that are asked for."""
    edit = settings("ddim")
    edit.equalizer = (("red", 10.0),)
    with pytest.raises(UserError, match="edit.cross_replace_steps=0, of which a word has none"):
        control_of(edit, STEPS, SOURCE, TARGET, read)
    edit.cross_replace_steps = 0.5
    control = control_of(edit, STEPS, SOURCE, TARGET, read)
    weights = np.random.default_rng(0).random((3, 1, HEADS, SIDE**2, LENGTH)).astype(np.float32)
    for k, factor in ((4, 10.0), (5, 1.0)):
        fusion = Fusion(SIDE, SIDE**2, control, control.cross[k], control.self_attention[k], None, num_frames=1)
        found = fusion(jnp.asarray(weights[:, 0]), Site("layer", "cross", SIDE, SIDE))
        expected = weights[1, 0].copy()
        expected[..., 2] *= factor
        np.testing.assert_allclose(found[1], expected, rtol=1e-6)
    clip = Clip(np.zeros((2, 4, 4, 3), np.uint8))
    assert plan_of(edit, None, clip, 2, 0).fused
    edit.equalizer, edit.cross_replace_words = (), (("red", 0.8),)
    assert not plan_of(edit, None, clip, 2, 0).fused
    with pytest.raises(UserError, match="edit.alignment='none'"):
        control_of(edit, STEPS, SOURCE, TARGET, read)


def test_punctuation_makes_no_word_another_one():
    edit, tokens = settings("fatezero+style"), lambda row: np.flatnonzero(row).tolist()
    edit.self_blend = True
    for old, new, gone, added in (
        ("a red frog on a green hill.", "a bear on a green hill", [2, 3], [2]),
        ("a bear on a green hill", "a red frog on a green hill.", [2], [2, 3]),
        ("a frog, on grass", "a bear on grass", [2], [2]),
        ("a frog.", "a bear.", [2], [2]),
        # Nor are articles and prepositions what an edit is about, unless nothing else is.
        ("a frog on grass", "the bear under the oak", [2, 4, 5], [2, 6]),
        ("a frog on a hill", "a frog under a hill", [3], [3, 4]),
    ):
        control = control_of(edit, STEPS, old, new, read)
        assert (tokens(control.source_words), tokens(control.target_words)) == (gone, added)
        assert tokens(control.equalizer != 1.0) == added
    with pytest.raises(UserError, match="keeps all"):
        control_of(edit, STEPS, "a frog, on grass", "a frog on grass", read)


def test_shares_of_the_steps_are_those_that_are_meant():
    """0.14 * 50 is a little more than 7, 0.28 * 50 than 14."""
    edit = settings("fatezero")
    edit.latent_blend, edit.cross_replace_steps, edit.self_replace_steps = (0.14, 0.28), 0.58, 0.58
    control = control_of(edit, 50, SOURCE, TARGET, read)
    assert np.flatnonzero(control.blend).tolist() == list(range(7, 14))
    assert control.self_attention.sum() == control.cross[:, 1].sum() == 29  # 0.58 * 50 is a little less


def test_what_is_asked_of_words_and_could_not_act_is_refused():
    for way, changed, message in (
        ("ddim", dict(blend_words=("jeepp",)), "'jeepp' is not in the prompt"),
        ("ddim", dict(blend_words=("jeep",)), "blend_words=.* cannot act"),
        ("ddim", dict(cross_replace_steps=0.7), "edit.cross_replace_steps=0.7 cannot act"),
        ("fatezero+shape", dict(inversion_prompt="empty"), "edit.inversion_prompt='empty' with edit.mask='attention'"),
        ("ddim", dict(mask="clip"), "edit.mask='clip' cannot act"),
        ("fatezero+style", dict(mask_threshold=0.4), "edit.mask_threshold=0.4 cannot act"),
        ("fatezero", dict(latent_blend=(0.5, 0.5)), r"edit.latent_blend=\(0.5, 0.5\) holds none of the .*=10 steps"),
        ("fatezero", dict(latent_blend=(), self_replace_steps=0.05), "edit.self_blend=True cannot act"),
        ("fatezero", dict(equalizer=(("horse", 2.0),)), "'horse' is not in the prompt"),
        ("fatezero", dict(cross_replace_words=(("red", 0.2),)), "0.2 for the word 'red' cannot act"),
    ):
        edit = settings(way)
        with edit.ignore_type():
            edit.update(changed)
        with pytest.raises(UserError, match=message):
            control_of(edit, STEPS, SOURCE, TARGET, read)
        if changed.keys() & {"mask", "mask_threshold", "latent_blend", "cross_replace_words"}:  # taken once: left out
            effects.blends_at_rest(edit, STEPS)
            shares_at_rest(edit, STEPS, SOURCE, [TARGET], read)
            control_of(edit, STEPS, SOURCE, TARGET, read)


def test_a_word_need_be_in_one_of_several_prompts():
    edit, targets = settings("fatezero"), [TARGET, SOURCE.replace("jeep", "horse")]
    edit.equalizer, edit.cross_replace_words = (("horse", 2.0), ("red", 3.0)), (("silver", 0.2),)
    red, horse = controls_of(edit, STEPS, SOURCE, targets, read)
    assert [np.flatnonzero(c.equalizer != 1.0).tolist() for c in (red, horse)] == [[2], [4, 5]]
    assert [c.cross[:, 2].sum() for c in (red, horse)] == [8, 2]
    edit.equalizer = (("bear", 2.0),)
    with pytest.raises(UserError, match="edit.equalizer: word 'bear' is in none of the edited prompts 'a red jeep"):
        controls_of(edit, STEPS, SOURCE, targets, read)


def test_words_of_a_run_s_own_that_other_prompts_have_not_are_left_out():
    edit, targets = settings("ddim"), [TARGET]
    edit.equalizer, edit.cross_replace_steps = (("horse", 2.0),), 0.5
    edit.cross_replace_words = [["horse", 0.3]]  # as a file has them
    words_at_rest(edit, SOURCE, targets, read)
    # A share of the steps acted beside the factor alone.
    assert (edit.equalizer, tuple(edit.cross_replace_words), edit.cross_replace_steps) == ((), (), 0.0)
    controls_of(edit, STEPS, SOURCE, targets, read)
    edit = settings("fatezero")
    edit.blend_words, edit.equalizer = ("jeep", "lake"), (("red", 2.0), ("horse", 2.0))
    words_at_rest(edit, SOURCE, targets, read, asked=("equalizer",))
    assert edit.blend_words == ("jeep",) and len(edit.equalizer) == 2  # what is asked for now is refused
    words_at_rest(edit, SOURCE, [], read)
    assert len(edit.equalizer) == 2
    words_at_rest(edit, SOURCE, targets, read)
    assert edit.equalizer == (("red", 2.0),) and edit.cross_replace_steps == 0.8
    edit.blend_words = ("lake",)
    with pytest.raises(UserError, match="edit.blend_words: word 'lake' is not in the prompt"):
        controls_of(edit, STEPS, SOURCE, targets, read)


def test_self_attention_is_fused_alike_of_one_head_after_the_other():
    """Which is how large weights come; of cross-attention the mean over heads is remembered."""
    control = control_of(settings("fatezero"), STEPS, SOURCE, TARGET, read)
    region = lambda size: jnp.asarray(np.random.default_rng(2).random((FRAMES, *size)) < 0.5, jnp.float32)
    cross = control.cross[0]
    fusion = Fusion(SIDE, SIDE**2, control, cross, control.self_attention[0], region, num_frames=FRAMES)
    site = Site("a", "self", SIDE, SIDE)
    weights = np.random.default_rng(0).random((3 * FRAMES, HEADS, SIDE**2, SIDE**2))
    apart = [fusion(jnp.asarray(weights[:, [head]]), site) for head in range(HEADS)]
    np.testing.assert_array_equal(np.concatenate(apart, axis=1), fusion(jnp.asarray(weights), site))
    assert fusion.heads_apart(site) and not fusion.heads_apart(Site("a", "cross", SIDE, SIDE))


def test_large_maps_are_left_alone_and_maps_of_one_resolution_remembered():
    control = control_of(settings("fatezero"), STEPS, SOURCE, TARGET, read)
    fusion = Fusion(SIDE, SIDE**2 - 1, control, control.cross[0], control.self_attention[0], None, num_frames=1)
    assert not fusion.looks_at(Site("a", "self", SIDE, SIDE)) and not fusion.looks_at(Site("b", "temporal", 2, 2))
    assert not fusion.looks_at(Site("a", "cross", 2 * SIDE, 2 * SIDE)) and fusion.looks_at(Site("b", "cross", 2, 2))
    # Too large to be fused, of the resolution that is remembered.
    weights = np.random.default_rng(0).random((3, HEADS, SIDE**2, LENGTH))
    np.testing.assert_array_equal(fusion(jnp.asarray(weights), Site("c", "cross", SIDE, SIDE)), np.float32(weights))
    assert fusion.maps().shape == (3, SIDE, SIDE, LENGTH)
    recorder, rng = Recorder(SIDE), np.random.default_rng(1)
    seen = [rng.random((FRAMES, HEADS, SIDE**2, LENGTH)) for _ in range(2)]
    for weights in seen:
        assert recorder(jnp.asarray(weights), Site("c", "cross", SIDE, SIDE)).shape == weights.shape
    recorder(jnp.ones((FRAMES, HEADS, 4, LENGTH)), Site("d", "cross", 2, 2))
    expected = np.mean(seen, axis=(0, 2)).reshape(FRAMES, SIDE, SIDE, LENGTH)
    np.testing.assert_allclose(recorder.maps(), expected, rtol=1e-6)
    other = Recorder(8)
    other.looks_at(Site("e", "cross", 2, 2))
    with pytest.raises(UserError, match="at the sides 2"):
        other.maps()
