"""The judge of the embedded recipes: names the object and the background of an OpenMoji scene.

Rebuild the one that ships with the package (2 minutes on two CPU cores; 100 % of 4,000 held-out renders):

    python -m contextdiff_jax.main --config=configs/recogniser.py --workdir=runs/recogniser
    python -m contextdiff_jax.main --config=configs/recogniser.py --workdir=runs/recogniser \
        --mode=export --out=contextdiff_jax/assets/recogniser_demo

Presets: `:tiny` (seconds, for tests).
"""

from ml_collections import ConfigDict

from configs import common


def tiny(config: ConfigDict) -> None:
    """Two steps of a toy, for tests."""
    config.recogniser.channels = (16, 16, 32)
    config.data.batch_size = 8
    config.train.num_steps = 2
    config.train.log_every = 1
    config.train.checkpoint_every = 2


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; `arg` is the preset after the colon."""
    config = common.base("recogniser")
    config.seed = 20_231  # not the seed of any model that it judges
    config.data.batch_size = 128
    config.recogniser = ConfigDict(
        dict(
            channels=(64, 96, 128),
            augment=dict(blur=1.0, noise=0.15, gain=0.08, shift=0.08),
        )
    )
    config.optim.lr = 3e-3
    config.optim.b2 = 0.99
    config.optim.warmup_steps = 50
    config.ema.decay = 0.99
    config.train.num_steps = 400
    config.train.checkpoint_every = 200
    return common.apply_preset(config, arg, {"tiny": tiny})
