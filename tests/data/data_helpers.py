"""What the tests of the data share."""

import numpy as np
from ml_collections import ConfigDict


def config(**changes) -> ConfigDict:
    """The `data` section of a config, small."""
    section = ConfigDict(
        dict(
            source="openmoji",
            preset="demo",
            path="",
            labels="none",
            class_names=(),
            class_words="",
            image_size=16,
            seed=0,
            horizontal_flip=False,
            random_crop=0.0,
            max_bad_fraction=0.01,
            num_threads=2,
            prefetch=2,
        )
    )
    section.update(changes)
    return section


def from_records(records: list[dict]) -> dict[str, np.ndarray]:
    """A stand-in condition: the first eight characters of the caption."""
    tokens = np.array([[ord(c) for c in record["caption"][:8].ljust(8)] for record in records], np.int32)
    return {"tokens": tokens.reshape(-1, 8), "token_mask": np.ones((len(records), 8), bool)}
