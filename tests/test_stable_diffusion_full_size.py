"""A folder of Stable Diffusion 1.5's real shapes with random weights: read, sampled, exported; time and memory printed.

python -m pytest -m slow -s tests/test_stable_diffusion_full_size.py      # about 10 GB of disk and memory, minutes
"""

import os
import subprocess
import sys
import time

import diffusers
import pytest
import torch
import transformers

from docs import random_sd
from tests import stable_diffusion_helpers as helpers

SCRIPT = """
import resource, sys, time
import numpy as np
import contextdiff_jax as cdx
from contextdiff_jax.pipeline import export

gigabytes = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
folder, out = sys.argv[1:]
start = time.time()
def done(what):
    global start
    print(f"{what}: {time.time() - start:.0f} s, peak {gigabytes():.1f} GB", flush=True)
    start = time.time()
pipe = cdx.Pipeline.load(folder)
count = sum(leaf.size for leaf in __import__("jax").tree.leaves(pipe.params))
done(f"read {count / 1e6:.0f} M parameters")
images = pipe.sample_arrays(["a frog"], steps=2, guidance=7.5)
assert images.shape == (1, 512, 512, 3) and np.isfinite(images).all()
done("sampled 2 steps at 512 x 512, guided, compilation included")
export.write(pipe.task, pipe.params, 0, out)
done("exported")
"""


@pytest.mark.slow
def test_full_size_folder(tmp_path):
    folder = tmp_path / "sd15"
    start = time.time()
    parts = random_sd.UNET, random_sd.VAE, random_sd.TEXT
    helpers.save_pipeline(folder, *parts, max_length=77, randomise=False)
    print(f"\nwrote the folder: {time.time() - start:.0f} s")
    optimised = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # as users run it
    command = [sys.executable, "-c", SCRIPT, str(folder), str(tmp_path / "export")]
    subprocess.run(command, check=True, timeout=3000, env=optimised)
    ours, theirs = (
        diffusers.UNet2DConditionModel.from_pretrained(path / "unet").state_dict()
        for path in (tmp_path / "export", folder)
    )
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert transformers.CLIPTextModel.from_pretrained(tmp_path / "export" / "text_encoder").config.hidden_size == 768
