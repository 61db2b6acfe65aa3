"""The package as pip installs it, in an environment of its own; that the recipes ship is tested quickly beside it."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_installed_package_trains_draws_saves_and_speaks_with_diffusers():
    script = Path(__file__).with_name("installed.py")
    command = [sys.executable, script, f"--site_packages={sysconfig.get_path('purelib')}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def test_every_extra_names_a_file_that_is_there():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["dynamic"]
    extras = project["optional-dependencies"]
    assert {"test", "tfds", "video", "eval"} <= set(extras)
    for extra in extras.values():
        assert all((ROOT / file).is_file() for file in extra["file"])
