"""Pictures to be measured, and a feature space for them that needs no network."""

import jax.numpy as jnp
import numpy as np

from contextdiff_jax.evaluate.feature_spaces import Described, FeatureSpace

SIDE = 8


def colours(is_fid: bool = False, **change) -> FeatureSpace:
    """A space of six features that needs no network: the mean colours of the two halves."""

    def run(params, images):
        x = images.astype(jnp.float32) / 255.0
        pooled = jnp.concatenate([x[:, : SIDE // 2].mean((1, 2)), x[:, SIDE // 2 :].mean((1, 2))], axis=-1)
        out = {"pooled": pooled}
        return (
            out | {"spatial": pooled[:, :2], "probabilities": jnp.exp(pooled) / jnp.exp(pooled).sum(1)[:, None]}
            if is_fid
            else out
        )

    described = dict(name="colours", digest="0123", resize="none", width=6, is_fid=is_fid) | change
    return FeatureSpace(Described(**described), run, {})


def pictures(n: int, seed: int, side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)
