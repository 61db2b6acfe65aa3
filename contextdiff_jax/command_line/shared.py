"""What several modes need: the trained model, folders to write into, the page of a run."""

import itertools
from pathlib import Path

from ml_collections import ConfigDict

from contextdiff_jax.command_line.options import Options
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import check_writable


def pipeline_of(config: ConfigDict | None, options: Options, run_as: ConfigDict | None = None):
    """The trained model of the workdir, with this command line's `sample` and `eval` sections; without those it may run
    as a config of another model says."""
    from contextdiff_jax.pipeline import Pipeline, loading

    model = loading.find(options.workdir, step=options.step, ema=True, config=config)
    if run_as is not None:
        model = model._replace(config=loading.run_as(model.config, run_as))
    return Pipeline.of(model)


def check_alone(what: str, remedy: str) -> None:
    """Raises UserError where there are several processes, of which each would write the same files."""
    import jax

    if jax.process_count() > 1:
        raise UserError(f"{what} needs no other process, and there are {jax.process_count()}; {remedy}")


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
