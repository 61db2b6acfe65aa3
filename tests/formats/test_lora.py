"""LoRA files of diffusers and PEFT: read, written and merged, against diffusers with its own PEFT backend."""

import json

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

import contextdiff_jax as cdx
from configs import t2i
from contextdiff_jax import task as task_lib
from contextdiff_jax.errors import UserError
from contextdiff_jax.formats import diffusers_format, lora
from contextdiff_jax.models import lora as low_rank
from contextdiff_jax.pipeline import export
from contextdiff_jax.training.state import initial_params
from tests import stable_diffusion_helpers as helpers
from tests.diffusers_helpers import relative_error

PROMPTS = ("a frog on a blue background", "a red apple on a white background")
TARGETS = ["to_q", "to_v", "to_out.0", "proj_in", "conv1"]  # dense layers, a 1x1 and a 3x3 convolution


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """(folder of a Stable Diffusion pipeline, of which every test loads its own)."""
    folder = tmp_path_factory.mktemp("lora") / "sd"
    helpers.save_pipeline(folder)
    return folder


def reference(folder):
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def random_lora(folder, to, alpha=6):
    """Writes a random LoRA with diffusers' own writer; returns the U-Net with it merged by PEFT."""
    pipe = reference(folder)
    torch.manual_seed(0)
    pipe.unet.add_adapter(LoraConfig(r=3, lora_alpha=alpha, target_modules=TARGETS))
    with torch.no_grad():
        for name, value in pipe.unet.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.05)
    state = get_peft_model_state_dict(pipe.unet)
    metadata = {"lora_alpha": alpha, "r": 3}
    pipe.save_lora_weights(to, unet_lora_layers=state, unet_lora_adapter_metadata=metadata)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    return pipe


def assert_unet(params, unet):
    state = unet.state_dict()
    for path, value in jax.tree_util.tree_leaves_with_path(params):
        name = diffusers_format.tensor_name("/".join(str(k.key) for k in path))
        theirs = state[name].numpy()
        axes = (*range(2, theirs.ndim), 1, 0) if str(path[-1].key) == "kernel" else tuple(range(theirs.ndim))
        np.testing.assert_allclose(value, theirs.transpose(axes), atol=2e-6, err_msg=name)


def test_a_lora_of_diffusers_gives_its_weights_and_pictures(pipeline, tmp_path):
    merged = random_lora(pipeline, tmp_path)
    pipe = cdx.Pipeline.load(pipeline)
    before = pipe.params["denoiser"]
    pipe.load_lora(tmp_path)
    assert_unet(pipe.params["denoiser"], merged.unet)
    ours = pipe.sample_arrays(PROMPTS, key=3, steps=3, guidance=4.0)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(3), i))(np.arange(2))
    noise = np.asarray(jax.vmap(lambda key: jax.random.normal(key, (8, 8, 4)))(keys))
    theirs = merged(
        list(PROMPTS),
        latents=torch.tensor(noise).permute(0, 3, 1, 2),
        num_inference_steps=3,
        guidance_scale=4.0,
        output_type="np",
    ).images
    assert relative_error(ours, theirs * 2 - 1) < 1e-4
    pipe.load_lora(tmp_path, weight=-1.0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), pipe.params["denoiser"], before)


def test_what_we_train_is_read_by_diffusers(pipeline, tmp_path):
    config = t2i.get_config("sd")
    config.model.pretrained, config.space.rgb, config.data.image_size = str(pipeline), "decode", 16
    config.adapter.depth, config.adapter.width, config.adapter.num_heads = 1, 16, 2
    config.train.trainable = ("^lora/", "^adapter/")
    config.train.lora.update(rank=2, scale=0.5, targets=(r"attn\d/(query|out)/kernel$", r"conv_1/kernel$"))
    task = task_lib.build(config)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    expected = jax.eval_shape(task.init, jax.random.key(0))
    params = initial_params(task, jax.tree.map(lambda _: place, expected), 0)
    draw = lambda value: value + 0.05 * np.random.default_rng(value.size).normal(size=value.shape).astype(np.float32)
    params["lora"] = jax.tree.map(draw, params["lora"])
    export.write(task, params, 1, tmp_path / "export")
    theirs = reference(pipeline)
    theirs.load_lora_weights(tmp_path / "export" / "lora")
    theirs.fuse_lora()
    theirs.unload_lora_weights()
    assert_unet(task.merged(params)["denoiser"], theirs.unet)
    assert_unet(cdx.Pipeline.load(tmp_path / "export").params["denoiser"], theirs.unet)
    back = cdx.Pipeline.load(pipeline)
    back.load_lora(tmp_path / "export" / "lora" / lora.FILE)
    assert_unet(back.params["denoiser"], theirs.unet)


def test_other_names_of_the_same_lora(pipeline, tmp_path):
    merged = random_lora(pipeline, tmp_path / "own", alpha=3)
    state = load_file(tmp_path / "own" / lora.FILE)

    def kohya(name):
        layer, end = name.removeprefix("unet.").split(".lora_")
        return f"lora_unet_{layer.replace('.', '_')}.lora_{'down' if end.startswith('A') else 'up'}.weight"

    ends = lambda a, b: lambda name: name.replace(".lora_A.weight", a).replace(".lora_B.weight", b)
    namings = {
        "older": ends(".lora.down.weight", ".lora.up.weight"),
        "kohya": kohya,
        "peft": lambda name: name.replace("unet.", "base_model.model."),
    }
    for naming, new in namings.items():
        folder = tmp_path / naming
        folder.mkdir()
        tensors = {new(name): value for name, value in state.items()}
        if naming == "kohya":  # twice the alpha, half the product
            tensors = {name: value / (2 if "lora_down" in name else 1) for name, value in tensors.items()}
            tensors |= {n.split(".")[0] + ".alpha": torch.tensor(6.0) for n in list(tensors)}
        if naming == "peft":
            (folder / lora.PEFT_CONFIG).write_text(json.dumps(dict(r=3, lora_alpha=3, use_dora=False)))
        save_file(tensors, folder / (lora.PEFT_FILE if naming == "peft" else lora.FILE))
        pipe = cdx.Pipeline.load(pipeline)
        pipe.load_lora(folder)
        assert_unet(pipe.params["denoiser"], merged.unet)


def test_a_lora_of_the_text_encoder(pipeline, tmp_path):
    pipe = cdx.Pipeline.load(pipeline)
    layer = "text_model.encoder.layers.1.self_attn.q_proj"
    a, b = torch.randn(2, 24), torch.randn(24, 2)
    save_file(
        {f"text_encoder.{layer}.lora_A.weight": a, f"text_encoder.{layer}.lora_B.weight": b}, tmp_path / lora.FILE
    )
    find = lambda: pipe.frozen["condition"]["text_model"]["layers_1"]["self_attn"]["q_proj"]["kernel"]
    before = np.asarray(find())
    pipe.load_lora(tmp_path, weight=0.5)
    np.testing.assert_allclose(find() - before, 0.5 * (b @ a).T.numpy(), atol=1e-5)
    with pytest.raises(UserError, match="changed the text encoder"):
        pipe.save(tmp_path / "export")
    pipe.load_lora(tmp_path / lora.FILE, weight=-0.5)
    pipe.load_lora(tmp_path, weight=0)
    # A file that does not fit in one of its parts changes nothing, and the type of the weights stays.
    unet = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    fits = {f"{unet}.lora_A.weight": torch.ones(1, 32), f"{unet}.lora_B.weight": torch.ones(32, 1)}
    text = {f"text_encoder.{layer}.lora_A.weight": a[:, :9].contiguous(), f"text_encoder.{layer}.lora_B.weight": b}
    save_file(fits | text, tmp_path / "torn.safetensors")
    params = pipe.params
    with pytest.raises(UserError, match="the LoRA changes text_model"):
        pipe.load_lora(tmp_path / "torn.safetensors")
    assert pipe.params is params
    change = lora.Change(np.ones((1, 4), np.float32), np.ones((4, 1), np.float32), 1.0)
    half = lora.add({"a": {"kernel": jnp.zeros((4, 4), jnp.bfloat16)}}, {"a": change}, 0.5)["a"]["kernel"]
    assert half.dtype == jnp.bfloat16 and np.all(half == 0.5)
    np.testing.assert_allclose(find(), before, atol=1e-6)
    pipe.save(tmp_path / "export")
    with pytest.raises(UserError, match="weight='1' is no number"):
        pipe.load_lora(tmp_path, weight="1")


def test_files_that_do_not_fit_are_named(pipeline, tmp_path):
    pipe = cdx.Pipeline.load(pipeline)
    good = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    cases = {
        "foreign": ({"unet.nowhere.lora_A.weight": torch.zeros(1, 2)}, {}, "does not fit this model: unet.nowhere"),
        "half": ({f"{good}.lora_A.weight": torch.zeros(1, 32)}, {}, "does not fit this model"),
        "wide": (
            {f"{good}.lora_A.weight": torch.zeros(1, 9), f"{good}.lora_B.weight": torch.zeros(32, 1)},
            {},
            r"\(9, 32\), but the model has \(32, 32\)",
        ),
        "dora": (
            {f"{good}.lora_A.weight": torch.zeros(1, 32), f"{good}.lora_B.weight": torch.zeros(32, 1)},
            {"lora_adapter_metadata": json.dumps({"unet.use_dora": True})},
            "use_dora=True",
        ),
    }
    fine = {f"{good}.lora_A.weight": torch.zeros(2, 32), f"{good}.lora_B.weight": torch.zeros(32, 2)}
    said = lambda text: {"lora_adapter_metadata": text}
    cases |= {
        "no JSON": (fine, said("{"), "lora_adapter_metadata that is no JSON"),
        "a list": (fine, said("[1]"), "lora_adapter_metadata that is no object"),
        "words": (fine, said(json.dumps({"unet.lora_alpha": "six"})), "unet='six' .*a number"),
        "ranks": (fine | {f"{good}.lora_B.weight": torch.zeros(32, 3)}, {}, r"down \(2, 32\), up \(32, 3\)"),
        "flat": (fine | {f"{good}.lora_A.weight": torch.zeros(2)}, {}, "do not fit one another"),
        "alphas": (fine | {f"{good}.alpha": torch.zeros(3)}, {}, "do not fit one another"),
    }
    for name, (tensors, metadata, words) in cases.items():
        file = tmp_path / f"{name}.safetensors"
        save_file(tensors, file, metadata=metadata)
        with pytest.raises(UserError, match=words):
            pipe.load_lora(file)
    with pytest.raises(UserError, match="no LoRA"):
        pipe.load_lora(tmp_path / "nowhere")
    with pytest.raises(UserError, match="'nowhere' matches no kernel"):
        low_rank.targets(pipe.params["denoiser"], ("nowhere",))
