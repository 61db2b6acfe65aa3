"""Files that are whole or absent."""

import errno
import os
import re
import socket

import pytest

from contextdiff_jax import files
from contextdiff_jax.errors import UserError


def test_two_writers_of_one_number_do_not_share_a_temporary_file(tmp_path, monkeypatch):
    """Process 7 of one host and process 7 of another, in a folder that both see."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    path = tmp_path / "a.json"
    with files.atomic(path) as first:
        monkeypatch.setattr(socket, "gethostname", lambda: "other")
        with files.atomic(path) as second:
            assert first != second and {first.suffix, second.suffix} == {".json"}
            second.write_text("second")
        assert path.read_text() == "second"
        first.write_text("first")
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


def test_what_fails_leaves_nothing_behind(tmp_path):
    with pytest.raises(ZeroDivisionError), files.atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_what_a_disk_refuses_is_one_line_that_names_the_file(tmp_path):
    words = rf"No space left on device: {tmp_path / 'a.txt'}\); make room"
    with pytest.raises(UserError, match=words), files.refusals_in_words(), files.atomic(tmp_path / "a.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConnectionResetError), files.refusals_in_words():
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")


def test_a_folder_of_results_is_whole_wherever_it_is_and_they_are_not_lost(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").write_text("mine")
    with files.whole_folder(".") as building:
        assert building.parent == tmp_path, "on the same disk, whatever is mounted there"
        (building / "edit.json").write_text("{}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edit.json", "notes"]
    with pytest.raises(ZeroDivisionError), files.whole_folder(tmp_path):
        raise ZeroDivisionError
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / "edit.mp4").mkdir()
    words = r"cannot take the results \(Is a directory: .*edit.mp4\); they are in (.*/.building-[^:]*): move them"
    with pytest.raises(UserError, match=words) as caught, files.whole_folder(tmp_path) as building:
        (building / "edit.mp4").write_text("hours")
    assert re.search(words, str(caught.value))[1] == str(building) and (building / "edit.mp4").read_text() == "hours"


def test_a_link_that_leads_nowhere_is_said_before_the_work(tmp_path):
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    with pytest.raises(UserError, match=r"cannot be written \(.*runs is a link to .*disk, which is not there\); mount"):
        files.check_writable(tmp_path / "runs" / "a", "workdir", "mount it")
    (tmp_path / "disk").mkdir()
    files.check_writable(tmp_path / "runs" / "a", "workdir", "mount it")


def test_a_user_s_path_is_one(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.user_path("~/a") == tmp_path / "a" and str(files.user_path("~nobody-of-that-name/a"))[0] == "~"
    with pytest.raises(UserError, match="too long for the name of a file; put a text into one"):
        files.user_path(f"runs/{'é' * 128}")
    for path in ("gs://bucket/run", "GS://bucket/run"):
        with pytest.raises(UserError, match="remote store"):
            files.local_path(path)


def test_who_has_no_home_has_a_cache_for_the_while(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert files.cache_folder() == tmp_path / "contextdiff_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    folder = files.cache_folder()
    assert folder.is_dir() and folder == files.cache_folder() and "set HOME" in caplog.text
