"""The full-size random models of docs/random_sd.py, made small: folders that this library reads."""

import jax
import jax.numpy as jnp
import pytest

from contextdiff_jax.encoders import load_clip, vq
from contextdiff_jax.models.sd_unet import load_sd_unet
from docs import random_sd
from tests import stable_diffusion_helpers as helpers


@pytest.mark.slow
def test_what_is_written_is_read(tmp_path, monkeypatch):
    for name in ("UNET", "VAE"):
        monkeypatch.setattr(random_sd, name, getattr(helpers, name))
    monkeypatch.setattr(random_sd, "TEXT", helpers.TEXT | dict(vocab_size=49408))
    random_sd.save(tmp_path)
    _, params = load_sd_unet(tmp_path / "sd15" / "unet")
    assert sum(v.size for v in jax.tree.leaves(params)) > 10_000
    assert load_clip(tmp_path / "clip") is not None
    assert vq.load(tmp_path / "vq", jnp.float32, weights=False) is not None
