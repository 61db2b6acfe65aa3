"""A pipeline of diffusers as one file with the original code's names: the inverse of what diffusers' converters do."""

import re
from pathlib import Path

import torch
from safetensors.torch import save_file

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet(state: dict, layers: int, attends_up: tuple[bool, ...]) -> dict:
    """The U-Net's tensors by the original names."""
    per = layers + 1

    def old(name: str) -> str:
        stem, _, leaf = name.rpartition(".")
        if stem in ENDS:
            return f"{ENDS[stem]}.{leaf}"
        block = re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name)
        if block is None:
            kind, number, rest = re.match(r"mid_block\.(\w+)\.(\d+)\.(.*)", name).groups()
            return f"middle_block.{1 if kind == 'attentions' else 2 * int(number)}.{inner(rest, kind)}"
        way, level, kind, number, rest = block.groups()
        level, number = int(level), int(number)
        if kind == "downsamplers":
            return f"input_blocks.{per * (level + 1)}.0.op.{leaf}"
        if kind == "upsamplers":
            return f"output_blocks.{per * level + per - 1}.{1 + attends_up[level]}.conv.{leaf}"
        start = f"input_blocks.{1 + per * level + number}" if way == "down" else f"output_blocks.{per * level + number}"
        return f"{start}.{int(kind == 'attentions')}.{inner(rest, kind)}"

    def inner(rest: str, kind: str) -> str:
        stem, _, leaf = rest.rpartition(".")
        return f"{RESNET[stem]}.{leaf}" if kind == "resnets" else rest

    return {old(name): value for name, value in state.items()}


def vae(state: dict, levels: int) -> dict:
    """The autoencoder's tensors; its attention was convolutions once."""

    def old(name: str) -> str:
        name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{levels - 1 - int(m[1])}.block", name)
        name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        name = re.sub(r"mid_block\.attentions\.0\.(\w+(?:\.0)?)\.", lambda m: f"mid.attn_1.{ATTENTION[m[1]]}.", name)
        return name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")

    convolved = lambda name, value: value[..., None, None] if ".to_" in name and name.endswith("weight") else value
    return {old(name): convolved(name, value) for name, value in state.items()}


def open_clip(state: dict, layers: int) -> dict:
    """The text encoder's tensors as OpenCLIP has them, with one more layer and the projection."""
    result = {}
    for name, value in state.items():
        rest = name.removeprefix("text_model.")
        rest = rest.replace("embeddings.token_embedding", "token_embedding").replace("final_layer_norm", "ln_final")
        rest = rest.replace("embeddings.position_embedding.weight", "positional_embedding")
        rest = rest.replace("encoder.layers", "transformer.resblocks").replace("layer_norm", "ln_")
        rest = rest.replace("mlp.fc1", "mlp.c_fc").replace("mlp.fc2", "mlp.c_proj").replace("self_attn", "attn")
        result[rest] = value
    for i in range(layers):
        for leaf in ("weight", "bias"):
            parts = [result.pop(f"transformer.resblocks.{i}.attn.{q}_proj.{leaf}") for q in "qkv"]
            result[f"transformer.resblocks.{i}.attn.in_proj_{leaf}"] = torch.cat(parts)
    first = {name: value for name, value in result.items() if ".resblocks.0." in name}
    unused = {name.replace(".0.", f".{layers}.", 1): value for name, value in first.items()}
    return result | unused | {"text_projection": torch.eye(4), "logit_scale": torch.ones(())}


def save(path: Path, parts: dict[str, dict], metadata: dict[str, str] | None = None) -> Path:
    """Writes one file; `parts` has the tensors by the prefix of their names."""
    whole = {f"{prefix}{n}": value.clone().contiguous() for prefix, part in parts.items() for n, value in part.items()}
    save_file(whole | {"betas": torch.zeros(3)}, path, metadata=metadata)
    return path
