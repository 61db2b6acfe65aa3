"""Layout to image (paper, section 4.3, Table 4): classes in boxes, as soft maps through residual stages to tokens.

    python -m contextdiff_jax.main --config=configs/layout2img.py           # two drawn objects, 32 x 32, CPU, minutes
    python -m contextdiff_jax.main --config=configs/layout2img.py:tiny      # seconds: for tests
    python -m contextdiff_jax.main --config=configs/layout2img.py --mode=sample --layout=layout.json

where layout.json holds one or several layouts, the corners of each box as fractions of the sides:

    [["frog", [0.05, 0.3, 0.45, 0.7]], ["red apple", [0.55, 0.3, 0.95, 0.7]]]
"""

from ml_collections import ConfigDict

from configs import t2i
from configs.common import apply_preset


def get_config(preset: str | None = None) -> ConfigDict:
    """Pairs of the demo's objects, or the preset named after the colon."""
    config = t2i.get_config()
    config.condition.kind = "layout"
    config.data.preset = "demo_pairs"
    config.eval.after_training = True
    config.train.num_steps = 800
    return apply_preset(config, preset, {"tiny": tiny})


def tiny(config: ConfigDict) -> None:
    """The smallest run that uses every part."""
    t2i.tiny(config)
    config.condition.width = 16
    config.condition.depth = 1
    config.condition.token_grid = 4
    config.condition.map_channels = 4
