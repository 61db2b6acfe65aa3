"""A small autoencoder for latent diffusion on embedded scenes; `launch/builtin_demo.sh` trains the shipped model's.

    python -m contextdiff_jax.main --config=configs/autoencoder.py --workdir=runs/autoencoder
    python -m contextdiff_jax.main --config=configs/autoencoder.py --workdir=runs/autoencoder \
        --mode=export --out=FOLDER/vae       # the `vae` part of a Stable Diffusion folder

Presets: `:tiny` (seconds, for tests).
"""

from ml_collections import ConfigDict

from configs import common


def tiny(config: ConfigDict) -> None:
    """Two steps of a toy, for tests."""
    config.autoencoder.channels = (8, 16)
    config.autoencoder.norm_groups = 4
    config.data.image_size = 16
    config.data.batch_size = 8
    config.optim.warmup_steps = 1
    config.train.num_steps = 2
    config.train.log_every = 1
    config.train.checkpoint_every = 2
    config.train.preview_every = 2


def get_config(preset: str | None = None) -> ConfigDict:
    """The recipe; `preset` comes after the colon."""
    config = common.base("autoencoder")
    config.seed = 5
    config.data.preset = "demo"
    config.data.image_size = 64
    config.data.batch_size = 16
    config.autoencoder = ConfigDict(
        dict(
            channels=(16, 32, 64),  # of each level; every level but the last halves the sides
            num_blocks=1,
            latent_channels=4,
            norm_groups=8,
            kl_weight=1e-4,  # against the mean squared error, per latent value
        )
    )
    config.optim.lr = 2e-3
    config.optim.warmup_steps = 50
    config.ema.decay = 0.99
    config.train.num_steps = 600
    config.train.checkpoint_every = 100
    config.train.preview_every = 100
    return common.apply_preset(config, preset, {"tiny": tiny})
