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
