"""A small random Stable Diffusion pipeline, saved by diffusers itself, and pictures to train on."""

import shutil
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers.pipelines import stable_diffusion
from diffusers_helpers import randomised
from PIL import Image

from contextdiff_jax import data
from docs import random_sd

UNET = dict(
    sample_size=8,
    in_channels=4,
    out_channels=4,
    block_out_channels=(16, 32),
    layers_per_block=1,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    cross_attention_dim=24,
    attention_head_dim=4,
    norm_num_groups=8,
)
VAE = dict(
    in_channels=3,
    out_channels=3,
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    block_out_channels=(8, 16),
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=4,
    sample_size=16,
)
SCHEDULER = dict(
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    clip_sample=False,
    set_alpha_to_one=False,
    steps_offset=1,
)


TEXT = dict(
    hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=16
)


SAFETY_CHECKER = stable_diffusion.safety_checker.StableDiffusionSafetyChecker
_TOWER = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
CHECKED = dict(vision_config=_TOWER | dict(image_size=16, patch_size=8), text_config=_TOWER, projection_dim=8)


def save_pipeline(
    folder: Path, unet: dict = UNET, vae: dict = VAE, text: dict = TEXT, max_length: int = 16, randomise: bool = True
) -> diffusers.StableDiffusionPipeline:
    """Writes a pipeline, by default of 16 x 16 pictures (8 x 8 latents), in the hub's layout, and returns it."""
    tokenizer = random_sd.tokenizer(max_length)
    special = dict(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    config = transformers.CLIPTextConfig(**(dict(vocab_size=len(tokenizer)) | special | text))
    changed = randomised if randomise else lambda model, seed: model.eval()
    torch.manual_seed(0)
    pipeline = diffusers.StableDiffusionPipeline(
        vae=changed(diffusers.AutoencoderKL(**vae), 1),
        unet=changed(diffusers.UNet2DConditionModel(**unet), 2),
        text_encoder=changed(transformers.CLIPTextModel(config), 3),
        tokenizer=tokenizer,
        scheduler=diffusers.DDIMScheduler(**SCHEDULER),
        safety_checker=SAFETY_CHECKER(SAFETY_CHECKER.config_class(**CHECKED)),
        feature_extractor=transformers.CLIPImageProcessor(crop_size=16, size=16),
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    # As the hub has it: the tokenizer's files lie in a folder of their own.
    assert (folder / "tokenizer" / "tokenizer.json").is_file()
    # The pictures are compared, whatever the checker thinks of them.
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_pictures(folder: Path, count: int = 40) -> Path:
    """Writes captioned pictures."""
    folder.mkdir(parents=True)
    source = data.OpenMojiSource("demo", "train", 24)
    for i in range(count):
        Image.fromarray(source[i]["image"]).save(folder / f"{i:03d}.png")
        (folder / f"{i:03d}.txt").write_text(source[i]["caption"])
    return folder


def copy(folder: Path, to: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(folder, to))
