"""What users can get wrong on the command line ends in one line and exit status 2, before anything is compiled."""

import dataclasses
import errno
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import class2img, clip_mini, layout2img, t2i
from contextdiff_jax import command_line, config, data, keys, pictures, task
from contextdiff_jax.command_line import config_files, options
from contextdiff_jax.data import captions_on_disk
from contextdiff_jax.encoders import ASSETS
from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate.picture_sets import PictureSet
from contextdiff_jax.files import write_json
from contextdiff_jax.pipeline import export
from contextdiff_jax.training import Setup, checkpoint, workdir


def run(*flags, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "contextdiff_jax.main", *flags], capture_output=True, text=True, cwd=cwd, timeout=120
    )


@pytest.mark.parametrize(
    "flags, words",
    [
        ([], ["--config is missing", "configs/t2i.py"]),
        (["--config=configs/nothing.py"], ["configs/nothing.py", "does not exist"]),
        (["--config=configs/t2i.py:huge"], [":huge", ":small", ":tiny"]),
        (["--config=configs/t2i.py", "--config.optim.learning_rate=1"], ["optim.learning_rate", "accepted there"]),
        (["--config=configs/t2i.py", "--config.optm.lr=1"], ["config.optm.lr", "config.optim"]),
        (["--config=configs/t2i.py", "--config.lr=1"], ["config.lr", "config.optim.lr"]),
        (["--config=configs/t2i.py", "--config.optim.lr=fast"], ["--config.optim.lr=fast must be a number"]),
        (["--config=configs/t2i.py", "--config.train.num_steps=1e3"], ["num_steps=1e3 must be a whole number"]),
        (["--config=configs/t2i.py", "--config.adapter.enabled=maybe"], ["enabled=maybe must be True or False"]),
        (["--config=configs/t2i.py", "--mode=dream"], ["dream", "train"]),
        (["--config=configs/t2i.py", "--workdri=x"], ["workdri"]),
        (["--config=configs/t2i.py", "--lr=1"], ["no flag but a key", "set it by --config.optim.lr=1"]),
        (["--config=", "--lr=1"], ["no flag but a key", "--config.optim.lr=1 beside --config"]),
        (
            ["--mode=sample", "--guidance=5"],
            ["--config.sample.guidance=5 beside", "t2i.py:builtin --workdir=builtin:demo"],
        ),
        (["--mode=sample", "--steps", "30"], ["set it by --config.sample.num_steps=VALUE beside --config"]),
        (["--mode=eval"], ["--workdir is missing", "--mode=eval --workdir=runs/demo"]),
        (["--config=configs/t2i.py", "stray"], ["stray"]),
    ],
)
def test_flag_errors(flags, words, capsys, monkeypatch):
    """In-process: the parser alone, with the real flags."""
    from absl import flags as absl_flags

    from contextdiff_jax import main

    absl_flags.FLAGS.unparse_flags()
    monkeypatch.setattr(sys, "argv", ["main", *flags])  # config_flags reads overrides from there
    with pytest.raises(SystemExit) as stop:
        main.parse(["main", *flags])
    assert stop.value.code == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith("error: ") and "\n" not in line
    for word in words:
        assert word in line


@pytest.fixture
def told(monkeypatch):
    """What the flags of a command line become, with the real ones."""
    from absl import flags as absl_flags

    from contextdiff_jax import main

    def options(*flags):
        absl_flags.FLAGS.unparse_flags()
        monkeypatch.setattr(sys, "argv", ["main", *flags])
        found = []
        monkeypatch.setattr(command_line, "run", lambda mode, config, options: found.append(options))
        main.main(main.parse(["main", *flags]))
        return found[0]

    return options


def test_flags_that_a_mode_would_not_look_at_are_refused(told):
    nothing = told("--config=configs/t2i.py:tiny")
    for mode in command_line.MODES | command_line.WITHOUT_CONFIG:
        assert options.checked(nothing, mode) == nothing
    for field in dataclasses.fields(options.Options):
        assert set(field.metadata.get("modes", ())) <= set(command_line.MODES | command_line.WITHOUT_CONFIG)
    for flag, mode, words in (
        ("--prompt=a frog", "eval", "--prompt cannot act in --mode=eval; it is for train, sample, edit, heatmaps"),
        ("--size=8x8", "heatmaps", "--size .*; it is for sample"),
        ("--negative=a star", "edit", "--negative"),
        ("--strength=0.3", "edit", "--strength"),
        ("--half", "train", "--half .* it is for export"),
        ("--port=1", "sample", "--port .* it is for app"),
        ("--set=a=b", "metrics", "--set .* it is for study"),
        ("--seed=-1", "eval", "--seed=-1 is outside 0..4294967295"),
        ("--seed=4294967296", "heatmaps", "--seed=4294967296 is outside"),
        ("--seed=1", "train", "--seed cannot act in --mode=train; .*; the seed of a training is --config.seed$"),
        ("--workdir=builtin:demo", "train", "builtin:demo is a model that ships"),
        ("--allow_config_change", "eval", "--allow_config_change .*; it is for train$"),
    ):
        with pytest.raises(UserError, match=words):
            options.checked(told("--config=configs/t2i.py:tiny", flag), mode)
    with pytest.raises(UserError, match="--prompt and --out cannot act: nothing is edited after this training"):
        command_line.train(t2i.get_config("tiny"), options.Options(workdir="runs/none", prompts=("a frog",)))
    with pytest.raises(UserError, match="strength=0.3 cannot act without a picture"):
        command_line.sample(t2i.get_config("tiny"), options.Options("runs/none", prompts=("a frog",), strength=0.3))


def test_a_config_and_a_workdir_are_refused_where_neither_is_looked_at():
    with pytest.raises(UserError, match="--config cannot act in --mode=metrics"):
        command_line.run("metrics", t2i.get_config("tiny"), options.Options("runs/t2i-tiny"))
    with pytest.raises(UserError, match="--workdir cannot act in --mode=app, .*--model=RUN"):
        command_line.run("app", None, options.Options("runs/demo"))


def test_the_help_of_a_flag_names_the_modes_that_take_it():
    from contextdiff_jax import main

    helps = main.FLAGS.flags_by_module_dict()["contextdiff_jax.main"]
    of = {flag.name: flag.help for flag in helps}
    for field in dataclasses.fields(options.Options):
        if "modes" in field.metadata and field.name != "runs":
            assert of[field.metadata["flag"] or field.name].startswith(", ".join(field.metadata["modes"]) + ": ")
    named = main.__doc__.split("with MODE one of")[1]
    assert all(re.search(rf"\n    {mode} +\w", named) for mode in command_line.MODES | command_line.WITHOUT_CONFIG)
    recipes = {path.stem for path in Path(t2i.__file__).parent.glob("[!_]*.py")} - {"common"}
    assert recipes == set(named.split("Recipes: ")[1].split(";")[0].split(", "))


def test_on_windows_one_line_says_what_to_do(monkeypatch):
    from contextdiff_jax import main

    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit, match="needs Linux or macOS; on Windows use WSL"):
        exec(compile(Path(main.__file__).read_text(), main.__file__, "exec"), {"__name__": "main"})


def test_what_is_written_goes_where_it_is_read_from(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    found = options.checked(options.Options("~/run", out="~/out", image="~/a.png"), "sample")
    assert (found.workdir, found.out, found.image) == tuple(str(tmp_path / name) for name in ("run", "out", "a.png"))
    assert options.checked(options.Options("", runs=("~/a", "b")), "compare").runs == (str(tmp_path / "a"), "b")
    assert workdir.folder_of("~/run") == tmp_path / "run" / "checkpoints"
    for call in (
        lambda: options.checked(options.Options("runs/a", out="gs://bucket/x"), "export"),
        lambda: export.write(None, {}, 0, "s3://bucket/x"),
        lambda: command_line.encode(latent_config("gs://bucket/latents"), options.Options("runs/a")),
    ):
        with pytest.raises(UserError, match="remote store, where this library cannot write; mount it"):
            call()


def test_the_shipped_model_can_be_encoded_with_and_drawn_in_other_sizes(tmp_path, monkeypatch):
    from contextdiff_jax.tasks import encode

    found = []
    monkeypatch.setattr(encode, "encode", lambda config, space, folder, factor: found.append((space, folder, factor)))
    monkeypatch.setenv("HOME", str(tmp_path))
    config = latent_config("~/latents")
    config.model.pretrained, config.data.image_size = "builtin:demo", 64
    command_line.encode(config, options.Options("runs/a"))
    ((space, folder, factor),) = found
    assert folder == tmp_path / "latents" and space.shape[0] % factor == 0
    shipped = export.read_config(ASSETS / "demo")[0]
    shipped.model.pretrained = "builtin:demo"
    shipped = task.build(shipped, weights=False)
    shape = shipped.shape_of((64, 96))
    assert shape[1] * 2 == shape[0] * 3
    # The size that is named is taken.
    with pytest.raises(UserError, match=r"\(2, 40\) is not divisible by 16, which these networks need; try \(16, 48\)"):
        shipped.shape_of((2, 40))
    shipped.shape_of((16, 48))


def latent_config(folder):
    config = t2i.get_config("sd")
    config.space.latents = folder
    return config


@pytest.mark.parametrize("given", ["t2i.py:tiny", "t2i:tiny", "configs/t2i.py:tiny"])
def test_a_shipped_config_is_found_from_anywhere(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for argv in (["main", f"--config={given}", "--mode=train"], ["main", "--config", given]):
        found = config_files.with_config_file(argv)
        config_files.check_config_flags([*found, "--config.optim.lr=1"])
        path = found[config_files._config_flag(found)[0]].removeprefix("--config=")
        assert path.endswith("configs/t2i.py:tiny") and len(found) == len(argv)
        assert config_files.default_workdir(path, t2i.get_config("tiny")) == "runs/t2i-tiny"
    (tmp_path / "t2i.py").write_text("")
    assert config_files.with_config_file(["main", "--config=t2i.py"]) == ["main", "--config=t2i.py"], "one's own first"


def test_a_config_of_ones_own_builds_on_what_ships_as_it_is_installed(tmp_path, monkeypatch):
    root = Path(t2i.__file__).parents[1]
    shipped = tmp_path / "site" / "contextdiff_jax" / "shipped" / "configs"
    shutil.copytree(root / "configs", shipped, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(config_files, "SHIPPED_CONFIGS", (tmp_path / "site" / "configs", shipped))
    mine = "from configs import t2i\ndef get_config(preset=None):\n    return t2i.get_config(preset)\n"
    for folder, text in (("user", mine), ("other/configs", f"from configs import beside\n{mine}")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "mine.py").write_text(text)
        (tmp_path / folder / "beside.py").write_text("")
        with monkeypatch.context() as fresh:
            fresh.setattr(sys, "path", [place for place in sys.path if Path(place or ".").resolve() != root])
            for name in [name for name in sys.modules if name.split(".")[0] == "configs"]:
                fresh.delitem(sys.modules, name)
            config_files.check_config_flags(["main", f"--config={tmp_path / folder / 'mine.py'}:tiny"])
            assert sys.modules["configs.t2i"].__file__ == str(shipped / "t2i.py")
            fresh.delitem(sys.modules, "configs.beside", raising=False)


@pytest.mark.parametrize(
    "text, words",
    [
        ("from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({'task': 'toy'})", "no preset"),
        ("def get_config(): return {}", "not dict"),
    ],
)
def test_a_config_of_ones_own_that_lacks_something(text, words, tmp_path):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=words):
        config_files.check_config_flags(["main", f"--config={tmp_path / 'mine.py'}"])


@pytest.mark.parametrize("mode", ["sample", "eval", "bench", "encode"])
def test_modes_of_diffusion_are_refused_for_other_tasks(mode):
    with pytest.raises(UserError, match=f"--mode={mode} is for diffusion models"):
        command_line.run(mode, clip_mini.get_config("tiny"), command_line.Options(workdir="runs/none"))


def test_a_run_is_exported_and_evaluated_as_its_own_config_says(tmp_path, monkeypatch):
    own = clip_mini.get_config("tiny")
    write_json(own.to_dict(), tmp_path / "run" / "config.json")
    (tmp_path / "run" / "checkpoints" / "1").mkdir(parents=True)
    built, written = [], []
    stub = SimpleNamespace(export=lambda params, out: written.append((params, out)))
    monkeypatch.setattr(task, "build", lambda config: built.append(config) or stub)
    monkeypatch.setattr(checkpoint, "load_params", lambda *args, **how: ("params", own.to_dict(), 1))
    command_line.run("export", None, options.Options(str(tmp_path / "run")))
    assert written == [("params", str(tmp_path / "run" / "export"))] and not config.differences(built[0], own)
    (tmp_path / "run" / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json is .*; give the run's --config"):
        command_line.run("export", None, options.Options(str(tmp_path / "run")))
    unsaid = SimpleNamespace(config=ConfigDict())
    monkeypatch.setattr(command_line.shared, "pipeline_of", lambda config, options: unsaid)
    with pytest.raises(UserError, match="the model mine does not say how .* evaluated; add --config"):
        command_line.judging.evaluate(None, options.Options("mine"))


@pytest.mark.parametrize("mode", ["heatmaps", "export"])
def test_modes_of_one_process_are_refused_in_several(mode, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    recipe = None if mode == "heatmaps" else clip_mini.get_config("tiny")
    with pytest.raises(UserError, match=f"--mode={mode} needs no other process, and there are 2; run it in one"):
        command_line.MODES[mode](recipe, command_line.Options(workdir="runs/none"))


def test_names_that_the_readme_uses_need_no_import_of_their_own():
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    table = readme.split("| model in the hub's layouts |")[1].split("\n\n")[0]
    names = re.findall(r"`((?:encoders|models|samplers)\.[\w.]+)`", table)
    assert {"encoders.vq.load_vq", "models.sd_unet.load_sd_unet", "samplers.from_scheduler_config"} <= set(names)
    names = ", ".join(f"cdx.{name}" for name in names)
    code = f"import contextdiff_jax as cdx; {names}, cdx.samplers.ddim, cdx.data.source, cdx.evaluate.metrics.frechet"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr


def test_a_user_error_reaches_the_shell_as_one_line_and_status_2(tmp_path):
    done = run("--config=configs/t2i.py:tiny", "--config.data.preset=nope", f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 2
    assert "nope" in done.stderr and "demo" in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_full_disk_is_one_line_in_every_mode(monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOSPC, "No space left on device", "0003.png")

    monkeypatch.setitem(command_line.MODES, "sample", refuse)
    monkeypatch.setitem(command_line.WITHOUT_CONFIG, "study", refuse)
    for mode in ("sample", "study"):
        with pytest.raises(UserError, match="No space left on device: 0003.png.; make room"):
            command_line.run(mode, None, command_line.Options("runs/none" if mode == "sample" else ""))


def test_a_run_goes_on_with_its_own_order_of_classes(tmp_path, monkeypatch):
    """Copied to a system that decomposes names, its folders sort otherwise."""
    recipe = class2img.get_config("folder")
    recipe.data.path, recipe.data.class_names = str(tmp_path / "pictures"), ("cafz", "caf\u00e9")
    for name in ("cafz", "cafe\u0301"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
    write_json(recipe.to_dict(), tmp_path / "run" / "config.json")
    (tmp_path / "run" / "checkpoints" / "1").mkdir(parents=True)
    recipe.data.class_names = ()

    def build(config, **how):
        raise UserError(repr(data.settled(config).data.class_names))

    monkeypatch.setattr(task, "build", build)
    with pytest.raises(UserError, match=re.escape(repr(("cafz", "caf\u00e9")))):
        command_line.run("train", recipe, command_line.Options(str(tmp_path / "run")))
    assert not workdir.check_workdir(tmp_path / "run", recipe)


def test_a_dropout_that_an_old_run_never_had_is_forgotten():
    old = t2i.get_config("sd")
    old.model.dropout = 0.1
    assert keys.complete(old).model.dropout == 0.0 and old.model.dropout == 0.1


def test_what_changed_nothing_of_an_old_run_does_not_keep_it_from_being_read():
    changes = {"loss.objective": "nelbo", "loss.weighting": "p2", "process.ends": "fixed", "process.init": "linear"}
    old, now = t2i.get_config("tiny"), t2i.get_config("tiny")
    now.loss.objective = "nelbo"
    old.update_from_flattened_dict(changes | {"sample.last_noise": True})
    config.check(keys.complete(old))
    assert not keys.differences(keys.complete(old), now)
    old.process.schedule = "learned"
    assert keys.complete(old).process.ends == "fixed", "what acts stays"


HEAD = {"adapter.reverse": "head", "loss.objective": "nelbo", "sample.sampler": "ddpm"}
HEAD |= {"sample.num_steps": 1000, "sample.guidance": 1.0}
SD = {"model.backbone": "sd", "model.pretrained": "sd", "space.kind": "latents", "sample.threshold": "none"}
BOUND = {"sample.variance": "process", "sample.sampler": "ddpm"}
LEARNED = {"process.schedule": "learned", "process.variance": "learned", "loss.objective": "nelbo"}


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"data.image_size": 30}, ["data.image_size=30", "factor 8", "24"]),
        ({"sample.num_steps": 2000}, ["sample.num_steps=2000", "1000"]),
        ({"sample.sampler": "euler"}, ["euler", "dpmpp_2m"]),
        ({"model.self_attention_levels": (0, 5)}, ["level 5", "0 to 2"]),
        ({"optim.accum_steps": 3}, ["data.batch_size", "accum_steps=3"]),
        ({"optim.lr": -1.0}, ["optim.lr", "greater than 0"]),
        ({"optim.lr": float("inf")}, ["optim.lr=inf", "finite"]),
        ({"adapter.bound": float("inf")}, ["adapter.bound=inf", "finite"]),
        ({"sample.interval": (0.5, 0.5)}, ["sample.interval=(0.5, 0.5)", "low < high"]),
        ({"sample.interval": ("a", "b")}, ["sample.interval", "low < high"]),
        ({"train.trainable": ("(",)}, ["config.train.trainable: '('", "no regular expression"]),
        ({"train.lora.rank": 4, "train.lora.targets": ("(",)}, ["train.lora.targets: '('", "no regular expression"]),
        ({"train.keep_every": 2**40}, ["train.keep_every", "too large"]),
        ({"loss.cond_drop_prob": 1.5}, ["cond_drop_prob", "between 0 and 1"]),
        ({"adapter.num_heads": 7}, ["adapter.width", "num_heads=7"]),
        ({"adapter.patch_size": 5}, ["adapter.patch_size=5"]),
        ({"model.channels": 20}, ["model.channels=20", "16"]),
        ({"process.schedule": "quadratic"}, ["quadratic", "cosine"]),
        ({"process.num_timesteps": 0}, ["num_timesteps=0", "greater than 0"]),
        ({"process.schedule": "learned"}, ["process.schedule='learned'", "objective='nelbo'", "'simple'"]),
        ({"process.variance": "learned"}, ["process.variance='learned'", "objective='nelbo'"]),
        (LEARNED | {"model.pretrained": "sd"}, ["model.pretrained='sd'", "cannot act"]),
        (LEARNED | {"process.zero_terminal_snr": True, "model.prediction": "v"}, ["zero_terminal_snr"]),
        (LEARNED | {"sample.sampler": "ddpm"}, ["sample.num_steps=15", "all 1000"]),
        (LEARNED | {"sample.eta": 0.5}, ["sample.eta=0.5", "ddpm"]),
        ({"sample.eta": 1.0, "sample.sampler": "heun"}, ["sample.eta=1.0", "cannot act", "sampler='ddim', not 'heun'"]),
        ({"sample.rescale": 0.7, "sample.guidance": 1.0}, ["sample.rescale=0.7", "guidance=1 is none"]),
        ({"sample.interval": (0.2, 0.8), "sample.guidance": 0.0}, ["sample.interval=(0.2, 0.8)", "guidance=0 is none"]),
        (SD | {"model.dropout": 0.1}, ["model.dropout=0.1", "backbone='sd'"]),
        ({"process.variance": "learned", "loss.objective": "posterior"}, ["process.variance='learned'", "'posterior'"]),
        ({"sample.last_noise": True}, ["last_noise", "process.variance='learned'"]),
        (LEARNED | {"sample.last_noise": True}, ["sample.last_noise=True", "cannot act", "sampler='ddpm', not 'ddim'"]),
        (
            {"loss.objective": "nelbo", "loss.weighting": "min_snr"},
            ["loss.weighting='min_snr' cannot act", "config.loss.objective='simple', not 'nelbo'", "'constant'"],
        ),
        ({"loss.gamma": 1.0}, ["loss.gamma=1.0 cannot act", "config.loss.weighting='min_snr', not 'constant'"]),
        ({"process.log_snr": (5.0, -8.0)}, ["process.log_snr=(5.0, -8.0) cannot act", "'log_snr', not 'cosine'"]),
        (
            LEARNED | {"process.init": "cosine", "process.log_snr": (5.0, -8.0)},
            ["process.log_snr=(5.0, -8.0) cannot act", "config.process.init='log_snr', not 'cosine'"],
        ),
        ({"process.beta_end": 0.1}, ["process.beta_end=0.1 cannot act", "'linear' or 'scaled_linear', not 'cosine'"]),
        ({"adapter.enabled": False, "adapter.scale": 0.5}, ["adapter.scale=0.5 cannot act", "adapter.enabled=True"]),
        ({"adapter.enabled": False, "adapter.reverse": "head"}, ["adapter.reverse='head' cannot act", "enabled=True"]),
        (HEAD, ["sample.threshold='static' cannot act", "adapter.reverse='head'", "set it to 'none'"]),
        ({"process.ends": "fixed"}, ["process.ends='fixed' cannot act", "process.schedule='learned', not 'cosine'"]),
        ({"process.init": "linear"}, ["process.init='linear' cannot act", "set it to 'log_snr'"]),
        ({"sample.variance": "process"}, ["sample.variance='process'", "cannot act", "sampler='ddpm', not 'ddim'"]),
        (BOUND, ["sample.num_steps=15", "sample.variance='process'", "all 1000", "sample.variance='posterior'"]),
        ({"loss.num_times": 4}, ["loss.num_times=4", "nelbo"]),
        (SD | {"eval.bpd_always": True}, ["eval.bpd_always=True cannot act", "space.kind='pixels', not 'latents'"]),
        ({"eval.judge_steps": 9}, ["eval.judge_steps=9 cannot act", "kind='class', not 'text'", "set it to 0"]),
        (
            {"eval.recogniser": "mine", "data.source": "folder"},
            ["eval.recogniser='mine' cannot act", "openmoji's scenes or, with config.eval.judge_steps", "set it to ''"],
        ),
        ({"adapter.scale": 1.0}, ["adapter.scale=1.0", "reach zero"]),
        ({"adapter.scale": 0.99999999}, ["adapter.scale=0.99999999", "to 0.99"]),
        ({"process.log_snr": (6.0, -8.0, 1.0)}, ["process.log_snr=(6.0, -8.0, 1.0)", "two numbers"]),
        ({"process.log_snr": ("6", "-8")}, ["process.log_snr=('6', '-8')", "two numbers"]),
        ({"condition.token_grid": 0}, ["condition.token_grid=0", "greater than 0"]),
        ({"data.class_words": "words.txt"}, ["data.class_words='words.txt'", "labels='subfolders'"]),
        ({"condition.width": 0}, ["condition.width=0", "greater than 0"]),
        ({"condition.depth": -1}, ["condition.depth=-1", "0 or more"]),
        ({"adapter.scale": 0.5}, ["adapter.scale=0.5", "objective='nelbo'"]),
        ({"adapter.reverse": "head", "loss.objective": "nelbo"}, ["reverse='head'", "'ddpm'", "num_steps=1000"]),
    ],
)
def test_check_names_key_value_and_remedy(changes, words):
    broken = t2i.sections()
    broken.update_from_flattened_dict(changes)
    with pytest.raises(UserError) as error:
        config.check(broken)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"optim.b1": 1.0}, "optim.b1=1 .* below 1"),
        ({"optim.b2": 1}, "optim.b2=1 .* below 1"),
        ({"optim.momentum": 1.0}, "optim.momentum=1 .* below 1"),
        ({"ema.decay": 1.0, "ema.warmup": False}, "ema.decay=1 with config.ema.warmup=False .* 0.999"),
    ],
)
def test_averages_that_never_move_begin_no_training_and_are_otherwise_left_alone(changes, words):
    still = t2i.get_config("tiny")
    still.update_from_flattened_dict(changes)
    config.check(still)  # what was trained so can be sampled
    with pytest.raises(UserError, match=words):
        Setup.of(SimpleNamespace(config=still))


def test_what_a_recipe_brings_is_left_out_where_a_flag_makes_it_idle_and_what_flags_ask_for_is_refused():
    small = t2i.get_config("small")
    assert small.loss.weighting == "min_snr"
    small.loss.objective = "nelbo"
    with pytest.raises(UserError, match="loss.weighting='min_snr' cannot act"):
        config.check(small)
    asked = config_files.asked_keys(["main", "--config=t2i.py:small", "--config.loss.objective=nelbo", "--seed=1"])
    assert asked == ["loss.objective"]
    config.put_at_rest(small, [*asked, "loss.weighting"])
    assert small.loss.weighting == "min_snr"
    small.loss.gamma = 3.0
    config.put_at_rest(small, asked)
    config.check(small)
    assert (small.loss.weighting, small.loss.gamma) == ("constant", 5.0)  # the one leaves the other idle
    classes = class2img.get_config("folder")
    classes.data.source = "openmoji"
    config.put_at_rest(classes, ["data.source"])
    assert classes.data.labels == "none"
    latents = class2img.get_config("imagenet")
    latents.update_from_flattened_dict({"model.pretrained": "autoencoder", "sample.sampler": "dpmpp_2m"})
    with pytest.raises(UserError, match="sample.eta=1.0 cannot act"):
        config.check(latents)
    config.put_at_rest(latents, ["sample.sampler", "sample.eta"])
    assert latents.sample.eta == 1.0
    config.put_at_rest(latents, ["sample.sampler"])
    config.check(latents)
    assert latents.sample.eta == 0.0


@pytest.mark.parametrize("make, preset", [(class2img, "imagenet"), (layout2img, "coco")])
def test_a_network_from_scratch_in_latents_may_learn_its_schedule(make, preset):
    latent = make.get_config(preset)
    latent.model.pretrained = "autoencoder"
    latent.update_from_flattened_dict({"process.schedule": "learned", "loss.objective": "nelbo"})
    config.put_at_rest(latent, ["process.schedule", "loss.objective"])  # its betas are of another schedule
    config.check(latent)


def test_a_pretrained_network_keeps_its_times():
    sd = t2i.get_config("sd")
    changes = {"model.pretrained": "sd", "process.schedule": "learned", "loss.objective": "nelbo"}
    sd.update_from_flattened_dict(changes | {"loss.weighting": "constant", "model.prediction": "eps"})
    with pytest.raises(UserError, match="it knows the times of its own schedule"):
        config.check(sd)
    sd.model.random_start = True
    config.check(sd)


@pytest.mark.parametrize("preset", [None, "tiny", "small", "paper", "folder"])
def test_every_preset_is_consistent(preset):
    config.check(t2i.get_config(preset))


def test_differences_name_both_values_and_spare_what_may_change():
    saved, now = t2i.get_config(), t2i.get_config()
    now.optim.lr, now.sample.guidance = 5e-4, 7.0
    assert config.differences(saved, now, ignore=("sample.",)) == ["optim.lr: saved 0.003, now 0.0005"]
    assert config.differences(saved, t2i.get_config()) == []


class Drawing:
    """A pipeline's part in writing pictures."""

    config = ConfigDict(dict(condition=dict(kind="text")))
    task = SimpleNamespace(parts=SimpleNamespace(captions=list))
    to_images = staticmethod(lambda pixels: [pictures.Image.fromarray(p) for p in pixels])

    def batches(self, *sizes):
        start = 0
        for size in sizes:
            rows = np.arange(start, start := start + size)
            if not size:
                raise KeyboardInterrupt
            yield SimpleNamespace(rows=rows, whole=lambda rows=rows: np.full((len(rows), 4, 4, 3), -1.0))


def test_pictures_are_written_as_they_are_drawn(tmp_path, capsys):
    drawing = Drawing()
    with pytest.raises(KeyboardInterrupt):
        command_line.drawing._write_pictures(drawing, ["a"] * 5, drawing.batches(2, 1, 0), tmp_path)
    finished = ["0000.png", "0001.png", "0002.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [*finished, "metadata.jsonl"]
    assert captions_on_disk.read(tmp_path, finished, ["metadata.jsonl"]) == dict.fromkeys(finished, "a")
    assert capsys.readouterr().out == f"3 of 5 pictures are in {tmp_path}\n"
    with pytest.raises(KeyboardInterrupt):  # of several processes one alone writes, and speaks
        command_line.drawing._write_pictures(drawing, ["a"] * 5, drawing.batches(2, 0), None)
    assert capsys.readouterr().out == ""


def test_a_grid_is_of_the_first_pictures(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pictures, "IN_GRID", 3)
    drawing = Drawing()
    command_line.drawing._write_pictures(drawing, list("abcde"), drawing.batches(2, 2, 1), tmp_path)
    assert len(list(tmp_path.iterdir())) == 7 and "5 pictures" in (said := capsys.readouterr().out)
    assert "the first 3 with their captions" in said
    side = pictures.MIN_SIDE + pictures.PAD
    assert pictures.Image.open(tmp_path / "grid.png").width == 3 * side + pictures.PAD
    assert PictureSet(tmp_path, captions=tmp_path).captions == list("abcde"), "the measures read them"
    (tmp_path / "numbered").mkdir()
    command_line.drawing._write_pictures(drawing, 2, drawing.batches(2), tmp_path / "numbered")
    assert not (tmp_path / "numbered" / "metadata.jsonl").exists(), "a number is no caption"


def test_prompts_file(tmp_path):
    good, gap = tmp_path / "good.txt", tmp_path / "gap.txt"
    good.write_text("a cat\nein Bär 🐻\n\n", encoding="utf-8")
    assert command_line.read_prompts(str(good)) == ["a cat", "ein Bär 🐻"]
    gap.write_text("a cat\n\na dog\n")
    with pytest.raises(UserError, match="line 2"):
        command_line.read_prompts(str(gap))
    with pytest.raises(UserError, match="missing.txt"):
        command_line.read_prompts(str(tmp_path / "missing.txt"))


def test_a_run_saved_before_a_key_existed_is_the_same_run():
    saved = t2i.get_config("tiny").to_dict()
    del saved["condition"], saved["space"], saved["model"]["backbone"], saved["train"]["trainable"]
    old = ConfigDict(saved)
    assert config.differences(old, t2i.get_config("tiny")) != []
    assert config.differences(config.complete(old), t2i.get_config("tiny")) == []


@pytest.mark.parametrize(
    "kind, options, words",
    [
        ("none", {"prompts": ("7",)}, "takes none; use --num_samples"),
        ("text", {}, "no prompt given"),
        ("text", {"prompts": ("a",), "num_samples": -1}, "--num_samples=-1"),
    ],
)
def test_what_is_asked_for_must_fit_the_condition(kind, options, words):
    asked = t2i.get_config("tiny")
    asked.condition.kind = kind
    with pytest.raises(UserError, match=words):
        command_line.asked_for(asked, command_line.Options(workdir="", **options))


def test_every_prompt_as_often_as_asked():
    options = command_line.Options(workdir="", prompts=("a", "b"), num_samples=2)
    assert command_line.asked_for(t2i.get_config("tiny"), options) == ["a", "a", "b", "b"]
