"""LoRA files: written with the names of PEFT and diffusers, read from those, diffusers' older ones and kohya's.

Of a layer with kernel [out, in] a file has A [rank, in] and B [out, rank]; of a convolution A [rank, in, h, w] and
B [out, rank, 1, 1]. The layer's new weight is W + (alpha / rank) B A.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from contextdiff_jax import trees
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import atomic, read_object, user_path
from contextdiff_jax.formats.kinds import check
from contextdiff_jax.formats.tensor_files import DTYPES, Stored, read_header, read_metadata, read_tensor, write_file
from contextdiff_jax.types import Params

FILE = "pytorch_lora_weights.safetensors"
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
UNET, TEXT = "unet", "text_encoder"  # what a file may change; PEFT's own files do not say, and mean the U-Net
ENDS = {
    "down": r"\.(?:lora_A(?:\.\w+)?|lora\.down|lora_linear_layer\.down|lora_down)\.weight$",
    "up": r"\.(?:lora_B(?:\.\w+)?|lora\.up|lora_linear_layer\.up|lora_up)\.weight$",
    "alpha": r"\.alpha$",
}
KOHYA = {"lora_unet_": UNET, "lora_te_": TEXT, "lora_te1_": TEXT}


class Change(NamedTuple):
    """What a LoRA adds to one layer: scale * (up @ down), in PyTorch's axes."""

    down: np.ndarray
    up: np.ndarray
    scale: float


def write(folder: str | Path, lora: Params, scale: float, name_of: Callable[[str], str], network: str = UNET) -> Path:
    """Writes a LoRA; its scale goes into B, so that alpha is the rank, which diffusers takes where nothing is said.

    Args:
        folder: gets `FILE`.
        lora: {layer: {"down", "up"}}.
        scale: of the products.
        name_of: "/"-joined path of a kernel -> the name of its tensor.
        network: the first part of the names.
    """
    flat, tensors = traverse_util.flatten_dict(lora), {}
    for path, value in flat.items():
        layer = name_of("/".join((*path[:-1], "kernel"))).removesuffix(".weight").removesuffix(".kernel")
        array = np.asarray(value, np.float32)
        if path[-1] == "down":
            axes = (array.ndim - 1, array.ndim - 2, *range(array.ndim - 2))
            tensors[f"{network}.{layer}.lora_A.weight"] = array.transpose(axes)
        else:
            spatial = flat[*path[:-1], "down"].ndim - 2
            tensors[f"{network}.{layer}.lora_B.weight"] = (scale * array.T).reshape(*array.T.shape, *(1,) * spatial)
    path = Path(folder) / FILE
    with atomic(path) as temporary:
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        contiguous = lambda name: np.ascontiguousarray(tensors[name], np.float32)
        write_file(temporary, shapes, np.dtype(np.float32), contiguous)
    return path


def read(path: str | Path, layers: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, Change]]:
    """The changes of a LoRA by network and our path of the layer.

    Args:
        path: the file, or a folder with one by diffusers' or PEFT's name.
        layers: {network: {the layer's name in files: our path}}.

    Raises:
        UserError: no such file, or a damaged one, a part without its counterpart or of another rank, layers that these
            networks do not have, or kinds of adaptation other than A and B.
    """
    file, alpha_of_all = _find(user_path(path))
    parts: dict[tuple[str, str], dict[str, Stored]] = {}
    unknown = []
    for name, stored in read_header(file).items():
        place = _place(name, layers)
        if place is None or stored.code not in DTYPES:
            unknown.append(name)
        else:
            network, layer, part = place
            parts.setdefault((network, layer), {})[part] = stored
    lacking = [layer for (_, layer), found in parts.items() if not {"down", "up"} <= found.keys()]
    if unknown or lacking or not parts:
        what = ", ".join((unknown + lacking)[:4]) or "no tensors"
        raise UserError(
            f"{file} does not fit this model: {what}{' and more' if len(unknown + lacking) > 4 else ''}; known are A "
            "and B of layers of the U-Net and the text encoder by the names of diffusers, PEFT or kohya"
        )
    result: dict[str, dict[str, Change]] = {}
    for (network, layer), found in parts.items():
        result.setdefault(network, {})[layer] = _change(f"{file}: {layer}", found, alpha_of_all(network))
    return result


def digest(changes: Mapping[str, Change]) -> str:
    """What tells the changes of one LoRA from another's."""
    array = lambda value: np.asarray(value, np.float32)
    arrays = {layer: {part: array(v) for part, v in change._asdict().items()} for layer, change in changes.items()}
    return trees.digest(arrays)


def layers_of(params: Params, name_of: Callable[[str], str | tuple[str, ...]]) -> dict[str, str]:
    """{name of a layer in files: our path of it} of a network; `name_of` is that of its pretrained files."""
    result = {}
    for path in traverse_util.flatten_dict(params, sep="/"):
        if path.endswith("/kernel"):
            names = name_of(path)
            for name in (names,) if isinstance(names, str) else names:
                result[name.removesuffix(".weight").removesuffix(".kernel")] = path.removesuffix("/kernel")
    return result


def _find(path: Path) -> tuple[Path, Callable[[str], float | None]]:
    """A LoRA's file, and what alpha it states for a network as a whole, where it does."""
    candidates = [path] if path.is_file() else [path / FILE, path / PEFT_FILE]
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None or file.suffix != ".safetensors":
        raise UserError(f"{path} is no LoRA; give a .safetensors file, or a folder with {FILE} or {PEFT_FILE}")
    stated: dict[str, Any] = {}
    read_header(file)
    if said := read_metadata(file).get("lora_adapter_metadata"):
        stated = _stated(file, said)
    elif (config := file.parent / PEFT_CONFIG).is_file() and file.name == PEFT_FILE:
        stated = {f"{UNET}.{key}": value for key, value in read_object(config).items()}
    for key, value in stated.items():
        if key.split(".")[-1] in ("alpha_pattern", "use_rslora", "use_dora", "lora_bias") and value:
            raise UserError(f"{file} has {key}={value!r}, which is not supported; merge it into the model with PEFT")
    alphas = {network: stated[f"{network}.lora_alpha"] for network in (UNET, TEXT) if f"{network}.lora_alpha" in stated}
    check(f"{file}: lora_alpha of", alphas, dict.fromkeys(alphas, float))
    return file, alphas.get


def _stated(file: Path, text: str) -> dict[str, Any]:
    """What diffusers has written of a LoRA into its metadata."""
    try:
        stated = json.loads(text)
    except ValueError as error:
        raise UserError(f"{file} has a lora_adapter_metadata that is no JSON ({error}); download it again") from error
    if not isinstance(stated, dict):
        raise UserError(f"{file} has a lora_adapter_metadata that is no object ({text[:80]!r}); download it again")
    return stated


def _place(name: str, layers: Mapping[str, Mapping[str, str]]) -> tuple[str, str, str] | None:
    """(network, our layer, down | up | alpha) of a tensor's name, None where there is none."""
    for part, end in ENDS.items():
        stem = re.sub(end, "", name)
        # Early diffusers: attn1.processor.to_q_lora.down.weight
        early = re.fullmatch(rf"(.*)\.processor\.(to_\w+)_lora\.{part}\.weight", name)
        if early:
            stem = f"{early[1]}.{'to_out.0' if early[2] == 'to_out' else early[2]}"
        elif stem == name:
            continue
        for prefix, network in KOHYA.items():
            if stem.startswith(prefix):
                flat = {layer.replace(".", "_"): ours for layer, ours in layers.get(network, {}).items()}
                ours = flat.get(stem.removeprefix(prefix))
                return None if ours is None else (network, ours, part)
        network, stem = (TEXT, stem[len(TEXT) + 1 :]) if stem.startswith(f"{TEXT}.") else (UNET, stem)
        stem = stem.removeprefix(f"{UNET}.").removeprefix("base_model.model.")
        ours = layers.get(network, {}).get(stem)
        return None if ours is None else (network, ours, part)
    return None


def _change(where: str, found: dict[str, Stored], alpha: float | None) -> Change:
    shapes = {part: stored.shape for part, stored in found.items()}
    down, up = shapes["down"], shapes["up"]
    fits = min(len(down), len(up)) > 1 and 0 < math.prod(up) == up[0] * down[0]
    if not fits or math.prod(shapes.get("alpha", ())) != 1:
        listed = ", ".join(f"{part} {shape}" for part, shape in shapes.items())
        raise UserError(f"{where} has parts that do not fit one another ({listed}); down is [rank, in], up [out, rank]")
    values = {part: read_tensor(s, tuple(range(len(s.shape))), np.float32) for part, s in found.items()}
    rank = values["down"].shape[0]
    if "alpha" in values:
        alpha = values["alpha"].item()
    return Change(values["down"], values["up"], 1.0 if alpha is None else alpha / rank)


def add(params: Params, changes: Mapping[str, Change], weight: float) -> Params:
    """Parameters with weight times the changes added, {our path of a layer: Change}.

    Raises:
        UserError: a change of another shape than its layer's.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    for layer, change in changes.items():
        kernel = flat[f"{layer}/kernel"]
        rank, out = change.down.shape[0], change.up.shape[0]
        delta = change.up.reshape(out, rank) @ change.down.reshape(rank, -1)  # [out, in * h * w]
        delta = delta.reshape(out, *change.down.shape[1:])
        delta = delta.transpose(*range(2, delta.ndim), 1, 0)
        if delta.size != kernel.size or delta.shape[-2:] != kernel.shape[-2:]:
            raise UserError(f"the LoRA changes {layer} by {delta.shape}, but the model has {tuple(kernel.shape)}")
        changed = kernel + (weight * change.scale) * delta.reshape(kernel.shape)
        flat[f"{layer}/kernel"] = changed.astype(kernel.dtype)
    return traverse_util.unflatten_dict(flat, sep="/")
