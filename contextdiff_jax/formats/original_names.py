"""The original Stable Diffusion code's tensor names (CompVis, Stability AI) in those of diffusers and transformers."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

from contextdiff_jax.errors import UserError
from contextdiff_jax.formats.tensor_files import DTYPES, Stored

Tensors = dict[str, Stored]
RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "emb_layers.1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}
UNET_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
OPEN_CLIP_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
OPEN_CLIP_ENDS = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
OPEN_CLIP_UNUSED = ("text_projection", "logit_scale", "attn_mask")
OPEN_CLIP_LAYERS = 23  # that 2.x uses of its text encoder's 24
CLIP_UNUSED = ("text_projection.weight", "logit_scale")  # of whole CLIP models, which some files were merged from


def unet(tensors: Tensors) -> Tensors:
    """The U-Net's: blocks are numbered there through all levels, a way down or up counting as one."""
    downs = [int(m[1]) for name in tensors if (m := re.match(r"input_blocks\.(\d+)\.0\.op\.weight", name))]
    per_level = min(downs, default=1 + _last(tensors, r"input_blocks\.(\d+)\."))

    def renamed(name: str) -> str:
        stem, _, leaf = name.rpartition(".")
        if stem in UNET_ENDS:
            return f"{UNET_ENDS[stem]}.{leaf}"
        found = re.fullmatch(r"(input_blocks|middle_block|output_blocks)\.(\d+)\.([^.]+)\.(.+)", name)
        if found is None:
            raise UserError(f"the U-Net of a file in the original layout has an unknown tensor {name!r}")
        way, number, place, rest = found.groups()
        if way == "middle_block":
            rest = f"{place}.{rest}"
            if number == "1":
                return f"mid_block.attentions.0.{rest}"
            return f"mid_block.resnets.{int(number) // 2}.{_block(rest)}"
        level, layer = divmod(int(number) - (way == "input_blocks"), per_level)
        block = f"{'down' if way == 'input_blocks' else 'up'}_blocks.{level}"
        if rest.startswith("op."):
            return f"{block}.downsamplers.0.conv.{rest[3:]}"
        if rest.startswith("conv."):
            return f"{block}.upsamplers.0.{rest}"
        return f"{block}.resnets.{layer}.{_block(rest)}" if place == "0" else f"{block}.attentions.{layer}.{rest}"

    return {renamed(name): tensor for name, tensor in tensors.items()}


def _block(rest: str) -> str:
    """The names inside a residual block of the U-Net."""
    stem, _, leaf = rest.rpartition(".")
    return f"{RESNET.get(stem, stem)}.{leaf}"


def vae(tensors: Tensors) -> Tensors:
    """The autoencoder's: its decoder counts levels from the finest, diffusers' from the coarsest."""
    last = _last(tensors, r"decoder\.up\.(\d+)\.")
    rules = (
        (r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets."),
        (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
        (r"\.up\.(\d+)\.block\.", lambda m: f".up_blocks.{last - int(m[1])}.resnets."),
        (r"\.up\.(\d+)\.upsample\.", lambda m: f".up_blocks.{last - int(m[1])}.upsamplers.0."),
        (r"\.mid\.block_(\d)\.", lambda m: f".mid_block.resnets.{int(m[1]) - 1}."),
        (r"\.mid\.attn_1\.(\w+)\.", lambda m: f".mid_block.attentions.0.{VAE_ATTENTION[m[1]]}."),
        (r"\.norm_out\.", ".conv_norm_out."),
        (r"\.nin_shortcut\.", ".conv_shortcut."),
    )

    def renamed(name: str) -> str:
        for pattern, new in rules:
            name = re.sub(pattern, new, name)
        return name

    return {renamed(name): tensor for name, tensor in tensors.items() if not name.startswith("loss.")}


def clip(tensors: Tensors) -> Tensors:
    """The text encoder's of 1.x: transformers' own, in early files without their first part."""
    names = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    used = {name: tensor for name, tensor in names.items() if name not in CLIP_UNUSED}
    return {name if name.startswith("text_model.") else f"text_model.{name}": tensor for name, tensor in used.items()}


def open_clip(tensors: Tensors) -> Tensors:
    """The text encoder's of 2.x, by OpenCLIP; queries, keys and values are one tensor. Of a whole one the last layer is
    not used; files that were converted back from diffusers have neither that layer nor the projection."""
    count, result = 1 + _last(tensors, r"transformer\.resblocks\.(\d+)\."), {}
    whole = "text_projection" in tensors and count != OPEN_CLIP_LAYERS
    unused = count - 1 if whole or count > OPEN_CLIP_LAYERS else count
    for name, tensor in tensors.items():
        if name in OPEN_CLIP_ENDS:
            result[OPEN_CLIP_ENDS[name]] = tensor
        elif found := re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", name):
            number, rest = found.groups()
            layer = f"text_model.encoder.layers.{number}."
            if int(number) == unused:
                continue
            if rest.startswith("attn.in_proj_"):
                leaf = rest.removeprefix("attn.in_proj_")
                result |= {f"{layer}self_attn.{q}_proj.{leaf}": _third(tensor, i) for i, q in enumerate("qkv")}
            else:
                stem, _, leaf = rest.rpartition(".")
                result[f"{layer}{OPEN_CLIP_LAYER.get(stem, stem)}.{leaf}"] = tensor
        elif name not in OPEN_CLIP_UNUSED and not name.endswith("position_ids"):
            raise UserError(f"the text encoder of a Stable Diffusion 2.x file has an unknown tensor {name!r}")
    return result


def _third(tensor: Stored, index: int) -> Stored:
    """The first, second or third part of a tensor along its first axis."""
    rows = tensor.shape[0] // 3
    shape = (rows, *tensor.shape[1:])
    itemsize = DTYPES[tensor.code].itemsize if tensor.code in DTYPES else 0  # what cannot be read is refused later
    return dataclasses.replace(tensor, shape=shape, offset=tensor.offset + index * math.prod(shape) * itemsize)


def _last(tensors: Tensors, pattern: str) -> int:
    """The largest number that a pattern finds, -1 for none."""
    return max((int(m[1]) for name in tensors if (m := re.match(pattern, name))), default=-1)


RENAME: dict[str, Callable[[Tensors], Tensors]] = dict(unet=unet, vae=vae, text_encoder=clip, open_clip=open_clip)


def text_parts(shape: Callable[[str], tuple[int, ...]], count: Callable[[str], int], version: int) -> dict[str, Any]:
    """Sizes of the text encoder by the shapes of its tensors; heads are 64 wide in all of these models."""
    vocab, width = shape("text_model.embeddings.token_embedding.weight")
    return dict(
        architectures=["CLIPTextModel"],
        hidden_size=width,
        intermediate_size=shape("text_model.encoder.layers.0.mlp.fc1.weight")[0],
        num_hidden_layers=count(r"text_model\.encoder\.layers\.(\d+)\."),
        num_attention_heads=max(1, width // 64),
        max_position_embeddings=shape("text_model.embeddings.position_embedding.weight")[0],
        vocab_size=vocab,
        hidden_act="quick_gelu" if version == 1 else "gelu",
        bos_token_id=vocab - 2,
        eos_token_id=vocab - 1,
        pad_token_id=1 if version == 1 else 0,
        projection_dim=width if version == 1 else 512,
    )
