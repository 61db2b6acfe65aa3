"""What the modes of the command line do, and one-line errors for what users can get wrong on it."""

import itertools
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from ml_collections import ConfigDict

from contextdiff_jax import config as config_lib
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import (
    atomic,
    check_writable,
    local_path,
    read_text,
    refusals_in_words,
    text_lines,
    whole_folder,
)
from contextdiff_jax.options import Options, checked

SHIPPED = "builtin:demo"  # what draws without a config and a workdir


def fail(error: Exception) -> NoReturn:
    """One line on standard error, exit status 2."""
    print("error: " + " ".join(str(error).split()), file=sys.stderr, flush=True)
    sys.exit(2)


@refusals_in_words()
def run(mode: str, config: ConfigDict | None, options: Options) -> None:
    """Checks flags and config, and dispatches on the mode; to sample, a model's own config will do."""
    from contextdiff_jax import training
    from contextdiff_jax.compilation import keep_programs

    options = checked(options, mode)
    if mode in WITHOUT_CONFIG and (config is not None or options.workdir):
        flag = "--workdir" if config is None else "--config"
        remedy = "name the model by --model=RUN" if mode == "app" else "leave it out"
        raise UserError(f"{flag} cannot act in --mode={mode}, which is of no single training run; {remedy}")
    keep_programs(options.compilation_cache)
    if mode in WITHOUT_CONFIG:
        WITHOUT_CONFIG[mode](options)
        return
    if config is not None:
        config_lib.check(config)
        if config.task != "diffusion" and mode not in ("train", "export", "plan"):
            accepted = "train, export, plan"
            raise UserError(f"--mode={mode} is for diffusion models; for config.task={config.task!r}: {accepted}")
    training.initialize_distributed(options.coordinator, options.num_processes, options.process_id)
    MODES[mode](config, options)


def train(config: ConfigDict, options: Options) -> None:
    """Trains, resuming from the workdir when it holds the same run."""
    from contextdiff_jax import training
    from contextdiff_jax.training.distributed import together

    with together():
        task, kept = _prepared(config, options)
    state = training.train(task, options.workdir, allow_config_change=options.allow_config_change)
    finished = int(state.step) == config.train.num_steps
    del state, task  # what follows reads the model again, and has the device to itself
    if "edit" in config and config.edit.after_training and finished:
        edit(config, options, kept)
    if config.task == "diffusion" and config.eval.after_training and finished:
        import jax

        if jax.process_count() == 1:
            evaluate(config, options)
        elif jax.process_index() == 0:
            print("config.eval.after_training: with several processes run --mode=eval by itself afterwards")
    write_page(Path(options.workdir))


def _prepared(config: ConfigDict, options: Options) -> tuple[Any, Any]:
    """The task to be trained; whatever is wrong with it, or with what is to follow its training, is said here. And what
    has been compiled of an edit that follows."""
    from contextdiff_jax import data, training
    from contextdiff_jax import task as task_lib
    from contextdiff_jax.training.sharding import make_mesh

    training.check_workdir(options.workdir, config, allow_config_change=options.allow_config_change)
    if data.classes_are_read(config.data) and not config.data.class_names:
        # Another system may spell the folders' names otherwise, and so sort them otherwise; and lists may change.
        config.data.class_names = training.known_classes(options.workdir)
    if tunes := "edit" in config:
        from contextdiff_jax.pipeline import clip_editing

        clip_editing.check_clip(config, options.workdir)
    kept = None
    if edits_after := tunes and config.edit.after_training:
        _check_out(options.out)
        _check_alone("config.edit.after_training=True", "set it to False, and edit by --mode=edit in one process")
    task = task_lib.build(config, mesh=make_mesh(config.mesh))
    if (options.prompts or options.out) and not edits_after:
        raise UserError("--prompt and --out cannot act: nothing is edited after this training; leave them out")
    if edits_after:
        kept = clip_editing.check(task, config, options.prompts)
    if config.task == "diffusion" and config.eval.after_training:  # what is not there is said before the training
        from contextdiff_jax.evaluate.conditions import check_judge
        from contextdiff_jax.evaluate.feature_spaces import open_space

        check_judge(config)
        for space in config.eval.features:
            open_space(space)
    return task, kept


def write_page(folder: Path) -> None:
    """report.html of a run; a training does not end for a page, whatever fails there."""
    from contextdiff_jax.evaluate.pages import write_report_page
    from contextdiff_jax.training.checkpoint_format import brief
    from contextdiff_jax.training.distributed import is_primary

    if not is_primary():
        return
    try:
        print(f"written: {write_report_page(folder)}")
    except Exception as error:
        why = str(error) if isinstance(error, OSError | UserError) else brief(error)
        print(f"NOT WRITTEN: {folder / 'report.html'} ({why})")


def _pipeline(config: ConfigDict | None, options: Options):
    """The trained model of the workdir, with this command line's `sample` and `eval` sections."""
    from contextdiff_jax.pipeline import Pipeline

    return Pipeline.load(options.workdir, step=options.step, config=config)


def _check_alone(what: str, remedy: str) -> None:
    """Raises UserError where there are several processes, of which each would write the same files."""
    import jax

    if jax.process_count() > 1:
        raise UserError(f"{what} needs no other process, and there are {jax.process_count()}; {remedy}")


def edit(config: ConfigDict | None, options: Options, kept: Any = None) -> None:
    """Edits the clip that a run was tuned on, under any prompts, and writes pictures, videos and figures.

    Args:
        config: None takes the run's own.
        options: of the command line.
        kept: what `clip_editing.check` returned, which has said already what cannot be edited; None asks again.
    """
    _check_alone("--mode=edit", "run it in one")
    _check_out(options.out)
    pipeline = _pipeline(None, options) if config is None else None
    config = pipeline.config if config is None else config
    if "edit" not in config:
        raise UserError("--mode=edit is for runs that were tuned on a clip: --config=configs/video_edit.py")
    from contextdiff_jax.data.one_clip import clip_of, keep_identity
    from contextdiff_jax.editing.editor import Editor
    from contextdiff_jax.pipeline import clip_editing

    targets, clip = clip_editing.targets_of(config, options.prompts), clip_of(config.data)
    pipeline = pipeline or _pipeline(config, options)
    keep_identity(clip, options.workdir)
    editor = Editor(pipeline.task, pipeline.params, pipeline.frozen, clip, pipeline.config, kept=kept)
    if kept is None:  # whatever is wrong leaves no folder
        editor.check(targets)
    default = Path(options.workdir) / "edit"
    check_writable(Path(options.out) if options.out else default, "output folder", "give another --out")
    edited = editor.run(targets)
    print(edited.table())
    out = Path(options.out) if options.out else unused(default)
    with whole_folder(out) as building:
        edited.write(building)
    print(f"figures: {out / 'edit.json'}   picture: {out / 'edit.png'}   side by side: {out / 'edit.mp4'}")
    if kept is None and (Path(options.workdir) / "config.json").is_file():  # a training writes it at its end
        write_page(Path(options.workdir))


def _check_out(out: str) -> None:
    """Raises UserError where --out holds an earlier edit."""
    if out and (Path(out) / "edit.json").exists():
        raise UserError(f"--out={out} holds an edit (edit.json), which would be lost; give another --out, or remove it")


def sample(config: ConfigDict | None, options: Options) -> None:
    """Draws the prompts, writes every picture when it is there, and at the end a grid with the captions under them."""
    from contextdiff_jax.pipeline.places import check_place, home_of
    from contextdiff_jax.pipeline.requests import as_array, read_size, strength_of
    from contextdiff_jax.training.distributed import is_primary, together

    with together():
        place = check_place(options.out, home_of(options.workdir) / "samples")
    # Without a config the model must be read before the rest can be checked against its own.
    pipeline = _pipeline(None, options) if config is None else None
    config = pipeline.config if config is None else config
    with together():
        prompts = asked_for(config, options)
        size = read_size(options.size) if options.size else None
        start: dict[str, Any] = {"size": size, "strength": options.strength}
        strength_of(options.strength, config.sample.num_steps, bool(options.image))
        if options.image:
            as_array(options.image, size or (config.data.image_size,) * 2)
            start["image"] = options.image
        if options.negative:
            start["negative"] = options.negative
    pipeline = pipeline or _pipeline(config, options)
    with together():
        batches = pipeline.stream(prompts, key=options.seed, **start)  # draws nothing yet; faults leave no folder
        out = None
        if is_primary():
            out = make_folder(place if options.out else unused(place / f"step-{pipeline.step}-seed-{options.seed}"))
    _write_pictures(pipeline, prompts, batches, out)


def _write_pictures(pipeline: Any, prompts: list[Any] | int, batches: Iterable[Any], out: Path | None) -> None:
    """Writes the pictures of a stream batch by batch, and a grid of the first; without a folder it draws alone."""
    from contextdiff_jax.pictures import GRID, IN_GRID, caption_grid, to_uint8
    from contextdiff_jax.progress import Progress

    captions = pipeline.task.parts.captions(prompts) if isinstance(prompts, list) else [str(i) for i in range(prompts)]
    shown, written = [], 0
    try:
        with Progress("sampling", len(captions), "img", before="compiling") as progress:
            for drawn in progress.each(batches):
                pixels = to_uint8(drawn.whole())
                for row, image in zip(drawn.rows, pipeline.to_images(pixels), strict=True):
                    if out is not None:
                        with atomic(out / f"{row:04d}.png") as temporary:
                            image.save(temporary)
                        written += 1
                shown += list(pixels[: IN_GRID - len(shown)])
                progress.update(len(pixels))
    except KeyboardInterrupt:
        print(f"{written} of {len(captions)} pictures are in {out}" if written else "no picture was finished")
        raise
    if out is None:
        return
    grid = np.stack(shown)
    if pipeline.config.condition.kind == "layout":
        from contextdiff_jax.evaluate.conditions import with_boxes

        grid = with_boxes(grid, prompts[: len(grid)])
    caption_grid(grid, captions[: len(grid)], out / GRID)
    which = "all of them" if len(grid) == len(captions) else f"the first {len(grid)}"
    print(f"{len(captions)} pictures in {out}; {which} with their captions: {out / GRID}")


def asked_for(config: ConfigDict, options: Options) -> list[str] | int:
    """Every prompt as often as asked; for a model that takes no prompt, how many pictures.

    Raises:
        UserError: no prompt, an empty one, a negative number, or prompts where none are taken.
    """
    from contextdiff_jax.pipeline.requests import check_prompts, read_layouts

    if options.num_samples < 0:
        raise UserError(f"--num_samples={options.num_samples} is negative; give how many pictures of each prompt")
    prompts = list(options.prompts) + read_prompts(options.prompts_file)
    if config.condition.kind == "layout":
        if prompts:
            raise UserError("--prompt is given, but this model draws layouts; use --layout=FILE.json instead")
        return [layout for layout in read_layouts(options.layout) for _ in range(options.num_samples or 1)]
    if options.layout:
        raise UserError("--layout is given, but config.condition.kind is no 'layout'; use --prompt instead")
    if config.condition.kind != "none":
        check_prompts(prompts)
        return [prompt for prompt in prompts for _ in range(options.num_samples or 1)]
    if prompts:
        raise UserError("--prompt is given, but config.condition.kind='none' takes none; use --num_samples=16 instead")
    return options.num_samples or 16


def make_folder(path: Path, flag: str = "--out") -> Path:
    """Makes an output folder, and tries to write there, before the work that fills it.

    Raises:
        UserError: that cannot be done.
    """
    check_writable(path, "output folder", f"give another {flag}")
    path.mkdir(parents=True, exist_ok=True)
    return path


def unused(path: Path) -> Path:
    """The path itself, or with -2, -3, ... behind it: earlier pictures stay."""
    candidates = (path.with_name(f"{path.name}-{i}") for i in itertools.count(2))
    return path if not path.exists() else next(c for c in candidates if not c.exists())


def read_prompts(path: str) -> list[str]:
    """The lines of a text file; "" reads nothing.

    Raises:
        UserError: the file is missing or no text, or has an empty line before its end.
    """
    if not path:
        return []
    if not Path(path).exists():
        raise UserError(f"prompts file {path!r} does not exist; give a text file with one prompt per line")
    lines = text_lines(read_text(path).rstrip())
    for i, line in enumerate(lines):
        if not line.strip():
            raise UserError(f"{path} line {i + 1} is empty; every line is one prompt")
    return lines


def evaluate(config: ConfigDict, options: Options) -> None:
    """Writes eval.json, report.png and report.html into the workdir, or beside what is no run, and prints the table."""
    from contextdiff_jax.evaluate.suite import evaluate_run
    from contextdiff_jax.pipeline.places import home_of
    from contextdiff_jax.training.distributed import together

    home = home_of(options.workdir)
    with together():  # before a model is read
        check_writable(home, "output folder", "give another --workdir")
    pipeline = _pipeline(config, options)
    with together():
        make_folder(home, "--workdir")
    evaluate_run(pipeline, home, seed=options.seed)
    write_page(home)


def export(config: ConfigDict, options: Options) -> None:
    """Writes what a user keeps of a training into --out."""
    from contextdiff_jax.pipeline.places import home_of

    out = options.out or str(home_of(options.workdir) / "export")
    check_writable(Path(out), "output folder", "give another --out")
    if config.task == "diffusion":
        from contextdiff_jax.pipeline import export as export_lib

        _check_alone("--mode=export", "run it in one")
        pipeline = _pipeline(config, options)
        export_lib.write(pipeline.task, pipeline.params, pipeline.step, out, options.half)
        print(f"step {pipeline.step} exported to {out}; read it with contextdiff_jax.Pipeline.load({out!r})")
        return
    if options.half:
        raise UserError(f"--half is for diffusion models; config.task is {config.task!r}")
    from contextdiff_jax import task as task_lib
    from contextdiff_jax.training import checkpoint
    from contextdiff_jax.training.workdir import check_same_model

    task = task_lib.build(config)
    params, saved, step = checkpoint.load_params(options.workdir, step=options.step)
    check_same_model(saved, config, options.workdir)
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

    bench_adapter(config, make_folder(Path(options.workdir), "--workdir"))


def metrics(options: Options) -> None:
    """Measures a set of pictures against another, or writes the statistics of one."""
    from contextdiff_jax import training
    from contextdiff_jax.evaluate.measure_command import measure_on_command

    training.initialize_distributed(options.coordinator, options.num_processes, options.process_id)
    measure_on_command(
        options.images,
        options.reference,
        options.features or ("efficientnet",),
        crop=options.crop,
        captions=options.captions,
        out=options.out,
        prefix=options.caption_prefix,
    )


def plan(config: ConfigDict, options: Options) -> None:
    """Prints what one training step needs on a topology, or on this machine."""
    from contextdiff_jax.plan import plan as make_plan

    where = options.topology or "this machine"
    print(f"compiling the training step for {where}; a large model takes many minutes", file=sys.stderr, flush=True)
    for line in make_plan(config, options.topology).lines():
        print(line)


def study(options: Options) -> None:
    """Makes the page of a user study, or says what its answers say."""
    from contextdiff_jax.evaluate.study_page import study_on_command

    study_on_command(options.out, options.sets, options.answers, source=options.source, captions=options.captions)


def heatmaps(config: ConfigDict | None, options: Options) -> None:
    """Draws prompts with a heatmap of each word, with the adapter on and off; of a run tuned on a clip, the clip."""
    from contextdiff_jax.evaluate.heat_pictures import write_heatmaps
    from contextdiff_jax.pipeline.places import check_place, home_of

    home = home_of(options.workdir)
    place = check_place(options.out, home / "heatmaps")
    pipeline = _pipeline(config, options)
    if pipeline.config.condition.kind != "text":
        kind = pipeline.config.condition.kind
        raise UserError(f"--mode=heatmaps shows where words look, but config.condition.kind={kind!r} has no words")
    of_a_clip = pipeline.config.data.source == "clip"
    if of_a_clip and (options.prompts or options.prompts_file or options.num_samples):
        raise UserError("--prompt cannot act: of a run that was tuned on a clip, the clip's own prompt is shown")
    prompts = [] if of_a_clip else asked_for(pipeline.config, options)
    out = make_folder(place if options.out else unused(place))
    about = write_heatmaps(pipeline, prompts, out, key=options.seed)
    for name, row in about["shares"].items():
        share, mask = (f"{row[k]:.3f} +- {row[k + '_stderr']:.3f}" for k in ("heat_in_mask", "mask_of_picture"))
        print(f"{name:40s} {share} of the heat on the object, which is {mask} of the picture  (n = {row['n']})")
    print(f"{len(about['pictures'])} pictures and heatmaps.json in {out}")
    if not options.out and (home / "config.json").is_file():
        write_page(home)


def compare(options: Options) -> None:
    """Writes one page of several runs with their paired differences."""
    from contextdiff_jax.evaluate.pages import compare_on_command

    compare_on_command(options.runs, options.out)


def app(options: Options) -> None:
    """Serves a page to try a model on."""
    from contextdiff_jax.app import serve

    serve(options.model or SHIPPED, options.host, options.port)


WITHOUT_CONFIG = {"metrics": metrics, "study": study, "compare": compare, "app": app}
OWN_CONFIG = ("sample", "edit", "heatmaps")  # modes to which a trained model's own config will do
MODES = {
    "train": train,
    "sample": sample,
    "edit": edit,
    "heatmaps": heatmaps,
    "eval": evaluate,
    "export": export,
    "bench": bench,
    "encode": encode,
    "plan": plan,
}
