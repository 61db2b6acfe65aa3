"""Files that are whole or absent."""

import os
import socket

import pytest

from contextdiff_jax import files


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
