"""The one reader and the one writer of pretrained weights, in the Hugging Face layouts.

A folder holds config.json and model.safetensors, or shards with model.safetensors.index.json. Every tensor is
read by itself, converted, and checked against the shape that our module expects. Pickles are never opened.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from contextdiff_jax.errors import UserError
from contextdiff_jax.files import atomic, write_json
from contextdiff_jax.types import Params

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
STEMS = ("model", "diffusion_pytorch_model")  # transformers, diffusers
NameMap = Callable[[str], str]


def read_config(folder: str | Path) -> dict[str, Any]:
    """config.json of a model folder.

    Raises:
        UserError: no folder, no config.json, or damaged JSON.
    """
    path = Path(folder) / "config.json"
    if not Path(folder).is_dir():
        raise UserError(f"model folder {str(folder)!r} does not exist; give the folder of a downloaded model")
    if not path.is_file():
        raise UserError(f"{str(folder)!r} has no config.json; give a folder in the Hugging Face layout")
    return read_json(path)


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # bad JSON or bad UTF-8
        raise UserError(f"{path} is damaged ({error}); download it again") from error


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model: one, or the shards that an index names; one wins, as in transformers.

    Other files, such as `model.fp16.safetensors`, are variants and never taken by guess.

    Raises:
        UserError: none, or a shard is missing; pickles are refused with the way to convert them.
    """
    for stem in STEMS:
        if (folder / f"{stem}.safetensors").is_file():
            return [folder / f"{stem}.safetensors"]
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            files = [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]
            if missing := [f.name for f in files if not f.is_file()]:
                names = ", ".join(missing)
                raise UserError(f"{str(folder)!r} lacks {names}, named in {index.name}; get them")
            return files
    if pickles := [p.name for pattern in PICKLES for p in sorted(folder.glob(pattern))]:
        raise UserError(
            f"{str(folder)!r} has only the pickle {pickles[0]}, which runs code when opened; convert it "
            "with PyTorch once: `from transformers import AutoModel; "
            "AutoModel.from_pretrained(FOLDER).save_pretrained(FOLDER)`"
        )
    found = ", ".join(sorted(p.name for p in folder.glob("*.safetensors")))
    remedy = f"it has {found}: rename the one you mean" if found else "download the model's weights"
    raise UserError(f"{str(folder)!r} has no {' or '.join(f'{s}.safetensors' for s in STEMS)}; {remedy}")


def tensors(files: list[Path]) -> Iterator[tuple[str, np.ndarray]]:
    """(name, value) one at a time; bfloat16 comes as ml_dtypes.bfloat16."""
    for file in files:
        try:
            with safe_open(file, framework="numpy") as handle:
                for name in handle.keys():  # noqa: SIM118, the handle is not a mapping
                    yield name, handle.get_tensor(name)
        except SafetensorError as error:
            raise UserError(f"{file} is damaged ({error}); download it again") from error


def to_flax(value: np.ndarray, path: tuple[str, ...]) -> np.ndarray:
    """PyTorch's axis order -> ours: dense [out, in] -> [in, out], convolution OIHW -> HWIO."""
    if path[-1] != "kernel":
        return value
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


def to_torch(value: np.ndarray, path: tuple[str, ...]) -> np.ndarray:
    """The inverse of `to_flax`."""
    if path[-1] != "kernel":
        return value
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T


def read_params(
    folder: str | Path, expected: Params, name_of: NameMap, ignore: tuple[str, ...] = ()
) -> Params:
    """Parameters of a module, float32 numpy.

    Args:
        folder: model folder.
        expected: tree of shapes (`jax.eval_shape` of the module's init).
        name_of: "/"-joined path of a parameter -> name of the tensor in the file.
        ignore: endings of tensor names that are known not to be parameters.

    Raises:
        UserError: missing, unexpected or wrongly shaped tensors, all listed.
    """
    flat = traverse_util.flatten_dict(expected)
    wanted = {name_of("/".join(path)): path for path in flat}
    found, unexpected, wrong = {}, [], []
    for name, value in tensors(weight_files(Path(folder))):
        if name not in wanted:
            if not name.endswith(ignore):
                unexpected.append(f"{name} {tuple(value.shape)}")
            continue
        path = wanted[name]
        value = to_flax(value.astype(np.float32), path)
        if value.shape != flat[path].shape:
            wrong.append(f"{name} expected {tuple(flat[path].shape)} found {value.shape}")
        found[path] = value
    missing = [f"{name} {tuple(flat[path].shape)}" for name, path in wanted.items() if path not in found]
    problems = [
        f"{kind}: {', '.join(sorted(names)[:8])}{' and more' if len(names) > 8 else ''}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape", wrong))
        if names
    ]
    if problems:
        raise UserError(f"weights in {str(folder)!r} do not fit config.json; " + "; ".join(problems))
    return traverse_util.unflatten_dict(found)


def write_params(
    folder: str | Path,
    params: Params,
    name_of: NameMap,
    config: dict[str, Any],
    dtype: Any = np.float32,
    stem: str = "model",
) -> None:
    """Writes config.json and the weights as one safetensors file; the inverse of `read_params`.

    Args:
        folder: made when absent; each file is replaced atomically.
        params: tree of arrays.
        name_of: "/"-joined path of a parameter -> name of its tensor.
        config: content of config.json; the dtype is added.
        dtype: of the stored tensors.
        stem: one of `STEMS`.
    """
    folder = Path(folder)
    flat = traverse_util.flatten_dict(jax.device_get(params))
    named = {
        name_of("/".join(path)): np.array(to_torch(np.asarray(value), path), dtype, order="C")
        for path, value in flat.items()
    }
    with atomic(folder / f"{stem}.safetensors") as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(named, temporary, metadata={"format": "pt"})
        temporary.chmod(mode)  # safetensors makes files that only their owner may read
    write_json(config | {"dtype": jnp.dtype(dtype).name}, folder / "config.json")
