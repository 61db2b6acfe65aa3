"""Layout to image (paper, section 4.3, Table 4): classes in boxes, as soft maps through residual stages to tokens.

    python -m contextdiff_jax.main --config=configs/layout2img.py           # two drawn objects, 32 x 32, CPU, minutes
    python -m contextdiff_jax.main --config=configs/layout2img.py:tiny      # seconds: for tests
    python -m contextdiff_jax.main --config=configs/layout2img.py --mode=sample --layout=layout.json

where layout.json holds one or several layouts, the corners of each box as fractions of the sides:

    [["frog", [0.05, 0.3, 0.45, 0.7]], ["red apple", [0.55, 0.3, 0.95, 0.7]]]

COCO in the latents of an autoencoder in the diffusers layout (AUTOENCODER/vqvae or AUTOENCODER/vae), from the folder
that holds train2017, val2017 and annotations (instances and stuff):

    COCO="--config=configs/layout2img.py:coco --config.data.path=COCO --config.model.pretrained=AUTOENCODER"
    python -m contextdiff_jax.main $COCO --config.space.latents=LATENTS --mode=encode   # once
    python -m contextdiff_jax.main $COCO --config.space.latents=LATENTS

Cost of a step with the adapter, counted from the program before compilation (`model.remat` adds about a third), and of
the whole run, estimated at 200 TFLOP/s (what one current GPU may sustain in bfloat16; not measured):

    preset    parameters                              batch   TFLOP per step     steps   device hours
    coco      U-Net 396 M, adapter 17 M, layouts 7 M    512              375   100,000             52
"""

from ml_collections import ConfigDict

from configs import t2i
from configs.common import apply_preset, latent_diffusion, short_training


def get_config(preset: str | None = None) -> ConfigDict:
    """Pairs of the demo's objects, or the preset named after the colon."""
    config = t2i.sections()
    config.condition.kind = "layout"
    config.data.preset = "demo_pairs"
    config.eval.after_training = True
    if not preset:
        short_training(config)
        config.condition.width, config.condition.depth = 32, 1  # at 64 and 2 they take six U-Nets
        config.train.num_steps = 700
    return apply_preset(config, preset, {"tiny": tiny, "coco": coco})


def tiny(config: ConfigDict) -> None:
    """The smallest run that uses every part."""
    t2i.tiny(config)
    config.condition.width = 16
    config.condition.depth = 1
    config.condition.token_grid = 4
    config.condition.map_channels = 4


def coco(config: ConfigDict) -> None:
    """COCO at 256 x 256 in an autoencoder's latents (Table 4): a pod."""
    latent_diffusion(config)
    config.condition.width = 256  # its residual stages work at the latents' full size
    config.condition.token_grid = 16
    config.data.source = "coco"
    config.data.preset = ""
    config.data.batch_size = 512
    config.train.num_steps = 100_000
