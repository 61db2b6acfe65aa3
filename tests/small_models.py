"""The text-to-image model that most tests share, so that its programs are compiled once for all of them."""

from ml_collections import ConfigDict

from configs import t2i


def text_to_image() -> ConfigDict:
    """The tiny preset with one level, which is half as much to compile, and four pictures at once."""
    config = t2i.get_config("tiny")
    config.model.multipliers = (1,)
    config.model.self_attention_levels = config.model.cross_attention_levels = (0,)
    config.sample.batch_size = 4
    return config
