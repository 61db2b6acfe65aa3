"""What may be asked for, and where compiled programs are kept."""

import jax
import numpy as np
import pytest
from PIL import Image

from contextdiff_jax import asked, compilation
from contextdiff_jax.conditions import ClassCondition, LayoutCondition
from contextdiff_jax.errors import UserError

LAYOUTS = LayoutCondition(("frog", "star"), 3, (8, 8), width=16, depth=1, token_grid=4, map_channels=4)
BOX = [0.1, 0.2, 0.5, 0.8]


def test_classes_by_name_and_number_and_counts():
    classes, nothing = ClassCondition(["frog", "bear"]), ClassCondition(())
    assert asked.prompts_of(classes, "frog") == ["frog"]
    assert asked.prompts_of(classes, [1, np.int64(0), "bear", "1"]) == ["bear", "frog", "bear", "1"]
    assert asked.prompts_of(classes, np.array([1, 0])) == ["bear", "frog"] and asked.prompts_of(classes, 1) == ["bear"]
    assert asked.prompts_of(ClassCondition(["10", "1"]), [1, "1", 0]) == ["1", "1", "10"]  # numbers are no names
    assert asked.prompts_of(nothing, np.int64(2)) == ["", ""]
    for condition, wrong in ((nothing, "frog"), (nothing, 0), (classes, []), (classes, None), (classes, ["frog", " "])):
        with pytest.raises(UserError):
            asked.prompts_of(condition, wrong)
    with pytest.raises(UserError, match="prompt 2 is no class"):
        asked.prompts_of(classes, [2])


def test_one_layout_stands_for_a_list_of_one():
    one = [["star", BOX], [np.int64(0), BOX]]
    for layouts in (one, [one]):
        assert LAYOUTS.read(asked.prompts_of(LAYOUTS, layouts))["labels"].tolist() == [[1, 0, -1]]


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
        LAYOUTS.read(asked.prompts_of(LAYOUTS, asked.prompts_of(LAYOUTS, layouts)))


def test_pictures_are_fitted_to_any_size():
    wide = Image.new("RGB", (40, 20), "red")
    wide.paste("blue", (0, 0, 10, 20))
    tall = asked.pictures(wide, 2, (20, 10), 3)
    assert tall.shape == (2, 20, 10, 3)
    np.testing.assert_allclose(tall[1], np.broadcast_to([1, -1, -1], (20, 10, 3)), atol=1e-6)  # the middle is red
    assert asked.pictures([wide, wide], 2, (4, 8), 1).shape == (2, 4, 8, 1)
    with pytest.raises(UserError, match="2 images for 3"):
        asked.pictures([wide, wide], 3, (4, 4), 3)


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
        compilation.keep_programs("off")
        assert not jax.config.jax_enable_compilation_cache
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="compilation_cache"):
            compilation.keep_programs(str(tmp_path / "file" / "below"))
    finally:
        jax.config.update("jax_compilation_cache_dir", before[0])
        jax.config.update("jax_enable_compilation_cache", before[1])
