"""The pages as people open them: in a headless Chromium, wide and narrow, by mouse and by keyboard, without network."""

import json
import shutil
import tempfile
import time

import numpy as np
import pytest
from page_helpers import make_run
from PIL import Image

from contextdiff_jax.evaluate.pages import write_compare, write_report_page
from contextdiff_jax.evaluate.study_answers import statistics
from contextdiff_jax.evaluate.study_files import read_answers
from contextdiff_jax.evaluate.study_page import write_study

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = """
    --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync
"""


@pytest.fixture(scope="module")
def browser():
    """One Chromium for all tests; it keeps a log of its console and of every request."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("no chromium with chromedriver here: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tempfile.mkdtemp(prefix="profile-")
    for flag in (*FLAGS.split(), f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()
    shutil.rmtree(profile, ignore_errors=True)


def opened(browser, path, width=1200, dark=False):
    """Opens a file at a width, after forgetting what was logged."""
    browser.get_log("browser"), browser.get_log("performance")
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    size = dict(width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(path.as_uri())


def requested(browser):
    """Addresses asked for since the log was last read."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]


def check_quiet(browser, folder):
    """No word on the console, and no request but for files of the page's own folder."""
    assert not browser.get_log("browser")
    asked = requested(browser)
    assert asked and all(url.startswith(("data:", "blob:", folder.as_uri())) for url in asked), asked


def fits(browser):
    """Whether nothing but boxes that scroll by themselves is wider than the window."""
    return browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return [make_run(root / "ours", 0, 0.9, shown=4), make_run(root / "theirs & <others>", 1, 0.6, shown=4)]


def test_a_report_is_whole_at_every_width(browser, runs):
    page = write_report_page(runs[0])
    paper = set()
    for width, dark in ((1200, False), (390, False), (390, True)):
        opened(browser, page, width, dark)
        assert fits(browser), width
        paper.add(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
        missing = browser.execute_script("return [...document.images].filter(i => !i.alt || !i.getAttribute('src'))")
        assert not missing
    assert len(paper) == 2  # light and dark
    text = browser.find_element("tag name", "body").text
    for words in ("recognised, unseen combinations", "a training loss is no result", "c0ffee", "openmoji demo train"):
        assert words.lower() in text.lower(), words
    links = browser.find_elements("css selector", "nav a")
    targets = [link.get_attribute("href").split("#")[1] for link in links]
    assert targets == ["results", "pictures", "training", "protocol", "run"]
    assert all(browser.find_elements("id", target) for target in targets)
    check_quiet(browser, runs[0])


def test_a_report_is_read_by_keyboard(browser, runs):
    from selenium.webdriver.common.keys import Keys

    opened(browser, write_report_page(runs[0]), 390)
    reached = []
    for _ in range(14):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        what = "const e = document.activeElement; return e.tagName + ' ' + (e.className || e.textContent).trim()"
        reached.append(browser.execute_script(what))
    assert reached[0] == "A skip" and reached[1] == "A Results"
    assert sum(name == "DIV scroll" for name in reached) >= 4  # tables can be scrolled without a mouse
    whole = browser.find_elements("tag name", "summary")[-1]
    browser.execute_script("arguments[0].focus()", whole)
    whole.send_keys(Keys.ENTER)
    assert "model.channels" in browser.find_elements("tag name", "details")[-1].text


def test_runs_are_compared_on_one_page(browser, runs, tmp_path):
    page = write_compare(runs, tmp_path / "compare.html")
    for width in (1200, 390):
        opened(browser, page, width)
        assert fits(browser)
    text = browser.find_element("id", "differences").text
    assert "theirs & <others> minus ours" in text and "unseen combinations, adapter on: both" in text
    assert len(browser.find_elements("css selector", "#pictures li")) >= 8
    check_quiet(browser, tmp_path)


def test_a_study_is_answered_by_clicks_and_keys_and_read_back(browser, tmp_path):
    sets = []
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
        for i in range(4):
            pixels = np.random.default_rng(10 * i + len(name)).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
        sets.append(f"{name}={tmp_path / name}")
    plan = write_study(tmp_path / "study", sets, captions={str(i): f"text {i}" for i in range(4)})
    saved = tmp_path / "saved"
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(saved)})
    opened(browser, tmp_path / "study" / "index.html", 390)
    assert fits(browser)
    browser.find_element("id", "subject").send_keys("anna\n")
    body, count = browser.find_element("tag name", "body"), 0
    body.send_keys("2")
    browser.find_element("id", "undo").click()
    assert browser.find_element("id", "count").text == "0 of 6 answered"
    while not browser.find_element("id", "end").is_displayed():
        trial = browser.execute_script("return trials[answers.length]")
        side = "tie" if trial["kind"] == "catch" else "left" if trial["left"] == "ours" else "right"
        assert browser.execute_script("return [...document.images].every(i => i.alt)") and fits(browser)
        if count % 2:
            browser.find_element("id", f"choose-{side}").click()
        else:
            body.send_keys({"left": "1", "tie": "2", "right": "3"}[side])
        count += 1
    check_quiet(browser, tmp_path / "study")
    browser.find_element("css selector", "#end .save").click()
    until = time.monotonic() + 10
    while not list(saved.glob("*.jsonl")) and time.monotonic() < until:
        time.sleep(0.05)
    result = statistics(read_answers([saved]))
    assert count == 4 + 1 + 1 and result["study"] == plan["study"] and result["repeats"] == result["catches"] == 1.0
    row = result["everyone"]["text"]["theirs"]
    assert (row["wins"], row["losses"], row["ties"]) == (4, 0, 0) and not result["unfinished"]
