"""Small random Stable Diffusion models of diffusers, saved in the hub's own layout, as oracles."""

import json
from pathlib import Path

import diffusers
import numpy as np
import torch

diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()

VQ_SIZES = dict(
    block_out_channels=(8, 16),
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    layers_per_block=1,
    norm_num_groups=4,
    latent_channels=3,
    num_vq_embeddings=17,
    sample_size=16,
)


def randomised(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The model with every parameter random: norms and biases too, or swapped ones would not show."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def to_torch(x) -> torch.Tensor:
    """Channels last to channels first."""
    return torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)


def to_numpy(x: torch.Tensor) -> np.ndarray:
    """Channels first to channels last."""
    return x.detach().permute(0, 2, 3, 1).float().numpy()


def relative_error(ours, theirs: np.ndarray) -> float:
    """Largest difference relative to the largest value."""
    return float(np.abs(np.asarray(ours, np.float32) - theirs).max() / np.abs(theirs).max())


def config_of(folder: Path) -> dict:
    """The content of config.json."""
    return json.loads((folder / "config.json").read_text())


def assert_loads_exactly(original: torch.nn.Module, folder: Path) -> torch.nn.Module:
    """diffusers' model from a folder that we wrote, after checking that every tensor is as it was."""
    again, report = type(original).from_pretrained(folder, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    assert original.state_dict().keys() == again.state_dict().keys()
    for name, value in original.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    return again.eval()
