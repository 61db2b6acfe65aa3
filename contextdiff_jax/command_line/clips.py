"""The mode that edits the clip that a run was tuned on."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from contextdiff_jax.command_line import shared
from contextdiff_jax.command_line.options import Options
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import check_writable, whole_folder


def edit(config: ConfigDict | None, options: Options, kept: Any = None) -> None:
    """Edits the clip that a run was tuned on, under any prompts, and writes pictures, videos and figures.

    Args:
        config: None takes the run's own.
        options: of the command line.
        kept: what `clip_editing.check` returned, which has said already what cannot be edited; None asks again.
    """
    shared.check_alone("--mode=edit", "run it in one")
    check_out(options)
    its_own = config is None
    pipeline = shared.pipeline_of(None, options) if its_own else None
    config = pipeline.config if its_own else config
    if "edit" not in config:
        raise UserError("--mode=edit is for runs that were tuned on a clip: --config=configs/video_edit.py")
    from contextdiff_jax.data.one_clip import clip_of, keep_identity
    from contextdiff_jax.editing.editor import Editor, put_at_rest
    from contextdiff_jax.pipeline import clip_editing

    targets, clip = clip_editing.targets_of(config, options.prompts), clip_of(config.data)
    pipeline = pipeline or shared.pipeline_of(config, options)
    keep_identity(clip, options.workdir)
    if its_own:
        put_at_rest(pipeline.task, config, clip, targets)
    how = dict(kept=kept, tuned=True)
    editor = Editor(pipeline.task, pipeline.params, pipeline.frozen, clip, pipeline.config, **how)
    if kept is None:  # whatever is wrong leaves no folder
        editor.check(targets)
    edited = editor.run(targets)
    print(edited.table())
    out = _out(options)
    with whole_folder(out) as building:
        edited.write(building)
    print(f"figures: {out / 'edit.json'}   picture: {out / 'edit.png'}   side by side: {out / 'edit.mp4'}")
    if kept is None and (Path(options.workdir) / "config.json").is_file():  # a training writes it at its end
        shared.write_page(Path(options.workdir))


def _out(options: Options) -> Path:
    """Where an edit is written: no earlier one is there."""
    return Path(options.out) if options.out else shared.unused(Path(options.workdir) / "edit")


def check_out(options: Options) -> None:
    """Raises UserError where --out holds an earlier edit, or an edit cannot be written."""
    if (_out(options) / "edit.json").exists():
        raise UserError(
            f"--out={options.out} holds an edit (edit.json), which would be lost; give another --out, or remove it"
        )
    check_writable(_out(options), "output folder", "give another --out")
