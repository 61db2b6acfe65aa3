"""The command asks for large pages once, and only where the system gives them on request."""

import os
import subprocess
import sys

import pytest

from contextdiff_jax import start

ASKED = "glibc.malloc.hugetlb=1"


@pytest.fixture
def anew(monkeypatch, tmp_path):
    """What is started, [(program, arguments)], on a system that gives large pages on request."""
    started = []
    monkeypatch.setattr(start.os, "execv", lambda *arguments: started.append(arguments))
    monkeypatch.setattr(start, "_PAGES", tmp_path / "enabled")
    monkeypatch.setattr(start.sys, "platform", "linux")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    return started


def test_the_process_is_started_anew_once_with_its_own_arguments(anew, monkeypatch):
    monkeypatch.setattr(start.sys, "orig_argv", ["python", "-m", "contextdiff_jax.main", "--mode=sample"])
    start.with_large_pages()
    assert anew == [(sys.executable, [sys.executable, "-m", "contextdiff_jax.main", "--mode=sample"])]
    assert os.environ["GLIBC_TUNABLES"] == ASKED
    start.with_large_pages()
    assert len(anew) == 1


def test_other_settings_stay(anew, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=2")
    start.with_large_pages()
    assert anew and os.environ["GLIBC_TUNABLES"] == f"glibc.malloc.arena_max=2:{ASKED}"


@pytest.mark.parametrize("pages", ["[always] madvise never\n", "always madvise [never]\n", None])
def test_elsewhere_nothing_is_started(anew, pages):
    start._PAGES.unlink()
    if pages:
        start._PAGES.write_text(pages)
    start.with_large_pages()
    assert not anew and "GLIBC_TUNABLES" not in os.environ


def test_who_sets_it_is_not_asked_again(anew, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    start.with_large_pages()
    assert not anew


@pytest.mark.parametrize(
    "started, own",
    [
        (["python", "-m", "contextdiff_jax.main", "--mode=sample"], True),
        (["python", "-X", "dev", "-m", "contextdiff_jax.main"], True),
        (["/venv/bin/python", "/venv/bin/contextdiff", "app"], True),
        (["python", "-m", "pytest", "contextdiff_jax.main"], False),
        (["python", "-c", "import contextdiff_jax.main"], False),
        (["python"], False),
    ],
)
def test_only_the_command_is_started_anew(monkeypatch, started, own):
    monkeypatch.setattr(start.sys, "orig_argv", started)
    assert start.is_command() == own


@pytest.mark.skipif(not start._on_request(), reason="the system does not give large pages on request")
def test_a_real_process_keeps_its_number_arguments_and_streams():
    code = (
        "import os, sys; from contextdiff_jax import start; print(os.getpid(), flush=True); start.with_large_pages(); "
        "print(os.environ['GLIBC_TUNABLES'], sys.argv[1:], sys.stdin.read())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    command = [sys.executable, "-c", code, "a", "b c"]
    done = subprocess.run(command, env=environment, input="typed", capture_output=True, text=True, check=True)
    first, second, last = done.stdout.splitlines()
    assert first == second and last == f"{ASKED} ['a', 'b c'] typed"
