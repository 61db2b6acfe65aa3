"""The config that a command line names: its file, its preset, and the keys that flags may change."""

import difflib
import importlib
import importlib.util
import sys
import traceback
from pathlib import Path

from ml_collections import ConfigDict

from contextdiff_jax import config as config_lib
from contextdiff_jax.errors import UserError
from contextdiff_jax.formats.hub import RUNS
from contextdiff_jax.samplers.settings import ELSEWHERE

# In a clone, and inside the installed package.
SHIPPED_CONFIGS = (Path(__file__).parents[2] / "configs", Path(__file__).parents[1] / "shipped" / "configs")


def default_workdir(config_file: str, config: ConfigDict) -> str:
    """runs/<config>-<preset>, e.g. runs/t2i or runs/t2i-small."""
    return f"{RUNS}/" + "-".join(part for part in (Path(config_file.split(":")[0]).stem, config.preset) if part)


def with_config_file(argv: list[str]) -> list[str]:
    """The arguments with the path of a shipped config where --config names one, e.g. t2i.py:small or t2i."""
    place = _config_flag(argv)
    if place is None:
        return argv
    i, given = place
    path = _find_config(given)
    return [*argv[:i], f"--config={path}" if "=" in argv[i] else path, *argv[i + 1 :]]


def _config_flag(argv: list[str]) -> tuple[int, str] | None:
    """Which argument holds the value of --config, and the value; the last one counts."""
    found = None
    for i, flag in enumerate(argv[1:], start=1):
        name, equals, value = flag.lstrip("-").partition("=")
        if name == "config" and flag.startswith("-"):
            found = (i, value) if equals else (i + 1, argv[i + 1]) if i + 1 < len(argv) else None
    return found


def _find_config(given: str) -> str:
    """FILE.py[:preset] of a file that exists, else of the shipped config of that name."""
    file, colon, preset = given.partition(":")
    name = Path(file).name
    beside = (folder / (name if name.endswith(".py") else f"{name}.py") for folder in SHIPPED_CONFIGS)
    plain = Path(file).parent in (Path("."), Path("configs"))
    found = None if Path(file).is_file() or not plain else next((p for p in beside if p.is_file()), None)
    return given if found is None else f"{found}{colon}{preset}"


def check_config_flags(argv: list[str]) -> None:
    """Loads the config named in `argv` and checks that each `--config.key=value` names a key it has.

    Raises:
        UserError: missing file, unknown preset, a file that cannot be imported, an unknown key (with the nearest one).
    """
    place = _config_flag(argv)
    if place is None or not place[1]:
        return
    config = _load_config(place[1])
    for key in asked_keys(argv):
        _check_key(config, key)


def asked_keys(argv: list[str]) -> list[str]:
    """The keys of the flags `--config.KEY=VALUE`."""
    names = (flag.lstrip("-").partition("=")[0].removeprefix("no") for flag in argv[1:] if flag.startswith("-"))
    return [name.removeprefix("config.") for name in names if name.startswith("config.")]


def as_keys(flag: str, argv: list[str]) -> str:
    """What to write in the place of an unknown flag that is the name of a config's key, or what others call it; ""
    where it is neither."""
    place = _config_flag(argv)
    named = bool(place and place[1])
    given = place[1] if named else _find_config("configs/t2i.py:builtin")
    name = ELSEWHERE.get(flag, flag)
    keys = [key for key in config_lib.leaves(_load_config(given)) if key.split(".")[-1] == name]
    of_drawing = [key for key in keys if key.startswith("sample.")]
    if not named:  # without a config pictures are drawn
        keys = of_drawing or keys
    if not keys:
        return ""
    value = next((arg.partition("=")[2] for arg in argv[1:] if arg.lstrip("-").startswith(f"{flag}=")), "") or "VALUE"
    said = " or ".join(f"--config.{key}={value}" for key in keys)
    what = f"--{flag} is no flag but a key of the config; set it by {said}"
    if named:
        return what
    shipped = f"for the model that ships --config=configs/t2i.py:builtin --workdir=builtin:demo {said}"
    return f"{what} beside --config, that of the training" + f"; {shipped}" * bool(of_drawing)


def of_a_value(message: str) -> str:
    """absl's words for a flag whose value has another type, with what it must be."""
    flag, _, reason = message.partition(": ")
    wanted = {"boolean": "True or False", "int()": "a whole number, e.g. 1000", "to float": "a number, e.g. 3e-4"}
    must = next((words for sign, words in wanted.items() if sign in reason), None)
    return f"{flag.removeprefix('flag ')} must be {must}" if must else message


def _load_config(path: str) -> ConfigDict:
    """get_config(preset) of FILE.py[:preset]."""
    file, _, preset = path.partition(":")
    if not Path(file).is_file():
        shipped = sorted({p.name for folder in SHIPPED_CONFIGS for p in folder.glob("[!_]*.py")} - {"common.py"})
        raise UserError(
            f"config file {file!r} does not exist; shipped ones, e.g. configs/t2i.py, are {', '.join(shipped)}"
        )
    spec = importlib.util.spec_from_file_location("_requested_config", file)
    if spec is None:
        raise UserError(f"config file {file!r} is not a Python file; give one like configs/t2i.py")
    module = importlib.util.module_from_spec(spec)
    try:
        _make_importable(Path(file).resolve().parent.parent)
        spec.loader.exec_module(module)
        config = module.get_config(preset) if preset else module.get_config()
        config_lib.check_sections(config, file)
        return config
    except UserError:
        raise
    except Exception as error:
        line = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(line.filename).name}:{line.lineno}"
        raise UserError(f"config file {file!r} failed at {where}: {type(error).__name__}: {error}") from error


def _make_importable(root: Path) -> None:
    """Lets a config import from the folder above it, and the package `configs`: one's own there, else what ships."""
    shipped, own = next(folder for folder in SHIPPED_CONFIGS if (folder / "common.py").is_file()), root / "configs"
    for place in (shipped.parent, root):
        if str(place) not in sys.path:
            sys.path.insert(0, str(place))
    if own.is_dir() and not (own / "__init__.py").is_file():
        # Python passes such a folder over for a package further on: what is in it comes first here as well.
        package = importlib.import_module("configs")
        package.__path__ = list(dict.fromkeys([str(own), *package.__path__]))


def _check_key(config: ConfigDict, key: str) -> None:
    """Every part of a dotted key must exist."""
    node, parts = config, key.split(".")
    for depth, part in enumerate(parts):
        if not isinstance(node, ConfigDict):
            raise UserError(f"config key {key!r} is unknown; config.{'.'.join(parts[:depth])} has no parts")
        if part not in node:
            prefix = ".".join(parts[:depth] + [""])
            near = difflib.get_close_matches(part, list(node), n=1)
            everywhere = [leaf for leaf in config_lib.leaves(config) if leaf.split(".")[-1] == part]
            hint = [f"config.{prefix}{n}" for n in near] or [f"config.{leaf}" for leaf in everywhere]
            remedy = f"did you mean {hint[0]}?" if hint else f"accepted there: {', '.join(sorted(node))}"
            raise UserError(f"config key 'config.{key}' is unknown; {remedy}")
        node = node[part]
