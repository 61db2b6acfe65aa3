"""What may be asked for, and where compiled programs are kept."""

import jax
import numpy as np
import pytest
from PIL import Image

from contextdiff_jax import asked, compilation
from contextdiff_jax.conditions import ClassCondition
from contextdiff_jax.errors import UserError


def test_classes_by_name_and_number_and_counts():
    classes, nothing = ClassCondition(["frog", "bear"]), ClassCondition(())
    assert asked.prompts_of(classes, "frog") == ["frog"]
    assert asked.prompts_of(classes, [1, np.int64(0), "bear"]) == ["1", "0", "bear"]
    assert asked.prompts_of(classes, np.array([1, 0])) == ["1", "0"] and asked.prompts_of(classes, 1) == ["1"]
    assert asked.prompts_of(nothing, np.int64(2)) == ["", ""]
    for condition, wrong in ((nothing, "frog"), (nothing, 0), (classes, []), (classes, None), (classes, ["frog", " "])):
        with pytest.raises(UserError):
            asked.prompts_of(condition, wrong)


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
