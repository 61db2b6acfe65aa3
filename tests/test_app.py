"""The page to try a model on: what it does without Gradio, and as a whole in a browser where Gradio is installed."""

import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from test_pages_in_a_browser import browser, requested  # noqa: F401

import contextdiff_jax as cdx
from contextdiff_jax import app, command_line
from contextdiff_jax.data.clips import write_clip
from contextdiff_jax.errors import UserError


@pytest.fixture(scope="module")
def pipe():
    return cdx.Pipeline.load("builtin:demo")


def test_bad_input_is_one_line(pipe, tmp_path):
    desk, upload = app.Desk(pipe, tmp_path), tmp_path / "clip.mp4"
    good = dict(prompt="a frog", steps=2, sampler="ddim", guidance=3, seed=0)
    for change, words in (
        (dict(prompt=" "), "the prompt is empty"),
        (dict(steps=0), "steps = 0 is refused"),
        (dict(seed=1.5), "seed = 1.5 is refused"),
        (dict(seed=None), "seed = None"),
        (dict(steps=float("nan")), "steps = nan is refused"),
        (dict(seed=float("inf")), "seed = inf is refused; give a whole number from 0 to 2147483647"),
        (dict(guidance=None), "guidance = None is refused; give a number from 1 to 15"),
        (dict(guidance=float("nan")), "guidance = nan is refused"),
    ):
        with pytest.raises(UserError, match=words):
            desk.draw(**(good | change))
    asked = ("a frog", "a star", "contextdiff", 8, 2, 3.0)
    with pytest.raises(UserError, match="no clip is given"):
        desk.edit(None, *asked)
    upload.write_bytes(b"not a video")
    with pytest.raises(UserError, match="'clip.mp4'|clip.mp4") as error:
        desk.edit(str(upload), *asked)
    assert str(tmp_path) not in str(error.value) and not upload.exists()  # read, refused, deleted
    upload.write_bytes(bytes(10))
    with pytest.raises(UserError, match="a text is missing"):
        desk.edit(str(upload), None, "a star", "contextdiff", 8, 2, 3.0)
    assert not upload.exists()


def test_a_models_own_settings_can_be_asked_for():
    sample = SimpleNamespace(num_steps=250, guidance=20.0)
    desk = app.Desk(SimpleNamespace(config=SimpleNamespace(sample=sample)), "folder")
    assert desk.steps == (1, 250) and desk.guidance == (1.0, 20.0)


def test_a_clip_is_edited_with_the_method_s_own_numbers_unless_others_are_asked_for(pipe, tmp_path, monkeypatch):
    page, asked = mock.MagicMock(), []
    edited = SimpleNamespace(save=lambda path: path, table=str)
    monkeypatch.setattr(app, "gradio", lambda: page)
    monkeypatch.setattr(pipe, "edit", lambda *args, **how: asked.append(how) or edited)
    app.build(app.Desk(pipe, tmp_path), "demo")
    (edit, *_), _ = page.Button().click.call_args_list[1]  # the first draws
    for own in (True, False):
        write_clip(tmp_path / "clip.mp4", np.zeros((3, 16, 16, 3), np.uint8))
        edit(str(tmp_path / "clip.mp4"), "a frog", "a star", "contextdiff", 8, own, 12, 5.0)
    both = dict(method="contextdiff", num_frames=8, progress=False)
    assert asked == [both | dict(steps=None, guidance=None), both | dict(steps=12, guidance=5.0)]
    assert 7.5 not in [call.kwargs.get("value") for call in page.Slider.call_args_list]  # more than the model stands
    # What was tuned on a clip has a method of its own, and a number of frames.
    own = dict(pipe.config.items()) | dict(data=SimpleNamespace(source="clip", num_frames=30))
    tuned = app.Desk(SimpleNamespace(config=SimpleNamespace(**own), edit=pipe.edit), tmp_path)
    app.build(tuned, "tuned")
    assert any(call.args[0][0] == app.OF_THE_RUN for call in page.Dropdown.call_args_list)
    write_clip(tmp_path / "clip.mp4", np.zeros((3, 16, 16, 3), np.uint8))
    tuned.edit(str(tmp_path / "clip.mp4"), "a frog", "a star", app.OF_THE_RUN, 30, None, None)
    assert asked[-1] == dict(method=None, num_frames=30, progress=False, steps=None, guidance=None)


def test_old_results_are_deleted(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(app, "KEPT", 2)
    desk = app.Desk(pipe, tmp_path)
    made = [desk._file(".png") for _ in range(4)]
    assert sorted(tmp_path.iterdir()) == sorted(made[2:])


def test_large_uploads_are_refused(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(app, "LARGEST_UPLOAD", 2**20)
    (tmp_path / "clip.mp4").write_bytes(bytes(2**20 + 1))
    with pytest.raises(UserError, match="larger than 1 MB"):
        app.Desk(pipe, tmp_path).edit(str(tmp_path / "clip.mp4"), "a", "b", "contextdiff", 8, 2, 3.0)
    monkeypatch.setattr(app, "LONGEST", 3)
    write_clip(tmp_path / "clip.mp4", np.zeros((4, 16, 16, 3), np.uint8))
    with pytest.raises(UserError, match="more than 3 frames"):
        app.Desk(pipe, tmp_path).edit(str(tmp_path / "clip.mp4"), "a", "b", "contextdiff", 8, 2, 3.0)


def test_both_ways_to_draw_wait_for_each_other(pipe, tmp_path, monkeypatch):
    page = mock.MagicMock()
    monkeypatch.setattr(app, "gradio", lambda: page)
    app.build(app.Desk(pipe, tmp_path), "demo")
    (by_click, *_), _ = page.Button().click.call_args_list[0]  # the second is of the clips
    (by_enter, *_), _ = page.Textbox().submit.call_args
    assert by_click is by_enter  # Gradio's queues are one for each function


def test_small_pictures_are_enlarged_pixel_by_pixel():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    np.testing.assert_array_equal(app.enlarged(pixels)[::6, ::6], pixels)


def test_without_gradio_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match="pip install 'gradio>=6.0'$"):
        command_line.run("app", None, command_line.Options("", model="builtin:demo", host="127.0.0.1"))


@pytest.mark.slow
def test_the_app_in_a_browser(browser, tmp_path):  # noqa: F811
    """A prompt is typed and two pictures come; a bad file is refused in words; nothing is asked elsewhere."""
    pytest.importorskip("gradio", reason="Gradio is not installed: pip install 'gradio>=6.0'")
    page = app.serve("builtin:demo", port=0, wait=False)
    try:
        assert page.local_url.startswith("http://127.0.0.1:")
        browser.get_log("performance")
        browser.get(page.local_url)
        until(lambda: browser.find_elements("css selector", "#prompt textarea"), 60)
        browser.find_element("css selector", "#prompt textarea").send_keys("a frog on a purple background")
        browser.find_element("id", "draw").click()
        shown = lambda: browser.find_elements("css selector", "#pictures .grid-wrap img, #pictures button img")
        until(lambda: len(shown()) >= 2 and browser.find_elements("css selector", "#heat img"), 600)
        assert all(image.get_property("naturalWidth") >= 64 for image in shown())
        browser.save_screenshot(str(tmp_path / "app.png"))
        next(b for b in browser.find_elements("tag name", "button") if b.text == "Edit a clip").click()
        bad = tmp_path / "clip.mp4"
        bad.write_bytes(b"no video at all")
        until(lambda: browser.find_elements("css selector", "#clip input[type=file]"), 30)
        browser.find_element("css selector", "#clip input[type=file]").send_keys(str(bad))
        until(lambda: ".mp4" in browser.find_element("id", "clip").text, 60)  # name and ending stand apart
        for name in ("source", "target"):
            browser.find_element("css selector", f"#{name} textarea").send_keys("a frog")
        browser.find_element("id", "edit").click()
        until(lambda: "clip.mp4" in message(browser), 60)
        assert Image.open(tmp_path / "app.png").width > 300
        assert not list(Path(page.uploads.name).rglob("clip.mp4"))
        assert not [url for url in requested(browser) if not url.startswith((page.local_url, "data:", "blob:"))]
    finally:
        page.close()


def message(browser):  # noqa: F811
    """What the page says in its toast."""
    return " ".join(e.text for e in browser.find_elements("css selector", ".toast-wrap, [data-testid=toast-body]"))


def until(done, seconds):
    """Waits for something to become true."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"nothing after {seconds} s"
        time.sleep(0.2)
