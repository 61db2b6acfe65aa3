"""A bar in a terminal; elsewhere a line a minute, and none for work that is done within one."""

import io
import time

from contextdiff_jax import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_a_minute_without_a_terminal(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    bar = progress.Progress("sampling", 10, "img", done=2, before="compiling", stream=out)

    def after(seconds):  # what the second thread does when it looks
        now[0] += seconds
        bar._say()

    after(59.0)
    assert out.getvalue() == ""
    after(2.0)
    bar.began()
    after(70.0)
    now[0] += 10.0
    bar.update(4)  # 80 s for these, so 80 s for the other four
    after(50.0)  # 30 s of the 80 are left, and later none: the next picture is late
    after(70.0)
    assert out.getvalue().splitlines() == [
        "sampling: compiling for 01:01",
        "sampling 2/10 img, for 01:10",
        "sampling 6/10 img, ETA 00:30",
        "sampling 6/10 img, ETA 00:00",
    ]


def test_what_takes_its_time_says_so_meanwhile(monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY", 0.02)
    monkeypatch.setattr(progress, "LOOK_EVERY", 0.005)
    for out, words in ((io.StringIO(), "sampling 0/3 img, for 00:00"), (Terminal(), "0/3")):
        with progress.Progress("sampling", 3, "img", before="compiling", stream=out) as bar:
            for _ in bar.each([0]):
                before = out.getvalue()
                deadline = time.monotonic() + 10
                while out.getvalue() == before and time.monotonic() < deadline:
                    time.sleep(0.005)
                assert words in out.getvalue()[len(before) :]
        ended = out.getvalue()
        time.sleep(0.03)
        assert out.getvalue() == ended


def test_short_work_says_nothing_without_a_terminal():
    out = io.StringIO()
    with progress.Progress("sampling", 3, "img", stream=out) as bar:
        bar.update(3)
    assert out.getvalue() == ""


def test_a_bar_in_a_terminal():
    out = Terminal()
    with progress.Progress("sampling", 3, "img", before="compiling", stream=out) as bar:
        assert "sampling (compiling): " in out.getvalue()
        bar.update(3)
    assert "sampling: " in out.getvalue() and "3/3" in out.getvalue()
