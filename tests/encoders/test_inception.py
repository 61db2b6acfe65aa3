"""FID's Inception against torch-fidelity's, with random weights saved and read back; each classic mistake must show."""

import hashlib
import re
from unittest import mock

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
from fidelity_helpers import feature_extractor_inceptionv3, interpolate_bilinear_2d_like_tensorflow1x

from contextdiff_jax.encoders import inception
from contextdiff_jax.errors import UserError

LAYERS = ["2048", "logits_unbiased"]


def random_extractor() -> torch.nn.Module:
    """torch-fidelity's network, its statistics random too and such that activations stay of order one."""
    torch.manual_seed(0)
    theirs = feature_extractor_inceptionv3.FeatureExtractorInceptionV3
    with (
        mock.patch.object(feature_extractor_inceptionv3, "load_state_dict_from_url", return_value={}),
        mock.patch.object(theirs, "load_state_dict"),
    ):
        model = theirs("random", LAYERS, verbose=False)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("conv.weight"):
                value.normal_(std=(2 / value[0].numel()) ** 0.5)
            elif name.endswith(("bn.weight", "running_var")):
                value.uniform_(0.8, 1.25)
            elif value.is_floating_point():
                value.normal_(std=0.1)
    return model


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Pictures, torch-fidelity's features of them, and our network read from a file."""
    model = random_extractor()
    path = tmp_path_factory.mktemp("inception") / "inception.safetensors"
    safetensors.torch.save_file(model.state_dict(), path)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 44, 3), dtype=np.uint8)
    seen = []
    model.Mixed_6d.branch1x1.register_forward_hook(lambda module, x, out: seen.append(out.numpy()))
    with torch.no_grad():
        theirs = [h.numpy() for h in model(torch.tensor(images.transpose(0, 3, 1, 2)))]
    spatial = seen[0][:, :7].transpose(0, 2, 3, 1).reshape(2, 17 * 17 * 7)
    return images, [*theirs, spatial], inception.load_inception(path)


def error(ours, theirs) -> float:
    """Largest difference relative to the largest value."""
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def wrong_resize(antialias: bool):
    """Half-pixel centres; with or without antialias (the picture is then shrunk, or that would change nothing)."""
    return lambda images: jax.image.resize(
        images.astype(np.float32), (len(images), inception.SIZE, inception.SIZE, 3), "linear", antialias=antialias
    )


def test_features_and_logits_are_torch_fidelitys(both):
    images, (pooled, logits, spatial), model = both
    run = jax.jit(model.encode_image)
    # Resized before: a picture of 299 x 299 is left as it is, and the wrong resize needs no other program.
    ours = run(model.params, inception.resize_tf1(images.astype(np.float32), 299))
    assert error(ours.pooled, pooled) < 1e-4
    assert error(ours.logits, logits) < 1e-4
    assert error(ours.spatial, spatial) < 1e-4
    assert error(run(model.params, wrong_resize(False)(images)).pooled, pooled) > 1e-3


@pytest.mark.parametrize("name", ["average_pool", "max_pool"])
def test_a_wrong_pool_fails(both, monkeypatch, name):
    images, (pooled, logits, _), model = both
    padded = lambda x: inception.nn.avg_pool(x, (3, 3), strides=(1, 1), padding="SAME", count_include_pad=True)
    monkeypatch.setattr(inception, name, padded if name == "average_pool" else inception.average_pool)
    ours = jax.jit(lambda params, x: model.encode_image(params, x))(model.params, images)
    assert error(ours.pooled, pooled) > 1e-3
    assert error(ours.logits, logits) > 1e-3


def test_resize_is_tensorflows_and_neither_half_pixel_nor_antialiased():
    images = np.random.default_rng(0).integers(0, 256, (1, 330, 410, 3), dtype=np.uint8)
    channels_first = torch.tensor(images.transpose(0, 3, 1, 2)).float()
    theirs = interpolate_bilinear_2d_like_tensorflow1x(channels_first, size=(299, 299), align_corners=False)
    theirs = theirs.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(inception.resize_tf1(images.astype(np.float32), 299), theirs, atol=1e-3)
    for antialias in (False, True):
        assert np.abs(wrong_resize(antialias)(images) - theirs).max() > 10.0


def test_the_documented_line_converts_and_says_of_what(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"x": torch.ones(1)}, "pt_inception-2015-12-05-6726825d.pth")
    exec(re.search('python -c "(.*?)"\n', inception.__doc__, re.DOTALL)[1], {})
    sha = hashlib.sha256((tmp_path / "pt_inception-2015-12-05-6726825d.pth").read_bytes()).hexdigest()
    assert f"(SHA-256 {sha[:8]})" in inception.not_the_original(tmp_path / "inception-2015-12-05.safetensors")


def test_only_the_release_counts_as_fids(tmp_path):
    for sha, words in (("6726825d0af5f", ""), (None, "does not say of which release"), ("0123456789", "another file")):
        path = tmp_path / f"{sha}.safetensors"
        safetensors.torch.save_file({"x": torch.zeros(1)}, path, None if sha is None else {"sha256": sha})
        why = inception.not_the_original(path)
        assert (words in why and "convert pt_inception" in why) if words else why == ""


def test_foreign_weights_are_named(tmp_path):
    with pytest.raises(UserError, match="do not exist; convert pt_inception"):
        inception.load_inception(tmp_path / "none.safetensors")
    safetensors.torch.save_file({"fc.weight": torch.zeros(1000, 2048)}, tmp_path / "torchvision.safetensors")
    with pytest.raises(UserError, match=r"missing: .*wrong shape: fc.weight expected \(2048, 1008\)"):
        inception.load_inception(tmp_path / "torchvision.safetensors")
