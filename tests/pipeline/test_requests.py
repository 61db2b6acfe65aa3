"""What may be asked for, and where compiled programs are kept."""

import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import t2i
from contextdiff_jax import compilation
from contextdiff_jax.conditions import ClassCondition, LayoutCondition, TextCondition
from contextdiff_jax.errors import UserError
from contextdiff_jax.pipeline import requests

LAYOUTS = LayoutCondition(("frog", "star"), 3, (8, 8), width=16, depth=1, token_grid=4, map_channels=4)
BOX = [0.1, 0.2, 0.5, 0.8]


def test_classes_by_name_and_number_and_counts():
    classes, nothing = ClassCondition(["frog", "bear"]), ClassCondition(())
    assert requests.prompts_of(classes, "frog") == ["frog"]
    assert requests.prompts_of(classes, [1, np.int64(0), "bear", "1"]) == ["bear", "frog", "bear", "1"]
    assert requests.prompts_of(classes, np.array([1, 0])) == ["bear", "frog"]
    assert requests.prompts_of(classes, 1) == ["bear"]
    assert requests.prompts_of(ClassCondition(["10", "1"]), [1, "1", 0]) == ["1", "1", "10"]  # numbers are no names
    assert requests.prompts_of(nothing, np.int64(2)) == ["", ""]
    for condition, wrong in ((nothing, "frog"), (nothing, 0), (classes, []), (classes, None), (classes, ["frog", " "])):
        with pytest.raises(UserError):
            requests.prompts_of(condition, wrong)
    with pytest.raises(UserError, match="prompt 2 is no class"):
        requests.prompts_of(classes, [2])


def test_texts_are_gone_through_once():
    texts = TextCondition(types.SimpleNamespace(params={}, tokenize=len))
    for both in (map(str, ("a", "b")), np.array(["a", "b"])):
        assert requests.prompts_of(texts, both) == ["a", "b"]
    assert requests.prompts_of(texts, "a") == requests.prompts_of(texts, np.array("a")) == ["a"]
    for wrong, words in (
        (3.0, "pass one or several texts"),
        (Path("x"), "pass one or several texts"),
        (None, "pass one or several texts"),
        (iter(()), "no prompt given"),
        (["a", 5], "prompt 2 of 2 is no text"),
        (["a", " "], "prompt 2 of 2 is empty"),
    ):
        with pytest.raises(UserError, match=words):
            requests.prompts_of(texts, wrong)
    with pytest.raises(UserError, match=r"'a \\ud800' is no Unicode text"):
        texts.read(["a \ud800"])


def test_seeds_and_keys():
    same = lambda a, b: np.testing.assert_array_equal(*(jax.random.key_data(requests.root_key(k)) for k in (a, b)))
    for seed in (np.int64(3), jnp.int32(3), jax.random.key(3), jax.random.PRNGKey(3)):
        same(seed, 3)
    for wrong in (1.5, "0", None, True, -1, 2**32, jax.random.split(jax.random.key(0), 4), np.arange(2)):
        with pytest.raises(UserError, match="seed|several keys"):
            requests.root_key(wrong)


def test_none_takes_the_model_s_own_option():
    config = t2i.get_config("tiny")
    given = {"eta": None, "batch_size": None, "guidance": jnp.float32(2.0)}
    section = requests.section_of(config, given, sampler="ddim")
    assert (section.eta, section.batch_size) == (config.sample.eta, config.sample.batch_size)
    assert (section.guidance, section.sampler) == (2.0, "ddim")
    # Nor is he who asks for an adapter told of a threshold that he has not asked for.
    config.adapter.reverse, config.sample.threshold, config.sample.adapter = "head", "static", False
    config.loss.objective, config.sample.sampler = "nelbo", "ddpm"
    config.sample.num_steps, config.sample.guidance = config.process.num_timesteps, 1.0
    assert requests.section_of(config, {"adapter": True}).threshold == "none"
    assert requests.section_of(config, {}).threshold == "static"
    with pytest.raises(UserError, match="config.sample.threshold='static' cannot act"):
        requests.section_of(config, {"adapter": True, "threshold": "static"})
    cases = (
        ({"speed": None}, "speed=None is unknown; accepted: key, steps, negative, .*, eta, guidance"),
        ({"seed": 5}, "seed=5 is unknown; here it is key$"),
        ({"num_inference_steps": 5}, "num_inference_steps=5 is unknown; here it is steps$"),
        ({"guidance_scale": 5.0}, "guidance_scale=5.0 is unknown; here it is guidance$"),
        ({"eta": "x"}, "eta='x' has the wrong type; it is a number"),
        ({"num_steps": 2.0}, "steps=2.0 has the wrong type; it is a whole number"),
    )
    for wrong, words in cases:
        with pytest.raises(UserError, match=words):
            requests.section_of(config, wrong)


def test_a_strength_is_of_a_picture():
    assert requests.strength_of(None, 10, True) == requests.STRENGTH and requests.strength_of(None, 10, False) == 1.0
    assert requests.strength_of(np.float32(0.5), 10, True) == 0.5
    for steps in (3, 49, 98, 1000):  # the limit that is named is taken, though 49 * (1 / 49) is below 1
        assert requests.strength_of(1 / steps, steps, True) == 1 / steps
    with pytest.raises(UserError, match="strength=0.8, which is taken where none is given, of 1 steps; accepted: 1 to"):
        requests.strength_of(None, 1, True)
    for wrong, of_picture in (("0.5", True), (0.0, True), (1.1, True), (float("nan"), True), (0.3, False)):
        with pytest.raises(UserError, match="strength="):
            requests.strength_of(wrong, 10, of_picture)


@pytest.mark.parametrize("wrong", [5, None, [], iter(())])
def test_what_is_no_picture(wrong):
    with pytest.raises(UserError, match="no picture"):
        requests.pictures(wrong, 1, (4, 4), 3)


@pytest.mark.parametrize(
    "wrong, words",
    [
        (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\)"),
        (np.zeros((4, 4, 3), complex), "image of complex128"),
        (np.full((4, 4, 3), None), "image of object"),
        (np.full((4, 4, 3), "a"), "image of <U1"),
    ],
)
def test_arrays_that_are_no_picture(wrong, words):
    with pytest.raises(UserError, match=words):
        requests.pictures(wrong, 1, (4, 4), 3)
    whole = requests.pictures(jnp.zeros((4, 4, 3), jnp.bfloat16), 1, (4, 4), 3)
    assert np.abs(whole).max() < 0.01


def test_given_noise_is_one_start_per_picture():
    given = np.ones((2, 4, 4, 3), np.float16)
    assert requests.check_noise(given, 2, (4, 4, 3), False).dtype == np.float32
    for wrong, count, of_picture, words in (
        (given, 2, True, "noise=... and image=..."),
        (given, 3, False, r"shape \(2, 4, 4, 3\); give floats \(3, 4, 4, 3\)"),
        (given.astype(int), 2, False, "noise is int64"),
        (given * np.nan, 2, False, "noise holds NaN"),
        ("noise", 1, False, "noise is <U5"),
    ):
        with pytest.raises(UserError, match=words):
            requests.check_noise(wrong, count, (4, 4, 3), of_picture)


def test_one_layout_stands_for_a_list_of_one():
    one = [["star", BOX], [np.int64(0), BOX]]
    for layouts in (one, [one]):
        assert LAYOUTS.read(requests.prompts_of(LAYOUTS, layouts))["labels"].tolist() == [[1, 0, -1]]


@pytest.mark.parametrize(
    "layouts, words",
    [
        ([{"class": "frog", "box": BOX}], "pass a list of layouts"),
        ([[{"class": "frog", "box": BOX}]], r"is no \(class, "),
        ([[["frog", BOX]], [5, BOX]], r"layout 2: 5 is no \(class, "),
        ([[1.5, BOX]], "1.5 is no class"),
        ([[None, BOX]], "None is no class"),
        ([(np.int64(3), BOX)], "3.* is no class"),
    ],
)
def test_what_json_may_hold_is_refused_in_words(layouts, words):
    with pytest.raises(UserError, match=words):
        LAYOUTS.read(requests.prompts_of(LAYOUTS, requests.prompts_of(LAYOUTS, layouts)))


def test_pictures_are_fitted_to_any_size():
    wide = Image.new("RGB", (40, 20), "red")
    wide.paste("blue", (0, 0, 10, 20))
    tall = requests.pictures(wide, 2, (20, 10), 3)
    assert tall.shape == (2, 20, 10, 3)
    np.testing.assert_allclose(tall[1], np.broadcast_to([1, -1, -1], (20, 10, 3)), atol=1e-6)  # the middle is red
    assert requests.pictures([wide, wide], 2, (4, 8), 1).shape == (2, 4, 8, 1)
    with pytest.raises(UserError, match="2 images for 3"):
        requests.pictures([wide, wide], 3, (4, 4), 3)


def test_compiled_programs_are_kept_in_the_user_s_cache_unless_told_otherwise(tmp_path, monkeypatch):
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_enable_compilation_cache
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        compilation.keep_programs("auto")
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "cache" / "contextdiff_jax" / "compiled")
        jax.config.update("jax_compilation_cache_dir", "given")
        compilation.keep_programs("auto")
        assert jax.config.jax_compilation_cache_dir == "given"
        compilation.keep_programs(str(tmp_path / "mine"))
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine") and (tmp_path / "mine").is_dir()
        compilation.keep_programs("gs://bucket/programs")  # which JAX knows how to write to
        assert jax.config.jax_compilation_cache_dir == "gs://bucket/programs"
        compilation.keep_programs("off")
        assert not jax.config.jax_enable_compilation_cache
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="compilation_cache"):
            compilation.keep_programs(str(tmp_path / "file" / "below"))
    finally:
        jax.config.update("jax_compilation_cache_dir", before[0])
        jax.config.update("jax_enable_compilation_cache", before[1])
