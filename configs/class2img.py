"""Class to image (paper, section 4.3, Table 3): the text encoder replaced by residual blocks that embed the class.

    python -m contextdiff_jax.main --config=configs/class2img.py            # 12 drawn objects, 32 x 32, CPU, minutes
    python -m contextdiff_jax.main --config=configs/class2img.py:tiny       # seconds: for tests
    python -m contextdiff_jax.main --config=configs/class2img.py:folder --config.data.path=DIR   # a subfolder a class
    python -m contextdiff_jax.main --config=configs/class2img.py --mode=sample --prompt=frog --prompt=3
"""

from ml_collections import ConfigDict

from configs import t2i
from configs.common import apply_preset


def get_config(preset: str | None = None) -> ConfigDict:
    """The drawn objects, or the preset named after the colon."""
    config = t2i.get_config()
    config.condition.kind = "class"
    config.condition.embedding = "resnet"
    config.data.preset = "demo_objects"
    config.eval.after_training = True
    config.train.num_steps = 700
    return apply_preset(config, preset, {"tiny": tiny, "folder": folder})


def tiny(config: ConfigDict) -> None:
    """The smallest run that uses every part."""
    t2i.tiny(config)
    config.condition.width = 16
    config.condition.depth = 1


def folder(config: ConfigDict) -> None:
    """Pictures in one subfolder for each class."""
    t2i.folder(config)
    config.condition.kind = "class"
    config.data.labels = "subfolders"
