"""ControlNet against diffusers' ControlNetModel."""

import diffusers
import jax
import numpy as np
import pytest
import torch
from diffusers_helpers import randomised, relative_error, to_numpy, to_torch

from contextdiff_jax.errors import UserError
from contextdiff_jax.models.controlnet import load_controlnet

SIZES = dict(
    in_channels=4,
    block_out_channels=(8, 16),
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    layers_per_block=1,
    attention_head_dim=2,
    cross_attention_dim=6,
    norm_num_groups=4,
    conditioning_embedding_out_channels=(4, 8),
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("controlnet")
    model = randomised(diffusers.ControlNetModel(**SIZES), seed=0)
    model.save_pretrained(folder)
    return folder, model.eval()


def test_what_it_adds_equals_pytorch(saved):
    folder, model = saved
    net, params = load_controlnet(folder)
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    xt, t, tokens, picture = draw(2, 4, 6, 4), np.array([3, 600]), draw(2, 5, 6), draw(2, 8, 12, 3)
    with torch.no_grad():
        theirs = model(to_torch(xt), torch.tensor(t), torch.tensor(tokens), to_torch(picture))
    ours = jax.jit(net.apply)({"params": params}, xt, t, tokens, picture)
    expected = [*theirs.down_block_res_samples, theirs.mid_block_res_sample]
    assert len(ours) == len(expected)
    for mine, other in zip(ours, expected, strict=True):
        assert relative_error(mine, to_numpy(other)) < 1e-5
    with pytest.raises(UserError, match="control picture of 4 x 12 does not fit.*2 times as large"):
        jax.eval_shape(net.apply, {"params": params}, xt, t, tokens, picture[:, :4])
    with pytest.raises(UserError, match="takes cross_attention_dim=6, but this Stable Diffusion has 5"):
        jax.eval_shape(net.apply, {"params": params}, xt, t, tokens[..., :5], picture)
    with pytest.raises(UserError, match="takes in_channels=4, but this Stable Diffusion has 3"):
        jax.eval_shape(net.apply, {"params": params}, xt[..., :3], t, tokens, picture)


def test_a_folder_may_begin_at_home(saved, monkeypatch):
    monkeypatch.setenv("HOME", str(saved[0].parent))
    assert load_controlnet(f"~/{saved[0].name}", weights=False)[0].config.cross_attention_dim == 6


def test_another_model_s_folder_is_refused(saved, tmp_path):
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    with pytest.raises(UserError, match="describes a UNet2DConditionModel.*class ControlNetModel"):
        load_controlnet(tmp_path)
