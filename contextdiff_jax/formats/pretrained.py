"""The one reader and the one writer of pretrained weights, in the Hugging Face layouts.

A folder holds config.json and model.safetensors (or diffusion_pytorch_model.safetensors), or shards with an index.
Names and shapes are checked from the headers before any value is read; then tensors go one by one to where they shall
live. Pickles are never opened.
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from contextdiff_jax.errors import UserError
from contextdiff_jax.files import atomic, read_json, read_object, write_json
from contextdiff_jax.formats import hub, single_file
from contextdiff_jax.formats.tensor_files import CODES, DTYPES, STEMS, Stored, read_header, read_tensor, write_file
from contextdiff_jax.types import Array, Params

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
NameMap = Callable[[str], str | tuple[str, ...]]


def read_config(folder: str | Path) -> dict[str, Any]:
    """config.json of a model folder.

    Raises:
        UserError: no folder, no config.json, or damaged JSON.
    """
    if single_file.is_part(folder):
        return single_file.read_config(Path(folder))
    path = Path(folder) / "config.json"
    if not Path(folder).is_dir():
        remedy = hub.remedy(folder, "give the folder of a downloaded model")
        raise UserError(f"model folder {str(folder)!r} does not exist; {remedy}")
    if not path.is_file():
        remedy = hub.remedy(folder, "give a folder in the Hugging Face layout")
        raise UserError(f"{str(folder)!r} has no config.json; {remedy}")
    return read_object(path)


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """The tensors of a model by name: of one file, or of the shards that an index names; one file wins. A safetensors
    file by itself will do as well.

    Other files, such as `model.fp16.safetensors`, are variants and never taken by guess.

    Raises:
        UserError: none, damaged or missing files; pickles are refused with the way to convert them.
    """
    if folder.is_file():
        return read_header(folder)
    if single_file.is_part(folder):
        return single_file.stored_tensors(folder)
    for stem in STEMS:
        if (folder / f"{stem}.safetensors").is_file():
            return read_header(folder / f"{stem}.safetensors")
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            return _read_shards(index)
    if pickles := [p.name for pattern in PICKLES for p in sorted(folder.glob(pattern))]:
        config = read_object(folder / "config.json") if (folder / "config.json").is_file() else {}
        name = config.get("_class_name", "AutoModel")  # only diffusers' have a class name
        library = "diffusers" if "_class_name" in config else "transformers"
        raise UserError(
            f"{str(folder)!r} has only the pickle {pickles[0]}, which runs code when opened; convert it with PyTorch "
            f"once: `from {library} import {name}; {name}.from_pretrained(FOLDER).save_pretrained(FOLDER)`"
        )
    found = ", ".join(sorted(p.name for p in folder.glob("[!.]*.safetensors") if p.is_file()))  # no link to nowhere
    remedy = f"it has {found}: rename the one you mean" if found else hub.remedy(folder, "download the model's weights")
    raise UserError(f"{str(folder)!r} has no {' or '.join(f'{s}.safetensors' for s in STEMS)}; {remedy}")


def _read_shards(index: Path) -> dict[str, Stored]:
    """The tensors of all shards, each from the file in which the index places it."""
    content = read_json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{index} is damaged (it has no weight_map from tensors to files); download it again")
    files = {name: index.parent / name for name in sorted(set(places.values()))}
    if missing := [name for name, file in files.items() if not file.is_file()]:
        remedy = hub.remedy(index, "get them")
        raise UserError(f"{str(index.parent)!r} lacks {', '.join(missing)}, named in {index.name}; {remedy}")
    headers = {name: read_header(file) for name, file in files.items()}
    if absent := [f"{tensor} in {name}" for tensor, name in places.items() if tensor not in headers[name]]:
        raise UserError(
            f"{index} does not fit its shards, which lack {_some(absent)}; download the model again, all files at once"
        )
    return {k: v for header in headers.values() for k, v in header.items()} | {
        tensor: headers[name][tensor] for tensor, name in places.items()
    }


def _some(names: list[str]) -> str:
    """The first of many names."""
    return ", ".join(sorted(names)[:8]) + (" and more" if len(names) > 8 else "")


def read_tree(folder: Path) -> Params:
    """All parameters of a network in an export: its tensors' names are the parameters' paths."""
    values = {
        tuple(name.split(".")): read_tensor(stored, flax_axes(tuple(name.split(".")), len(stored.shape)), np.float32)
        for name, stored in stored_tensors(folder).items()
    }
    return traverse_util.unflatten_dict(values)


def flax_axes(path: tuple[str, ...], ndim: int) -> tuple[int, ...]:
    """PyTorch's axes in our order: dense [out, in] -> [in, out], convolution O I *space -> *space I O."""
    return (*range(2, ndim), 1, 0) if path[-1] == "kernel" else tuple(range(ndim))


def read_params(
    folder: str | Path,
    expected: Params,
    name_of: NameMap,
    ignore: tuple[str, ...] = (),
    *,
    shardings: Any = None,
    dtype: Any = np.float32,
) -> Params:
    """Parameters of a module.

    The host never holds more than one tensor, as it is stored, beside what is returned.

    Args:
        folder: model folder, or a safetensors file.
        expected: tree of shapes (`jax.eval_shape` of the module's init).
        name_of: "/"-joined path of a parameter -> name of the tensor in the file, or all names by which it is known.
        ignore: regular expressions of tensor names that are known not to be parameters.
        shardings: tree of shardings like `expected`, or of a part of it, to which the result is then limited; each
            tensor is put there as soon as it is read. None: the host.
        dtype: of the result.

    Returns:
        Tree like `expected`: numpy arrays, or jax arrays where shardings are given.

    Raises:
        UserError: missing, unexpected or wrongly shaped tensors, or dtypes other than float32, float16 and bfloat16,
            all listed.
    """
    dtype = np.dtype(dtype)
    chosen = _match(Path(folder), traverse_util.flatten_dict(expected), name_of, ignore)
    places = {} if shardings is None else traverse_util.flatten_dict(shardings)
    values = {}
    for path, stored in sorted(chosen.items(), key=lambda item: (item[1].file, item[1].offset)):
        axes = flax_axes(path, len(stored.shape))
        if shardings is None:
            values[path] = read_tensor(stored, axes, dtype)
        elif path in places:
            values[path] = _place(read_tensor(stored, axes, DTYPES[stored.code]), places[path], dtype)
    return traverse_util.unflatten_dict(values)


def _place(value: np.ndarray, sharding: jax.sharding.Sharding, dtype: np.dtype) -> Array:
    """A host array on its devices; converted there, so that the host needs no second copy."""
    array = jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])
    return jax.block_until_ready(array if array.dtype == dtype else array.astype(dtype))


def _match(
    folder: Path, expected: dict[tuple[str, ...], Any], name_of: NameMap, ignore: tuple[str, ...]
) -> dict[tuple[str, ...], Stored]:
    """The stored tensor of every parameter, by the headers alone."""
    stored, chosen, known = stored_tensors(folder), {}, set()
    missing, wrong, foreign = [], [], []
    for path, leaf in expected.items():
        names = _names(name_of, path)
        known.update(names)
        name = next((name for name in names if name in stored), None)
        if name is None:
            missing.append(f"{' or '.join(names)} {tuple(leaf.shape)}")
            continue
        tensor = stored[name]
        if path[-1] == "kernel" and len(leaf.shape) == 2 and tensor.shape[2:] == (1, 1):
            tensor = dataclasses.replace(tensor, shape=tensor.shape[:2])  # a dense layer, once written as convolution
        shape = tuple(tensor.shape[axis] for axis in flax_axes(path, len(tensor.shape)))
        if shape != tuple(leaf.shape):
            wrong.append(f"{name} expected {tuple(leaf.shape)} found {shape}")
        elif tensor.code not in DTYPES:
            foreign.append(f"{name} {tensor.code}")
        chosen[path] = tensor
    skipped = re.compile("|".join(f"(?:{pattern})" for pattern in ignore) or r"(?!)")
    unexpected = [f"{n} {t.shape}" for n, t in stored.items() if n not in known and not skipped.search(n)]
    kinds = {"missing": missing, "unexpected": unexpected, "wrong shape": wrong}
    if problems := [f"{kind}: {_some(names)}" for kind, names in kinds.items() if names]:
        raise UserError(f"weights in {str(folder)!r} do not fit the network; " + "; ".join(problems))
    if foreign:
        raise UserError(
            f"weights in {str(folder)!r} have types that cannot be read: {_some(foreign)}; "
            f"convert them to one of {', '.join(DTYPES)}"
        )
    return chosen


def _names(name_of: NameMap, path: tuple[str, ...]) -> tuple[str, ...]:
    """The names of a parameter's tensor; the first is the one that is written."""
    names = name_of("/".join(path))
    return (names,) if isinstance(names, str) else names


def write_params(
    folder: str | Path,
    params: Params,
    name_of: NameMap,
    config: dict[str, Any],
    dtype: Any = np.float32,
    stem: str = "model",
    max_shard_bytes: int | None = None,
) -> None:
    """Writes config.json and the weights; the inverse of `read_params`.

    Killed at any moment it leaves the old model, the new one, or a folder that has no weights to a reader; never a
    mixture. The host holds one tensor at a time.

    Args:
        folder: made when absent; what an earlier write left there is replaced.
        params: tree of arrays.
        name_of: as for `read_params`.
        config: content of config.json; transformers' gets the dtype too.
        dtype: of the stored tensors: float32, float16 or bfloat16.
        stem: one of `STEMS`.
        max_shard_bytes: size from which another file is begun; None writes one file.

    Raises:
        UserError: another dtype, or values that it cannot hold.
    """
    folder, dtype = Path(folder), np.dtype(dtype)
    if dtype not in CODES:
        raise UserError(f"weights cannot be written as {dtype.name}; choose {', '.join(d.name for d in CODES)}")
    flat = {_names(name_of, path)[0]: (path, v) for path, v in traverse_util.flatten_dict(params).items()}
    config = config | ({"dtype": dtype.name} if stem == "model" else {})
    shards = _split({n: v.size * dtype.itemsize for n, (_, v) in flat.items()}, max_shard_bytes)
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    numbered = [folder / f"{stem}-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    files = [single] if len(shards) == 1 else numbered
    with contextlib.ExitStack() as renamed_on_exit:
        for file, names in zip(files, shards, strict=True):
            part = {name: flat[name] for name in names}
            _write_shard(renamed_on_exit.enter_context(atomic(file)), part, dtype)
        for old in (single, index):
            if [old] != files or not _holds(folder / "config.json", config):  # else it is replaced in one step
                old.unlink(missing_ok=True)
        write_json(config, folder / "config.json")
    if len(shards) > 1:
        places = {name: file.name for file, names in zip(files, shards, strict=True) for name in names}
        total = sum(value.size for _, value in flat.values()) * dtype.itemsize
        write_json({"metadata": {"total_size": total}, "weight_map": places}, index)
    for old in folder.glob(f"{stem}-*-of-*.safetensors"):
        if old not in files:
            old.unlink()


def _holds(path: Path, value: Any) -> bool:
    """Whether a JSON file has this content."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) == value
    except (OSError, ValueError):
        return False


def _split(sizes: dict[str, int], limit: int | None) -> list[list[str]]:
    """Names in their order, cut where a part would grow over the limit; one tensor is never cut."""
    parts, size = [[]], 0
    for name, more in sizes.items():
        if limit is not None and parts[-1] and size + more > limit:
            parts.append([])
            size = 0
        parts[-1].append(name)
        size += more
    return parts


def _write_shard(path: Path, part: dict[str, tuple[tuple[str, ...], Array]], dtype: np.dtype) -> None:
    """One file; `part` has (path, value) by tensor name."""
    order = lambda name: np.argsort(flax_axes(part[name][0], part[name][1].ndim)).astype(int)

    def value_of(name: str) -> np.ndarray:
        value = _on_host(part[name][1]).transpose(order(name))
        out = np.ascontiguousarray(value, dtype)
        if value.dtype != dtype and not np.isfinite(out).all() and np.isfinite(value).all():
            largest = float(np.abs(value).max())
            raise UserError(f"{name} has values up to {largest:.3g}, too large for {dtype.name}; write bfloat16")
        return out

    with np.errstate(over="ignore"):
        write_file(path, {name: tuple(part[name][1].shape[a] for a in order(name)) for name in part}, dtype, value_of)


def _on_host(value: Array) -> np.ndarray:
    """The value, without leaving a copy in the host's memory: an array on a device keeps what was fetched of it."""
    if isinstance(value, jax.Array) and any(device.platform != "cpu" for device in value.devices()):
        value = jnp.copy(value)
    return np.asarray(jax.device_get(value))


def write_model_card(
    folder: str | Path,
    text: str,
    *,
    license: str | None = None,
    library_name: str | None = None,
    tags: tuple[str, ...] = (),
    base_model: str | None = None,
) -> None:
    """Writes README.md: front matter in YAML, as the hub reads it, and the text in Markdown."""
    fields = dict(license=license, library_name=library_name, tags=list(tags), base_model=base_model)
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items() if value]
    with atomic(Path(folder) / "README.md") as temporary:
        temporary.write_text("\n".join(["---", *lines, "---", "", text.strip(), ""]), encoding="utf-8")
