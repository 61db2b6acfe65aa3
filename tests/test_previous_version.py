"""Runs, exports and checkpoints of the version before still load; what is frozen is recorded at the first load."""

import importlib
import json
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import contextdiff_jax as cdx
from contextdiff_jax import config as config_lib
from contextdiff_jax import task as task_lib
from contextdiff_jax import trees
from contextdiff_jax.errors import UserError
from contextdiff_jax.tasks import identity
from contextdiff_jax.training import Setup
from contextdiff_jax.training.checkpoint import Checkpoints
from tests import stored_helpers


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return stored_helpers.unpack(tmp_path_factory.mktemp("previous"))


def test_an_export_draws_what_it_drew(stored):
    pipe = cdx.Pipeline.load(stored / "export")
    assert pipe.step == 4 and (stored / "export" / identity.FILE).is_file()
    ours = pipe.sample_arrays(["a frog on a red background"], key=0)
    np.testing.assert_allclose(ours, np.load(stored / "pictures.npy").astype(np.float32), atol=2e-3)


def test_a_run_loads_and_its_trained_parameters_are_the_export_s(stored):
    run, export = cdx.Pipeline.load(stored / "run"), cdx.Pipeline.load(stored / "export")
    trained, _ = trees.split(run.params, run.config.train.trainable)
    assert {name.split("/")[0] for name in trees.names(trained)} == {"adapter", "denoiser"}
    jax.tree.map(np.testing.assert_array_equal, trained, trees.split(export.params, run.config.train.trainable)[0])


def test_a_checkpoint_is_continued(stored, tmp_path):
    run = shutil.copytree(stored / "run", tmp_path / "run")
    config = config_lib.complete(ConfigDict(json.loads((run / "config.json").read_text())))
    setup = Setup.of(task_lib.build(config))
    checkpoints = Checkpoints(run, config)
    state = checkpoints.restore(setup.abstract, setup.train_iterator())
    checkpoints.close()
    assert int(state.step) == 4


def test_another_frozen_network_is_refused_with_both_named(stored, tmp_path):
    run = shutil.copytree(stored / "run", tmp_path / "run")
    cdx.Pipeline.load(run)
    recorded = json.loads((run / identity.FILE).read_text())
    found = recorded["encoder.clip"]
    assert found["path"].endswith("clip_mini") and len(found["digest"]) == 16
    assert found["settings"]["text.hidden_act"] == "quick_gelu" and "tokenizer.json" in found["settings"]
    cdx.Pipeline.load(run)
    recorded["encoder.clip"] = dict(path="elsewhere", digest="0123456789abcdef", stamp="")
    (run / identity.FILE).write_text(json.dumps(recorded))
    found = found["digest"]
    words = f"encoder.clip of elsewhere .digest 0123456789abcdef., but .*clip_mini holds another .digest {found}"
    with pytest.raises(UserError, match=words):
        cdx.Pipeline.load(run)


@pytest.mark.parametrize("name", ["tokenizers", "pretrained"])
def test_modules_that_moved_are_found_in_their_earlier_place(name):
    with pytest.warns(DeprecationWarning, match=f"import contextdiff_jax.formats.{name}"):
        earlier = importlib.reload(importlib.import_module(f"contextdiff_jax.encoders.{name}"))
    now = importlib.import_module(f"contextdiff_jax.formats.{name}")
    assert earlier.__all__ and all(getattr(earlier, each) is getattr(now, each) for each in earlier.__all__)
