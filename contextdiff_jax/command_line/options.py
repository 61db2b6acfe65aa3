"""The flags beside the config, and which modes take which."""

import dataclasses
import os
from typing import Any

from contextdiff_jax.errors import UserError
from contextdiff_jax.files import local_path

WRITTEN = ("workdir", "out")  # fields that are paths
READ = ("prompts_file", "layout", "image", "images", "reference", "captions", "runs", "model", "source", "answers")


def _of(modes: str, default: Any = "", flag: str = "", elsewhere: str = "") -> Any:
    """A flag of these modes alone: its name where its field has another, and what to use in other modes."""
    of = {"modes": tuple(modes.split()), "flag": flag, "elsewhere": elsewhere}
    return dataclasses.field(default=default, metadata=of)


@dataclasses.dataclass(frozen=True)
class Options:
    """What the flags say; those without modes of their own are of all."""

    workdir: str
    prompts: tuple[str, ...] = _of("train sample edit heatmaps", (), "prompt")
    num_samples: int = _of("sample heatmaps", 0)
    prompts_file: str = _of("sample heatmaps")
    layout: str = _of("sample")
    seed: int = _of("sample heatmaps eval", 0, elsewhere="the seed of a training is --config.seed")
    step: int | None = _of("sample edit heatmaps eval export", None)
    out: str = _of("train sample edit heatmaps export metrics study compare")
    image: str = _of("sample")
    strength: float | None = _of("sample", None)
    half: bool = _of("export", False)
    images: str = _of("metrics")
    reference: str = _of("metrics")
    features: tuple[str, ...] = _of("metrics", ())
    captions: str = _of("metrics study")
    caption_prefix: str | None = _of("metrics", None)
    crop: int | None = _of("metrics", None)
    negative: str = _of("sample")
    size: str = _of("sample")
    topology: str = _of("plan")
    compilation_cache: str = "auto"
    runs: tuple[str, ...] = _of("compare", ())
    model: str = _of("app")
    host: str = _of("app", "127.0.0.1")
    port: int = _of("app", 7860)
    sets: tuple[str, ...] = _of("study", (), "set")
    source: str = _of("study")
    answers: tuple[str, ...] = _of("study", ())
    allow_config_change: bool = _of("train", False)
    coordinator: str = ""
    num_processes: int | None = None
    process_id: int | None = None


def modes_of(field: str) -> tuple[str, ...]:
    """Which modes take a flag of modes of its own."""
    return Options.__dataclass_fields__[field].metadata["modes"]


def checked(options: Options, mode: str) -> Options:
    """The options with ~ in their paths as the home folder.

    Raises:
        UserError: a flag that this mode does not look at, or a path on a remote store that is to be written to.
    """
    for field in dataclasses.fields(options):
        modes = field.metadata.get("modes", (mode,))
        if mode not in modes and getattr(options, field.name) != field.default:
            flag = field.metadata["flag"] or field.name
            elsewhere = "; " * bool(field.metadata["elsewhere"]) + field.metadata["elsewhere"]
            raise UserError(f"--{flag} cannot act in --mode={mode}; it is for {', '.join(modes)}{elsewhere}")
    if mode in ("train", "bench") and options.workdir.startswith("builtin:"):
        raise UserError(f"--workdir={options.workdir} is a model that ships; give a folder that can be written")
    if not 0 <= options.seed < 2**32:
        raise UserError(f"--seed={options.seed} is outside 0..{2**32 - 1}")
    paths = {name: getattr(options, name) for name in (*WRITTEN, *READ)}
    paths |= {name: str(local_path(paths[name])) for name in WRITTEN if paths[name]}
    return dataclasses.replace(options, **{name: _at_home(path) for name, path in paths.items()})


def _at_home(path: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """A path, or each of several, with ~ as the home folder."""
    return os.path.expanduser(path) if isinstance(path, str) else tuple(map(os.path.expanduser, path))
