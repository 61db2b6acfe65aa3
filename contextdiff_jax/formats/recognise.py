"""What a path leads to that is no model: in words, with what to give instead."""

from pathlib import Path

from contextdiff_jax.files import read_object
from contextdiff_jax.formats import hub
from contextdiff_jax.formats.pretrained import PICKLES, STEMS

WANTED = "a run's workdir, an export, a Stable Diffusion 1.x or 2.x folder or .safetensors file, or its name on the hub"
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
LORA = ("pytorch_lora_weights.safetensors", "adapter_config.json")


def refuse_pipeline(index: Path) -> str:
    """Why a pipeline with this model_index.json cannot be read; "" where nothing speaks against it."""
    content = read_object(index)
    name = str(content.get("_class_name"))
    if "XL" not in name and {"unet", "vae", "text_encoder"} <= content.keys():
        return ""
    return f"{index.parent} holds a pipeline of class {name}; supported are those of Stable Diffusion 1.x and 2.x"


def no_model(path: Path) -> str:
    """What is at `path`, which is neither a file nor a run, an export or a pipeline."""
    if not path.exists() and path.parts[:1] == (hub.RUNS,):
        return (
            f"there is no run at {path}; train it first, e.g. --config=configs/t2i.py --workdir={path} (the demo: bash "
            "launch/demo.sh), or take the model that ships, builtin:demo"
        )
    if not path.exists():
        return f"there is nothing at {path}; give {WANTED}"
    if found := [name for name in LORA if (path / name).is_file()]:
        return f"{path} holds a LoRA ({found[0]}); load the model that it changes, then pipe.load_lora({str(path)!r})"
    if (path / "config.json").is_file():
        config = read_object(path / "config.json")
        kind = config.get("_class_name") or config.get("model_type")
        whole = path.resolve().parent
        if kind and (whole / "model_index.json").is_file():
            return f"{path} is one component of a pipeline ({kind}); give the whole: {whole}"
        if kind:
            return f"{path} holds one model ({kind}), no pipeline; give {WANTED}"
        if "task" in config:
            return ""  # a run, which may have no checkpoint yet
    if found := [name for name in PARTS if (path / name).is_dir()]:
        again = hub.remedy(path, "download the whole again")
        return f"{path} has {', '.join(found)} but no model_index.json, as a pipeline has; {again}"
    files = sorted(p.name for p in path.glob("*.safetensors") if p.stem not in STEMS)
    if files:
        return f"{path} is a folder with {', '.join(files[:4])}; give the file itself"
    if pickles := sorted(p.name for pattern in PICKLES for p in path.glob(pattern)):
        return (
            f"{path} holds a pickle, {pickles[0]}, which runs code when opened; convert it with PyTorch and "
            "safetensors once, and give the .safetensors file"
        )
    return _of_a_run(path.absolute()) or f"{path} holds {_listed(path)}, and no model; give {WANTED}"


def _of_a_run(path: Path) -> str:
    """Which part of a run's folder this is; "" where it is none."""
    for run in path.parents[:3]:
        if (run / "config.json").is_file() and (run / "checkpoints").is_dir():
            return f"{path} is a part of the run {run}; give that, and a checkpoint of it by step=NUMBER"
    return ""


def _listed(path: Path) -> str:
    """The first things in a folder."""
    names = sorted(p.name for p in path.iterdir())
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "") if names else "nothing"
