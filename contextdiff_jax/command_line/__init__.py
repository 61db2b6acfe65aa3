"""What the modes of the command line do, and one-line errors for what users can get wrong on it."""

import sys
from typing import NoReturn

from ml_collections import ConfigDict

from contextdiff_jax import config as config_lib
from contextdiff_jax.command_line import clips, drawing, judging, training
from contextdiff_jax.command_line.drawing import asked_for, read_prompts, sample
from contextdiff_jax.command_line.options import Options, checked
from contextdiff_jax.command_line.training import encode, train
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import refusals_in_words

__all__ = ["Options", "asked_for", "checked", "encode", "fail", "read_prompts", "run", "sample", "train"]
SHIPPED = "builtin:demo"  # what draws without a config and a workdir


def fail(error: Exception) -> NoReturn:
    """One line on standard error, exit status 2."""
    print("error: " + " ".join(str(error).split()), file=sys.stderr, flush=True)
    sys.exit(2)


@refusals_in_words()
def run(mode: str, config: ConfigDict | None, options: Options) -> None:
    """Checks flags and config, and dispatches on the mode; some take a model's own config (`OWN_CONFIG`)."""
    from contextdiff_jax.compilation import keep_programs
    from contextdiff_jax.training import initialize_distributed

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
        if mode == "edit":
            config = clips.with_model(config, options.workdir)
        config_lib.check(config)
        config = config_lib.with_later(config)
        if config.task != "diffusion" and mode not in ("train", "export", "plan"):
            accepted = "train, export, plan"
            raise UserError(f"--mode={mode} is for diffusion models; for config.task={config.task!r}: {accepted}")
    initialize_distributed(options.coordinator, options.num_processes, options.process_id)
    MODES[mode](config, options)


def app(options: Options) -> None:
    """Serves a page to try a model on."""
    from contextdiff_jax.app import serve

    serve(options.model or SHIPPED, options.host, options.port)


WITHOUT_CONFIG = {"metrics": judging.metrics, "study": judging.study, "compare": judging.compare, "app": app}
DRAWING = ("sample", "edit", "heatmaps")  # modes that draw with the model that ships, where none is named
OWN_CONFIG = (*DRAWING, "eval", "export")  # modes to which a trained model's own config will do
MODES = {
    "train": training.train,
    "sample": drawing.sample,
    "edit": clips.edit,
    "heatmaps": drawing.heatmaps,
    "eval": judging.evaluate,
    "export": training.export,
    "bench": training.bench,
    "encode": training.encode,
    "plan": training.plan,
}
