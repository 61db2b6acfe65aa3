"""The modes that judge: a model, sets of pictures, answers of people, several runs side by side."""

from ml_collections import ConfigDict

from contextdiff_jax.command_line import shared
from contextdiff_jax.command_line.options import Options
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import check_writable


def evaluate(config: ConfigDict | None, options: Options) -> None:
    """Writes eval.json, report.png and report.html into the workdir, or beside what is no run, and prints the table.

    Args:
        config: None takes the model's own.
        options: of the command line.
    """
    from contextdiff_jax.evaluate.suite import evaluate_run
    from contextdiff_jax.pipeline.places import home_of
    from contextdiff_jax.training.distributed import together

    home = home_of(options.workdir)
    with together():  # before a model is read
        check_writable(home, "output folder", "give another --workdir")
    pipeline = shared.pipeline_of(config, options)
    if config is None and "eval" not in pipeline.config:
        raise UserError(
            f"the model {options.workdir} does not say how it is to be evaluated; add --config, such as "
            f"--config=configs/t2i.py:sd --config.model.pretrained={options.workdir}"
        )
    with together():
        shared.make_folder(home, "--workdir")
    evaluate_run(pipeline, home, seed=options.seed)
    shared.write_page(home)


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


def study(options: Options) -> None:
    """Makes the page of a user study, or says what its answers say."""
    from contextdiff_jax.evaluate.study_page import study_on_command

    study_on_command(options.out, options.sets, options.answers, source=options.source, captions=options.captions)


def compare(options: Options) -> None:
    """Writes one page of several runs with their paired differences."""
    from contextdiff_jax.evaluate.pages import compare_on_command

    compare_on_command(options.runs, options.out)
