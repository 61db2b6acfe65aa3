"""The modes of a training: the training itself, what it reads and leaves, and what it will need."""

import sys
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from contextdiff_jax.command_line import clips, judging, shared
from contextdiff_jax.command_line.options import Options
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import check_writable, local_path


def train(config: ConfigDict, options: Options) -> None:
    """Trains, resuming from the workdir when it holds the same run."""
    from contextdiff_jax import training
    from contextdiff_jax.training.distributed import together

    with together():
        task, edits_after, kept = _prepared(config, options)
    state = training.train(task, options.workdir, allow_config_change=options.allow_config_change)
    finished = int(state.step) == config.train.num_steps
    del state, task  # what follows reads the model again, and has the device to itself
    try:
        if edits_after and finished:
            clips.edit(config, options, kept)
        if config.task == "diffusion" and config.eval.after_training and finished:
            _evaluate(config, options)
    finally:  # the training is told of, whatever comes of its evaluation
        shared.write_page(Path(options.workdir))


def _evaluate(config: ConfigDict, options: Options) -> None:
    """The evaluation that follows a training of one process."""
    import jax

    if jax.process_count() == 1:
        judging.evaluate(config, options)
    elif jax.process_index() == 0:
        print("config.eval.after_training: with several processes run --mode=eval by itself afterwards")


def _prepared(config: ConfigDict, options: Options) -> tuple[Any, bool, Any]:
    """The task to be trained; whatever is wrong with it, or with what is to follow its training, is said here. And
    whether an edit follows that is not made yet, and what has been compiled of it."""
    import jax

    from contextdiff_jax import data, training
    from contextdiff_jax import task as task_lib
    from contextdiff_jax.training.sharding import make_mesh
    from contextdiff_jax.training.workdir import has_trained

    training.check_workdir(options.workdir, config, allow_config_change=options.allow_config_change)
    if data.classes_are_read(config.data) and not config.data.class_names:
        # Another system may spell the folders' names otherwise, and so sort them otherwise; and lists may change.
        config.data.class_names = training.known_classes(options.workdir)
    if tunes := "edit" in config:
        from contextdiff_jax.pipeline import clip_editing

        clip_editing.check_clip(config, options.workdir)
    kept = None
    if edits_after := tunes and config.edit.after_training:
        if is_made := clips.is_made(config, options):
            print(f"--out={options.out} holds the edit of this training: it is not made again")
        else:
            clips.check_out(options, local_path(options.workdir))
        shared.check_alone("config.edit.after_training=True", "set it to False, and edit by --mode=edit in one process")
    task = task_lib.build(config, mesh=make_mesh(config.mesh))
    if (options.prompts or options.out) and not edits_after:
        raise UserError("--prompt and --out cannot act: nothing is edited after this training; leave them out")
    edits_after = edits_after and not is_made
    if edits_after:
        kept = clip_editing.check(task, config, options.prompts, resumed=has_trained(options.workdir))
    if config.task == "diffusion" and config.eval.after_training:  # what is not there is said before the training
        from contextdiff_jax.evaluate.conditions import check_judge, check_pictures
        from contextdiff_jax.evaluate.feature_spaces import open_space

        if jax.process_count() == 1:  # several do not evaluate
            check_pictures(config)
        check_judge(config)
        for space in config.eval.features:
            open_space(space)
    return task, edits_after, kept


def export(config: ConfigDict | None, options: Options) -> None:
    """Writes what a user keeps of a training into --out.

    Args:
        config: None takes the model's own.
        options: of the command line.
    """
    from contextdiff_jax.pipeline.places import home_of
    from contextdiff_jax.training.workdir import check_same_model, saved_config

    shared.check_alone("--mode=export", "run it in one")
    out = options.out or str(home_of(options.workdir) / "export")
    check_writable(Path(out), "output folder", "give another --out")
    own = saved_config(options.workdir) if config is None else config
    if own is None or own.task == "diffusion":
        from contextdiff_jax.pipeline import export as export_lib

        pipeline = shared.pipeline_of(config, options)
        export_lib.write(pipeline.task, pipeline.params, pipeline.step, out, options.half)
        print(f"step {pipeline.step} exported to {out}; read it with contextdiff_jax.Pipeline.load({out!r})")
        return
    if options.half:
        raise UserError(f"--half is for diffusion models; config.task is {own.task!r}")
    from contextdiff_jax import task as task_lib
    from contextdiff_jax.training import checkpoint

    task = task_lib.build(own)
    params, saved, step = checkpoint.load_params(options.workdir, step=options.step)
    check_same_model(saved, own, options.workdir)
    task.export(params, out)
    print(f"step {step} exported to {out}")


def encode(config: ConfigDict, options: Options) -> None:
    """Encodes the images of a latent model's data to disk, once."""
    if config.task != "diffusion" or config.space.kind != "latents":
        raise UserError("--mode=encode is for latent diffusion (config.space.kind='latents'), e.g. configs/t2i.py:sd")
    if not config.space.latents:
        raise UserError("config.space.latents is empty; name the folder for the latents: --config.space.latents=FOLDER")
    folder = local_path(config.space.latents)
    from contextdiff_jax.models import backbones
    from contextdiff_jax.tasks.encode import encode as encode_data
    from contextdiff_jax.tasks.readers import latent_space, with_located_models
    from contextdiff_jax.training.distributed import together

    located = with_located_models(config)
    with together():
        check_writable(folder, "config.space.latents:", "name another folder")
        space = latent_space(located)
    encode_data(config, space, folder, factor=backbones.factor(located))


def bench(config: ConfigDict, options: Options) -> None:
    """Times the training step with and without the adapter, in turn, in one run."""
    if config.task != "diffusion":
        raise UserError(f"--mode=bench measures the adapter of a diffusion run; config.task is {config.task!r}")
    from contextdiff_jax.evaluate.bench import bench_adapter
    from contextdiff_jax.training.distributed import together

    with together():
        out = shared.make_folder(Path(options.workdir), "--workdir")
    bench_adapter(config, out)


def plan(config: ConfigDict, options: Options) -> None:
    """Prints what one training step needs on a topology, or on this machine."""
    from contextdiff_jax.plan import plan as make_plan

    where = options.topology or "this machine"
    print(f"compiling the training step for {where}; a large model takes many minutes", file=sys.stderr, flush=True)
    for line in make_plan(config, options.topology).lines():
        print(line)
