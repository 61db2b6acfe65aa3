"""Our Stable Diffusion U-Net against diffusers' PyTorch on the same weights: forward, and forward with backward.

    python tests/models/bench_sd_unet.py                                        # a small shape, CPU, float32
    python tests/models/bench_sd_unet.py --device=gpu --dtype=bfloat16 --shape=sd15 --batch=8

All variants take turns in every round, so that a machine whose speed drifts favours none; a ratio is ours / theirs,
its median over the rounds and its range. In bfloat16 the forward pass has bfloat16 weights in both libraries, and
training keeps float32 weights and computes in bfloat16 (autocast in PyTorch). PyTorch's compiler needs a C++ compiler
on a CPU.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch wants some of the GPU's memory too
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import diffusers  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from diffusers_helpers import randomised, relative_error, to_numpy, to_torch  # noqa: E402

from contextdiff_jax.models.sd_unet import load_sd_unet  # noqa: E402

SHAPES = {
    "small": dict(
        block_out_channels=(64, 128, 256),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=256,
    ),
    "sd15": dict(cross_attention_dim=768),
    "sd21": dict(cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20], use_linear_projection=True),
}
SIDES = {"small": 32, "sd15": 64, "sd21": 96}


def ours(folder: Path, dtype: str, xt: np.ndarray, t: np.ndarray, tokens: np.ndarray) -> dict[str, Callable]:
    """Functions that run once and wait: the output, or the gradient of its mean square."""
    net, params = load_sd_unet(folder, jnp.dtype(dtype))
    args = jax.device_put((xt, t, tokens))
    weights = jax.device_put(jax.tree.map(lambda v: v.astype(dtype), params))
    params = jax.device_put(params)
    apply = lambda params, args: net.apply({"params": params}, *args)
    forward = jax.jit(apply)
    backward = jax.jit(jax.grad(lambda params, args: jnp.mean(apply(params, args) ** 2)))
    return {
        "forward": lambda: jax.block_until_ready(forward(weights, args)),
        "forward+backward": lambda: jax.block_until_ready(backward(params, args)),
    }


def theirs(
    folder: Path, dtype: str, device: str, compiled: bool, xt: np.ndarray, t: np.ndarray, tokens: np.ndarray
) -> dict[str, Callable]:
    """The same with PyTorch, eager or compiled."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    load = lambda dtype: diffusers.UNet2DConditionModel.from_pretrained(folder, torch_dtype=dtype).to(device)
    layout = torch.channels_last if device == "cuda" else torch.contiguous_format
    wrap = torch.compile if compiled else lambda model: model
    half = getattr(torch, dtype)
    trained = load(torch.float32).to(memory_format=layout)
    sampled = load(half).to(memory_format=layout).eval()
    train, sample = wrap(trained), wrap(sampled)
    x, times, text = to_torch(xt).to(device), torch.tensor(t).to(device), torch.tensor(tokens).to(device)
    x = x.to(memory_format=layout)
    x_half, text_half = x.to(half), text.to(half)

    def forward() -> torch.Tensor:
        with torch.no_grad():
            out = sample(x_half, times, text_half).sample
        wait()
        return out

    def backward() -> None:
        trained.zero_grad(set_to_none=True)
        with torch.autocast(device, half, enabled=half != torch.float32):
            out = train(x, times, text).sample
        (out.float() ** 2).mean().backward()
        wait()

    @torch.no_grad()
    def exact() -> np.ndarray:
        return to_numpy(trained(x, times, text).sample.cpu())

    return {"forward": forward, "forward+backward": backward, "exact": exact}


def timed(run: Callable, steps: int) -> float:
    """Milliseconds per call."""
    start = time.perf_counter()
    for _ in range(steps):
        run()
    return 1e3 * (time.perf_counter() - start) / steps


def report(name: str, times: dict[str, list[float]]) -> None:
    """Prints the medians and, for the others, our time over theirs."""
    spread = lambda v, digits: f"{np.median(v):.{digits}f} ({min(v):.{digits}f} to {max(v):.{digits}f})"
    print(f"\n| {name} | ms (range) | ours / theirs (range) |\n|-|-|-|")
    for variant, values in times.items():
        ratios = np.array(times["ours"]) / np.array(values)
        print(f"| {variant} | {spread(values, 1)} | {'' if variant == 'ours' else spread(ratios, 2)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--side", type=int, help="of the latents; default by shape")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=77)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=3, help="calls per round")
    parser.add_argument("--no_compile", action="store_true", help="leave torch.compile out")
    args = parser.parse_args()
    if args.device == "cpu":
        jax.config.update("jax_platforms", "cpu")
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    device = "cuda" if args.device == "gpu" else "cpu"
    side = args.side or SIDES[args.shape]
    rng = np.random.default_rng(0)
    model = randomised(diffusers.UNet2DConditionModel(**SHAPES[args.shape]))
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    data = (
        normal(args.batch, side, side, 4),
        rng.integers(0, 1000, args.batch),
        normal(args.batch, args.tokens, model.config.cross_attention_dim),
    )
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        print(f"{args.shape}: {millions:.0f} M parameters, latents {args.batch} x {side} x {side}, {args.dtype}")
        print(f"on {jax.devices()[0].device_kind}, jax {jax.__version__}, torch {torch.__version__}")
        variants = {"ours": ours(Path(folder), args.dtype, *data)}
        for name in ("PyTorch", "PyTorch, compiled")[: 1 if args.no_compile else 2]:
            variants[name] = theirs(Path(folder), args.dtype, device, name != "PyTorch", *data)
    expected = variants["PyTorch"]["exact"]()
    for name in ("ours", "PyTorch"):
        found = variants[name]["forward"]()
        found = to_numpy(found.float().cpu()) if name == "PyTorch" else found
        print(f"{name}: {relative_error(found, expected):.1e} of the largest value off PyTorch in float32")
    for what in ("forward", "forward+backward"):
        for name, variant in variants.items():
            print(f"{name}, {what}: ready after {2e-3 * timed(variant[what], 2):.0f} s", flush=True)  # compiles
        times = {name: [] for name in variants}
        for _ in range(args.rounds):
            for name, variant in variants.items():
                times[name].append(timed(variant[what], args.steps))
        report(what, times)


if __name__ == "__main__":
    main()
