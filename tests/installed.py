"""Installs the package with pip into a fresh environment and uses it there, outside the clone, as a user would.

    python tests/installed.py                                   # really: everything is downloaded, minutes
    python tests/installed.py --site_packages=.venv/lib/python3.11/site-packages     # what it needs is taken from there

Then: the command `contextdiff` trains a shipped recipe and draws; in Python pictures from a picture, with a negative
prompt, of 32 x 48 pixels; save and load; a LoRA that diffusers wrote, and its pictures with it.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = ["a frog on a purple background", "a red apple on a white background"]


def install(folder: Path, site_packages: str) -> Path:
    """Makes an environment with the package in it; returns its folder of programs."""
    venv.create(folder / "venv", with_pip=True)
    programs = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    # From a copy: the clone may hold builds of other versions, and is not to be written to.
    leave = shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "__pycache__", "tests", "docs")
    source = shutil.copytree(ROOT, folder / "source", ignore=leave)
    what, options = f"{source}[test]", []
    if site_packages:
        own = next((folder / "venv").glob("lib/python*/site-packages"))
        (own / "borrowed.pth").write_text(str(Path(site_packages).resolve()) + "\n")
        what, options = str(source), ["--no-deps"]
    pip = [programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *options, what], check=True)
    return programs


def use(folder: Path) -> None:
    """What a user does; run by the environment's own Python, in a folder of their own."""
    import contextdiff_jax as cdx

    assert Path(cdx.__file__).is_relative_to(folder / "venv"), cdx.__file__
    command = [str(Path(sys.executable).with_name("contextdiff")), "--config=t2i.py:tiny", "--workdir=run"]
    short = ["--config.train.num_steps=2", "--config.train.checkpoint_every=2", "--config.eval.num_samples=2"]
    for mode in (["--mode=train"], ["--mode=sample", f"--prompt={PROMPTS[0]}"]):
        subprocess.run([*command, *short, *mode], check=True)
    assert list(Path("run/samples").glob("*/0000.png")), "contextdiff --mode=sample drew nothing"
    draw(cdx.Pipeline.load("run"))
    exchange(cdx.Pipeline.load("builtin:demo"))
    print("installed, trained, drawn, saved, loaded, exchanged with diffusers")


def draw(pipe) -> None:
    """From a picture, away from a prompt, of another size; saved and loaded."""
    import numpy as np

    import contextdiff_jax as cdx

    plain = pipe.sample_arrays(PROMPTS, steps=2, guidance=3.0)
    away = pipe.sample_arrays(PROMPTS, steps=2, guidance=3.0, negative="a star on a red background")
    assert plain.shape == (2, 16, 16, 3) and np.any(plain != away)
    start = pipe.to_images(plain)[0]
    near = pipe.sample_arrays(PROMPTS[0], image=start, strength=0.5, steps=2)
    assert near.shape == (1, 16, 16, 3) and np.isfinite(near).all()
    assert pipe.sample(PROMPTS[0], size=(32, 48), steps=2)[0].size == (48, 32)
    pipe.save("saved")
    np.testing.assert_array_equal(cdx.Pipeline.load("saved").sample_arrays(PROMPTS, steps=2, guidance=3.0), plain)


def exchange(pipe) -> None:
    """The model that ships goes to diffusers, a LoRA comes back; weights equal, pictures to 1e-4."""
    import diffusers
    import jax
    import numpy as np
    import torch
    from peft import LoraConfig, get_peft_model_state_dict
    from transformers import CLIPTextModel, CLIPTokenizerFast

    from contextdiff_jax.encoders import ASSETS
    from contextdiff_jax.formats import diffusers_format

    pipe.save("demo")
    # Its text encoder ships with the package and is not in the export: the pipeline is put together of the parts.
    theirs = diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL.from_pretrained("demo/vae", torch_dtype=torch.float32),
        text_encoder=CLIPTextModel.from_pretrained(ASSETS / "clip_mini", dtype=torch.float32),
        tokenizer=CLIPTokenizerFast.from_pretrained(ASSETS / "clip_mini"),
        unet=diffusers.UNet2DConditionModel.from_pretrained("demo/unet", torch_dtype=torch.float32),
        scheduler=diffusers.DDIMScheduler.from_pretrained("demo/scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    torch.manual_seed(0)
    theirs.unet.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_v", "conv1"]))
    with torch.no_grad():
        for name, value in theirs.unet.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.02)
    layers = get_peft_model_state_dict(theirs.unet)
    theirs.save_lora_weights("lora", unet_lora_layers=layers, unet_lora_adapter_metadata={"lora_alpha": 4, "r": 2})
    theirs.fuse_lora()
    theirs.unload_lora_weights()
    pipe.load_lora("lora")
    state = theirs.unet.state_dict()
    for path, ours in jax.tree_util.tree_leaves_with_path(pipe.params["denoiser"]):
        value = state[diffusers_format.tensor_name("/".join(str(k.key) for k in path))].numpy()
        axes = (*range(2, value.ndim), 1, 0) if str(path[-1].key) == "kernel" else tuple(range(value.ndim))
        np.testing.assert_allclose(ours, value.transpose(axes), atol=2e-6, err_msg=jax.tree_util.keystr(path))
    ours = pipe.sample_arrays(PROMPTS, key=3, steps=4, guidance=3.0, sampler="ddim", adapter=False)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(3), i))(np.arange(len(PROMPTS)))
    noise = np.asarray(jax.vmap(lambda key: jax.random.normal(key, pipe.task.sample_shape))(keys))
    theirs.scheduler = diffusers.DDIMScheduler.from_config(theirs.scheduler.config)
    latents = torch.tensor(noise).permute(0, 3, 1, 2)
    how = dict(latents=latents, num_inference_steps=4, guidance_scale=3.0, output_type="np")
    difference = np.abs(ours - (theirs(PROMPTS, **how).images * 2 - 1)).max()
    assert difference < 1e-4, f"pictures differ by {difference}"


def main() -> None:
    """Installs, then lets the environment's Python go on with `--inside`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site_packages", default="", help="folder of packages to borrow instead of downloading")
    parser.add_argument("--inside", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != ROOT / "tests"]
        use(Path(args.inside))
        return
    with tempfile.TemporaryDirectory(prefix="installed-") as temporary:
        folder, start = Path(temporary).resolve(), time.monotonic()
        programs = install(folder, args.site_packages)
        print(f"installed in {time.monotonic() - start:.0f} s", flush=True)
        mine = folder / "mine"
        mine.mkdir()
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        command = [programs / "python", __file__, f"--inside={folder}"]
        subprocess.run(command, cwd=mine, env=environment, check=True)


if __name__ == "__main__":
    main()
