"""The small CLIP that ships with the package and conditions the embedded recipes.

Rebuild it (about 10 minutes on two CPU cores):

    python -m contextdiff_jax.main --config=configs/clip_mini.py --workdir=runs/clip_mini
    python -m contextdiff_jax.main --config=configs/clip_mini.py --workdir=runs/clip_mini \
        --mode=export --out=contextdiff_jax/assets/clip_mini
"""

from ml_collections import ConfigDict

from configs import common


def tiny(config: ConfigDict) -> None:
    """The smallest run that uses every part."""
    config.data.preset = "demo"
    config.data.batch_size = 8
    config.clip.vision_width = config.clip.text_width = config.clip.projection_dim = 16
    config.clip.vision_layers = config.clip.text_layers = 1
    config.clip.vision_heads = config.clip.text_heads = 2
    config.clip.vocab_size = 600
    config.clip.tokenizer_dir = "runs/clip_mini-tiny-tokenizer"
    config.optim.warmup_steps = 1
    config.train.num_steps = 4
    config.train.checkpoint_every = 2
    config.train.log_every = 1


def get_config(preset: str | None = None) -> ConfigDict:
    """The shipped model, or the preset named after the colon."""
    config = common.base("contrastive")
    config.seed = 11
    config.data.preset = "demo+single+pairs"
    config.data.batch_size = 256
    config.clip = ConfigDict(
        dict(
            image_size=32,
            patch_size=4,
            vision_width=128,
            vision_layers=3,
            vision_heads=4,
            text_width=128,
            text_layers=3,
            text_heads=4,
            max_length=32,
            vocab_size=3000,
            projection_dim=128,
            activation="quick_gelu",
            tokenizer_dir="runs/clip_mini-tokenizer",
        )
    )
    config.optim.lr = 1e-3
    config.optim.b2 = 0.98
    config.optim.weight_decay = 0.1
    config.optim.warmup_steps = 100
    config.ema.decay = 0.99
    config.train.num_steps = 500
    config.train.checkpoint_every = 250
    return common.apply_preset(config, preset, {"tiny": tiny})
