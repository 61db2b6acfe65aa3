"""The base model of the study's arm `never`: like builtin:demo, by its recipe, in its autoencoder's latents, but
without an adapter. Three quarters of an hour of one CPU core, once; a training that was stopped continues."""

import shutil
from pathlib import Path

from ml_collections import ConfigDict

from configs import t2i
from contextdiff_jax import command_line, encoders, training
from contextdiff_jax import task as task_lib
from contextdiff_jax.errors import UserError
from contextdiff_jax.pipeline import Pipeline, export

SKELETON = Path(__file__).parents[2] / "configs" / "builtin_demo"  # sizes of the U-Net, and the schedule


def trained(config: ConfigDict, workdir: Path) -> Path:
    """The folder of a run that has been trained to its end, now or before.

    Raises:
        UserError: it was told to stop, as by SIGTERM; what is stored of a model is of the whole training.
    """
    state = training.train(task_lib.build(config), workdir)
    if state.step < config.train.num_steps:
        raise UserError(f"the training in {workdir} was stopped; run the same command to go on from there")
    return workdir


def config_of(folder: Path) -> ConfigDict:
    """The recipe of `launch/builtin_demo.sh` without an adapter."""
    config = t2i.get_config("builtin")
    config.model.pretrained, config.space.latents = str(folder / "start"), str(folder / "latents")
    config.adapter.enabled, config.train.preview_every = False, 0
    return config


def plain_base(folder: Path) -> Path:
    """The model in `folder`, made where there is none yet."""
    config, model = config_of(folder), folder / "model"
    if model.is_dir():
        return model
    shutil.copytree(SKELETON, folder / "start", dirs_exist_ok=True)
    shutil.copytree(encoders.folder_of("builtin:demo") / "vae", folder / "start" / "vae", dirs_exist_ok=True)
    command_line.encode(config, command_line.Options(workdir=str(folder)))
    pipeline = Pipeline.load(trained(config, folder / "run"))
    export.write(pipeline.task, pipeline.params, pipeline.step, model, half=True)
    return model
