"""Every network takes classes and layouts: the training loss of each pair traces, its null condition included."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from configs import t2i
from contextdiff_jax import config as config_lib
from contextdiff_jax import task as task_lib
from contextdiff_jax.errors import UserError
from contextdiff_jax.models import backbones
from contextdiff_jax.types import Context

NETWORKS = {
    "unet": {},
    "vdm": {"model.num_blocks": 1},
    "ldm": {"model.channels": 32, "model.head_dim": 16},
}
CONDITIONS = {
    "class": {"condition.embedding": "resnet", "condition.depth": 1},
    "layout": {"data.preset": "demo_pairs", "condition.depth": 1, "condition.token_grid": 4},
}


def test_a_level_is_refused_where_no_network_embeds_it():
    context = Context(tokens=jnp.zeros((1, 1, 4)), pooled=None, mask=None, level=jnp.zeros(1))
    for backbone in (
        backbones.LatentBackbone((32,), 1, (), 16, jnp.float32, False),
        backbones.StableDiffusionBackbone(Path(), None),
    ):
        for call in (backbone.init, backbone):
            with pytest.raises(UserError, match="embeds no level of a condition"):
                call({}, jnp.zeros((1, 8, 8, 3)), jnp.ones(1, int), context)


@pytest.mark.parametrize("kind", CONDITIONS)
@pytest.mark.parametrize("network", NETWORKS)
def test_the_loss_traces(network, kind):
    config = t2i.get_config("tiny")
    config.adapter.enabled = False  # it sees the condition's tokens alone, whatever the network
    changes = {"model.backbone": network, "condition.kind": kind, "condition.width": 16, "data.batch_size": 2}
    config.update_from_flattened_dict(changes | NETWORKS[network] | CONDITIONS[kind])
    config_lib.check(config)
    task = task_lib.build(config)
    params = jax.eval_shape(task.init, jax.random.key(0))
    batch = jax.eval_shape(task.draw, task.batch_spec(), jax.random.key(0))
    loss, _ = jax.eval_shape(task.loss, params, task.frozen, batch, jax.random.key(0))
    assert loss.shape == (2,) and loss.dtype == jnp.float32
    assert params.keys() == {"condition", "denoiser"}
