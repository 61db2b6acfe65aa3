"""configs/t2i.py:sd on a tiny Stable Diffusion folder: encode, train, resume, sample, export, reload, img2img."""

import json

import diffusers
import jax
import numpy as np
import pytest
import torch
from diffusers_helpers import relative_error
from PIL import Image

import contextdiff_jax as cdx
from configs import t2i
from contextdiff_jax import command_line
from contextdiff_jax import task as task_lib
from contextdiff_jax.errors import UserError
from contextdiff_jax.pipeline import export, loading
from contextdiff_jax.samplers import sampling
from tests import stable_diffusion_helpers as helpers

PROMPTS = ("a frog on a blue background", "a red apple on a white background")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The pretrained pipeline's folder, the pipeline itself, and a folder of pictures."""
    root = tmp_path_factory.mktemp("sd")
    pipeline = helpers.save_pipeline(root / "tiny-sd")
    helpers.save_pictures(root / "pictures")
    return root, pipeline


def config_of(root):
    config = t2i.get_config("sd")
    config.model.pretrained = str(root / "tiny-sd")
    config.data.path = str(root / "pictures")
    config.data.image_size = 16
    config.space.latents = str(root / "latents")
    config.adapter.depth, config.adapter.width, config.adapter.num_heads = 1, 16, 2
    config.train.update(num_steps=20, checkpoint_every=10, log_every=1, preview_every=0)
    config.optim.lr, config.optim.warmup_steps = 1e-3, 1
    config.sample.num_steps = 5
    return config


def run(mode, config, workdir, **options):
    command_line.run(mode, config, command_line.Options(workdir=str(workdir), **options))


@pytest.fixture(scope="module")
def trained(folder):
    """Encoded, trained 20 steps in two halves."""
    root, _ = folder
    config, workdir = config_of(root), root / "run"
    run("encode", config, workdir)
    config.train.num_steps = 10
    run("train", config, workdir)
    config.train.num_steps = 20
    command_line.run("train", config, command_line.Options(workdir=str(workdir), allow_config_change=True))
    return config, workdir


@pytest.fixture(scope="module")
def loaded(trained):
    """The last parameters, which have moved most."""
    return cdx.Pipeline.load(trained[1], ema=False)


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "export"
    run("export", *trained, out=str(out))
    return out


def test_a_folder_as_it_is_draws_what_diffusers_draws(folder):
    """The whole path: tokenizer, text encoder, guidance, scheduler, U-Net, autoencoder, from the same noise."""
    root, reference = folder
    pipe = cdx.Pipeline.load(root / "tiny-sd")
    assert pipe.task.sample_shape == (8, 8, 4)
    for sampler, scheduler in {
        "ddim": diffusers.DDIMScheduler,
        "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
    }.items():
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(3), i))(np.arange(2))
        noise = np.asarray(jax.vmap(lambda key: jax.random.normal(key, (8, 8, 4)))(keys))
        given = {"ddim": dict(key=3), "dpmpp_2m": dict(noise=noise)}[sampler]  # drawn here and given, each once
        ours = pipe.sample_arrays(PROMPTS, steps=7, guidance=4.0, sampler=sampler, **given)
        reference.scheduler = scheduler.from_config(reference.scheduler.config)
        theirs = reference(
            list(PROMPTS),
            latents=torch.tensor(noise).permute(0, 3, 1, 2),
            num_inference_steps=7,
            guidance_scale=4.0,
            output_type="np",
        ).images
        assert relative_error(ours, theirs * 2 - 1) < 1e-4, sampler


def test_encoding_stores_latents_a_colour_map_and_a_picture_and_continues(trained, folder, capsys):
    config, _ = trained
    latents = folder[0] / "latents"
    contents = json.loads((latents / "latents.json").read_text())
    assert contents["shape"] == [8, 8, 8] and contents["splits"]["train"] + contents["splits"].get("val", 0) == 40
    assert Image.open(latents / "reconstructions.png").width > 100
    shard = latents / "train" / "00000.array_record"
    before = shard.read_bytes()
    (latents / "val" / "00000.array_record").unlink()
    run("encode", config, folder[0] / "run")
    assert shard.read_bytes() == before and (latents / "val" / "00000.array_record").is_file()
    other = config_of(folder[0])
    other.data.image_size = 32
    with pytest.raises(UserError, match="image_size: there 16, now 32"):
        run("encode", other, folder[0] / "run")


def test_stored_latents_are_the_autoencoder_s(trained, folder):
    _, reference = folder
    source = cdx.Pipeline.load(trained[1]).task.parts
    from contextdiff_jax.tasks.records import source as records_of

    records = records_of(trained[0], source, "train")
    images = helpers.data.source(trained[0].data, "train")
    image = torch.tensor(images[3]["image"] / 127.5 - 1.0, dtype=torch.float32).permute(2, 0, 1)[None]
    posterior = reference.vae.encode(image).latent_dist
    expected = (
        torch.cat([posterior.mean, posterior.std], dim=1)[0].permute(1, 2, 0) * reference.vae.config.scaling_factor
    )
    assert relative_error(records[3]["latent"], expected.detach().numpy()) < 2e-3  # stored in float16
    assert records[3]["caption"] == images[3]["caption"]


def test_only_the_subset_is_trained_and_resuming_continues(trained, loaded):
    config, workdir = trained
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 21))
    pipe, start = loaded, cdx.Pipeline.load(config.model.pretrained)
    moved = {
        "/".join(str(k.key) for k in path): bool(np.any(np.asarray(a) != np.asarray(b)))
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(pipe.params["denoiser"]),
            jax.tree.leaves(start.params["denoiser"]),
            strict=True,
        )
    }
    assert all(moved[name] == ("/attn2/" in f"/{name}") for name in moved) and any(moved.values())
    assert any(np.asarray(leaf).any() for leaf in jax.tree.leaves(pipe.params["adapter"]["out"])), "adapter moved"


def test_export_loads_in_diffusers_and_here(trained, exported):
    (config, workdir), out = trained, exported
    card = (out / "README.md").read_text()
    assert card.startswith("---") and "base_model" not in card, "a folder is no name on the hub"
    assert "diffusers loads it unchanged, and draws without the adapter" in card
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(out)
    again = cdx.Pipeline.load(out)
    ours = cdx.Pipeline.load(workdir)
    xt = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype(np.float32)
    tokens = np.random.default_rng(1).normal(size=(2, 16, 24)).astype(np.float32)
    with torch.no_grad():
        expected = theirs.unet(torch.tensor(xt).permute(0, 3, 1, 2), 500, torch.tensor(tokens)).sample
    from contextdiff_jax.types import Context

    context = Context(tokens=tokens, pooled=tokens[:, 0], mask=np.ones((2, 16), bool))
    got = jax.jit(ours.task.backbone)(ours.params["denoiser"], xt, np.full(2, 501), context)
    assert relative_error(got, expected.permute(0, 2, 3, 1).numpy()) < 1e-4
    assert again.config.space.latents == str(out) and again.task.parts.space.params["rgb"]
    jax.tree.map(np.testing.assert_array_equal, ours.params, again.params)
    jax.tree.map(np.testing.assert_array_equal, ours.frozen, again.frozen)
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore((out / "orbax").absolute())
    np.testing.assert_array_equal(
        restored["adapter"]["out"]["kernel"], np.asarray(ours.params["adapter"]["out"]["kernel"])
    )
    with pytest.raises(UserError, match="no export"):
        run("export", config, workdir, out=str(workdir))


@pytest.mark.parametrize(
    "changes, scheduler",
    [
        ({}, diffusers.PNDMScheduler),
        ({"process.schedule": "cosine", "model.prediction": "v", "sample.spacing": "trailing"}, None),
        ({"process.zero_terminal_snr": True, "model.prediction": "v"}, None),
    ],
)
def test_an_export_has_the_scheduler_of_its_own_process(folder, tmp_path, changes, scheduler):
    source = helpers.copy(folder[0] / "tiny-sd", tmp_path / "sd")
    index = json.loads((source / "model_index.json").read_text()) | {"scheduler": ["diffusers", "PNDMScheduler"]}
    (source / "model_index.json").write_text(json.dumps(index))
    config = loading.stable_diffusion_config(source)
    config.update_from_flattened_dict(changes)
    task = task_lib.build(config)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    export.write(task, task.load(jax.tree.map(lambda _: place, shapes)), 0, tmp_path / "export", half=True)
    assert "diffusers loads it unchanged" in (tmp_path / "export" / "README.md").read_text()
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "export").scheduler
    assert type(theirs) is (scheduler or diffusers.DDIMScheduler)
    np.testing.assert_allclose(theirs.alphas_cumprod, task.schedule.alpha_bar[1:], atol=2e-6)
    assert theirs.config.prediction_type == {"v": "v_prediction", "eps": "epsilon"}[task.parts.prediction]
    if scheduler is None:
        theirs.set_timesteps(10)
        np.testing.assert_array_equal(theirs.timesteps + 1, [t for t, _ in sampling.Plan.of(task, _ten(config)).moves])
    for sampler in ("heun", "dpmpp_2m"):  # whatever draws, the same is trained
        config.sample.sampler = sampler
        np.testing.assert_array_equal(task_lib.build(config, weights=False).schedule.alpha_bar, task.schedule.alpha_bar)


def _ten(config):
    config.sample.num_steps = 10
    return config.sample


def test_img2img_starts_from_the_picture(loaded):
    pipe = loaded
    source = helpers.data.OpenMojiSource("demo", "train", 16)
    pictures = np.stack([source[i]["image"] for i in (5, 6)])
    near = pipe.sample_arrays(PROMPTS[:1], image=Image.fromarray(pictures[0]), strength=0.1, steps=10, guidance=1.0)
    space = pipe.task.parts.space
    there_and_back = jax.jit(lambda params, image: space.decode(params, space.encode(params, {"image": image})))
    own, other = np.asarray(there_and_back(pipe.frozen["space"], pictures / np.float32(127.5) - 1))
    assert np.abs(near - own).mean() < 0.5 * np.abs(near - other).mean()
    for wrong, words in ({"strength": 0.01}, "strength=0.01"), ({"image": "nowhere.png"}, "nowhere.png"):
        with pytest.raises(UserError, match=words):
            pipe.sample(PROMPTS[0], **({"image": pictures[0], "steps": 10} | wrong))


def test_img2img_goes_through_the_contextual_forward_process(loaded):
    """The start is Eq. 1 with the picture's own shift: what is left after the plain part is k_t r(x0, c, t)."""
    pipe = loaded
    task, frozen, t = pipe.task, pipe.frozen, 600
    context = task.encode(pipe.params, frozen, task.parts.condition.read(PROMPTS[:1]))
    image = np.random.default_rng(0).uniform(-1, 1, (1, 16, 16, 3)).astype(np.float32)
    eps = np.random.default_rng(1).normal(size=(1, 8, 8, 4)).astype(np.float32)

    @jax.jit
    def start(params, frozen):
        x0 = task.parts.space.encode(frozen["space"], {"image": image})
        xt = sampling.noised(task, params, frozen, context, x0, t, eps, adapter=True)
        return x0, xt, task.shift(params, frozen, context)(x0, np.int32(t))

    x0, xt, expected = map(np.asarray, start(pipe.params, frozen))
    ab_t = float(task.schedule.alpha_bar[t])
    shift = xt - np.sqrt(ab_t) * x0 - np.sqrt(1 - ab_t) * eps
    assert np.abs(expected).max() > 1e-4
    np.testing.assert_allclose(shift, expected, atol=1e-5)


def test_sampling_from_the_command_line(trained, tmp_path):
    config, workdir = trained
    start = tmp_path / "start.png"
    Image.new("RGB", (40, 30), "red").save(start)
    run("sample", config, workdir, prompts=PROMPTS, num_samples=2, out=str(tmp_path / "out"), image=str(start))
    assert len(list((tmp_path / "out").glob("0*.png"))) == 4
    assert Image.open(tmp_path / "out" / "0000.png").size == (16, 16)


@pytest.mark.slow
def test_training_from_images_instead_of_stored_latents(folder, tmp_path):
    config = config_of(folder[0])
    config.space.precomputed, config.space.rgb, config.model.remat = False, "decode", False
    config.space.latents = ""
    config.train.num_steps, config.train.checkpoint_every = 2, 2
    config.train.trainable = (".*",)
    run("train", config, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model.pretrained": ""}, "config.model.pretrained is empty"),
        ({"model.pretrained": "nowhere"}, "nowhere"),
        ({"space.latents": ""}, "space.latents"),
        ({"data.image_size": 17}, "factor 2"),
        ({"train.trainable": ("^adaptor/",)}, "matches no parameter"),
    ],
)
def test_clear_errors(trained, folder, tmp_path, changes, words):
    config = config_of(folder[0])
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=words):
        run("train", config, tmp_path)


def test_an_export_is_loaded_with_the_config_that_trained_it_and_not_exported_onto_itself(trained, exported):
    config, _ = trained
    pipe = cdx.Pipeline.load(exported, config=config)
    assert pipe.config.model.pretrained == str(exported / ".")
    with pytest.raises(UserError, match="read from .* itself"):
        run("export", config, exported, out=str(exported))
    assert export.is_export(exported), "nothing was lost"
    with pytest.raises(UserError, match="step=7"):
        cdx.Pipeline.load(exported, step=7)


def test_a_run_finds_its_folders_where_they_have_moved_and_keeps_its_own_colour_map(trained, folder, tmp_path):
    config, workdir = trained
    moved = helpers.copy(folder[0] / "tiny-sd", tmp_path / "moved")
    saved = json.loads((workdir / "config.json").read_text())
    run_copy = helpers.copy(workdir, tmp_path / "run")
    for checkpoint in (run_copy / "checkpoints").iterdir():
        (checkpoint / "checksums.json").unlink()
    assert saved["model"]["pretrained"] == config.model.pretrained
    other = config_of(folder[0])
    other.model.pretrained, other.space.latents = str(moved), str(tmp_path / "gone")
    with pytest.raises(UserError, match=r"model\.pretrained: saved"):  # both exist: which is meant?
        cdx.Pipeline.load(workdir, config=other)
    (folder[0] / "tiny-sd").rename(tmp_path / "away")
    (folder[0] / "latents").rename(tmp_path / "latents")
    try:
        pipe = cdx.Pipeline.load(workdir, config=other)
        assert pipe.config.model.pretrained == str(moved)
        assert pipe.task.parts.space.params["rgb"], "the run's own"
    finally:
        (tmp_path / "away").rename(folder[0] / "tiny-sd")
        (tmp_path / "latents").rename(folder[0] / "latents")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"condition.kind": "none"}, "works on latents under a condition"),
        ({"adapter.patch_size": 3}, "adapter.patch_size=3"),
        ({"data.image_size": 18}, "data.image_size=18 is not divisible by 4.*try 16"),
        ({"encoder.clip": "nowhere"}, "config.encoder.clip='nowhere'"),
        ({"data.seed": 5}, "seed: there 0, now 5"),
        ({"data.horizontal_flip": True}, "horizontal_flip"),
        ({"sample.threshold": "static"}, "latents need 'none'"),
        ({"adapter.enabled": False}, "matches no parameter.*without an adapter leave it out"),
    ],
)
def test_clear_errors_found_in_review(trained, folder, tmp_path, changes, words):
    config = config_of(folder[0])
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=words):
        run("train", config, tmp_path)


def test_image_inputs(loaded):
    pipe = loaded
    sizes = [Image.new("L", (20, 30)), Image.new("RGB", (40, 10))]
    assert pipe._pictures(sizes, 2, None).shape == (2, 16, 16, 3)
    assert pipe._pictures(np.zeros((9, 7, 3), np.uint8), 2, None).shape == (2, 16, 16, 3)
    with pytest.raises(UserError, match="shape"):
        pipe._pictures(np.zeros((9, 7)), 1, None)
    with pytest.raises(UserError, match="3 images for 2 prompts"):
        pipe._pictures(np.zeros((3, 8, 8, 3)), 2, None)
