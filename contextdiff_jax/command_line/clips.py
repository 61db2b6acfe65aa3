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
    check_out(options.out)
    pipeline = shared.pipeline_of(None, options) if config is None else None
    config = pipeline.config if config is None else config
    if "edit" not in config:
        raise UserError("--mode=edit is for runs that were tuned on a clip: --config=configs/video_edit.py")
    from contextdiff_jax.data.one_clip import clip_of, keep_identity
    from contextdiff_jax.editing.editor import Editor
    from contextdiff_jax.pipeline import clip_editing

    targets, clip = clip_editing.targets_of(config, options.prompts), clip_of(config.data)
    pipeline = pipeline or shared.pipeline_of(config, options)
    keep_identity(clip, options.workdir)
    editor = Editor(pipeline.task, pipeline.params, pipeline.frozen, clip, pipeline.config, kept=kept)
    if kept is None:  # whatever is wrong leaves no folder
        editor.check(targets)
    default = Path(options.workdir) / "edit"
    check_writable(Path(options.out) if options.out else default, "output folder", "give another --out")
    edited = editor.run(targets)
    print(edited.table())
    out = Path(options.out) if options.out else shared.unused(default)
    with whole_folder(out) as building:
        edited.write(building)
    print(f"figures: {out / 'edit.json'}   picture: {out / 'edit.png'}   side by side: {out / 'edit.mp4'}")
    if kept is None and (Path(options.workdir) / "config.json").is_file():  # a training writes it at its end
        shared.write_page(Path(options.workdir))


def check_out(out: str) -> None:
    """Raises UserError where --out holds an earlier edit."""
    if out and (Path(out) / "edit.json").exists():
        raise UserError(f"--out={out} holds an edit (edit.json), which would be lost; give another --out, or remove it")
