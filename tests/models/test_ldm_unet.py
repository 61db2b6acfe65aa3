"""Latent diffusion's U-Net, of Stable Diffusion's shape in other widths, against diffusers."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from configs import t2i
from contextdiff_jax import config as config_lib
from contextdiff_jax.errors import UserError
from contextdiff_jax.formats import pretrained
from contextdiff_jax.formats.diffusers_format import tensor_name
from contextdiff_jax.models import backbones
from contextdiff_jax.types import Context
from tests.diffusers_helpers import randomised, relative_error, to_torch


def config_of(**changes):
    """ImageNet's proportions: multipliers 1 2 3 5, attention where sides are halved once, twice and three times."""
    config = t2i.get_config()
    config.model.update(backbone="ldm", channels=32, multipliers=(1, 2, 3, 5), num_blocks=1, head_dim=16)
    config.model.cross_attention_levels = (1, 2, 3)
    config.update_from_flattened_dict(changes)
    return config


def test_output_equals_diffusers(tmp_path):
    theirs = randomised(
        diffusers.UNet2DConditionModel(
            in_channels=3,
            out_channels=3,
            block_out_channels=(32, 64, 96, 160),
            layers_per_block=1,
            down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 3,
            up_block_types=("CrossAttnUpBlock2D",) * 3 + ("UpBlock2D",),
            attention_head_dim=(2, 4, 6, 10),
            cross_attention_dim=12,
        )
    )
    theirs.save_pretrained(tmp_path)
    backbone = backbones.build(config_of(), jnp.float32)
    rng = np.random.default_rng(0)
    xt, tokens = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 8, 8, 3), (2, 4, 12)))
    context = Context(tokens=tokens, pooled=tokens[:, 0], mask=np.ones((2, 4), bool))
    expected = jax.eval_shape(backbone.init, jax.random.key(0), xt, jnp.zeros(2, jnp.int32), context)
    params = pretrained.read_params(tmp_path, expected, tensor_name)
    ours = jax.jit(backbone)(params, xt, jnp.array([1, 701]), context)
    with torch.no_grad():
        output = theirs(to_torch(xt), torch.tensor([0, 700]), torch.tensor(tokens)).sample
    assert relative_error(ours, output.permute(0, 2, 3, 1).numpy()) < 1e-4


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model.channels": 48}, "channels=48 must be a multiple of 32"),
        ({"model.head_dim": 24}, "head_dim=24 does not divide the 64 channels of level 1"),
        ({"model.cross_attention_levels": (4,)}, "names level 4; accepted: 0 to 3"),
        ({"model.dropout": 0.1}, "dropout=0.1 cannot act"),
        ({"model.multipliers": ()}, "multipliers="),
    ],
)
def test_sizes_that_cannot_work_are_named(changes, words):
    with pytest.raises(UserError, match=words):
        config_lib.check(config_of(**changes))
