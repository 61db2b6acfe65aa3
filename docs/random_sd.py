"""Stable Diffusion 1.5 and CLIP ViT-B/32 at their full size with random weights, as folders in the hub's layout, and
the config of latent diffusion's VQ-f4 with a map of its latents to colours.

    python -m docs.random_sd --out=runs/random      # sd15, clip and vq below it, 2.3 GB in half precision

For timing and memory where the real ones are not at hand; what comes out of them is noise. It takes
requirements-test.txt.
"""

import argparse
import json
from pathlib import Path

import diffusers
import torch
import transformers

from contextdiff_jax.conditions.spaces import RGB_MAP
from contextdiff_jax.encoders import ASSETS
from contextdiff_jax.formats.single_file import SCHEDULER
from docs import scripts

UNET = dict(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
VAE = dict(
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(128, 256, 512, 512),
    layers_per_block=2,
    latent_channels=4,
    sample_size=512,
)
TEXT = dict(
    vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
    max_position_embeddings=77,
)  # fmt: skip
VQ = dict(
    down_block_types=("DownEncoderBlock2D",) * 3,
    up_block_types=("UpDecoderBlock2D",) * 3,
    block_out_channels=(128, 256, 512),
    layers_per_block=2,
    latent_channels=3,
    num_vq_embeddings=8192,
    vq_embed_dim=3,
    sample_size=256,
    scaling_factor=1.0,
)


def tokenizer(max_length: int = 77) -> transformers.PreTrainedTokenizerFast:
    """The one that ships: what the words are makes no difference here."""
    return transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(ASSETS / "clip_mini" / "tokenizer.json"),
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        model_max_length=max_length,
    )


def save(out: Path) -> None:
    """Writes the folders."""
    words = tokenizer()
    special = dict(bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        parts = dict(
            unet=diffusers.UNet2DConditionModel(**UNET),
            vae=diffusers.AutoencoderKL(**VAE),
            text_encoder=transformers.CLIPTextModel(transformers.CLIPTextConfig(**special, **TEXT)),
        )
        clip = transformers.CLIPModel(transformers.CLIPConfig(text_config=special, projection_dim=512))
    none = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    scheduler = diffusers.DDIMScheduler.from_config(SCHEDULER)
    pipeline = diffusers.StableDiffusionPipeline(**parts, tokenizer=words, scheduler=scheduler, **none)
    pipeline.to(torch.float16).save_pretrained(out / "sd15")
    diffusers.VQModel(**VQ).save_config(out / "vq" / "vqvae")
    colours = dict(kernel=[[float(i == k) for k in range(3)] for i in range(3)], bias=[0.0] * 3)
    (out / "vq" / RGB_MAP).write_text(json.dumps(colours))
    clip.half().save_pretrained(out / "clip")
    words.save_pretrained(out / "clip")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/random", type=Path)
    save(parser.parse_args().out)


if __name__ == "__main__":
    scripts.run(main)
