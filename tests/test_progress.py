"""A bar in a terminal; elsewhere a line a minute, and none for work that is done within one."""

import io

from contextdiff_jax import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_a_minute_without_a_terminal(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    with progress.Progress("sampling", 10, "img", done=2, stream=out) as bar:
        for _ in range(4):
            now[0] += 40.0
            bar.update(2)
    # 40 s for every two: after 80 s 6 of 10 are there (4 of them made now) and 80 s are left.
    assert out.getvalue() == "sampling 6/10 img, ETA 01:20\nsampling 10/10 img, ETA 00:00\n"


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
