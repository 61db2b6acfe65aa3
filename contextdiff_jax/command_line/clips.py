"""The mode that edits clips."""

import json
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from contextdiff_jax import config as config_lib
from contextdiff_jax.command_line import shared
from contextdiff_jax.command_line.options import Options
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import check_writable, read_object, whole_folder
from contextdiff_jax.keys import whole_paths


def edit(config: ConfigDict | None, options: Options, kept: Any = None) -> None:
    """Edits the clip that a run was tuned on, or with any other model the clip of a config, under any prompts, and
    writes pictures, videos and figures.

    Args:
        config: None takes the run's own.
        options: of the command line.
        kept: what `clip_editing.check` returned, which has said already what cannot be edited; None asks again.
    """
    from contextdiff_jax.pipeline.places import home_of

    shared.check_alone("--mode=edit", "run it in one")
    check_out(options, home := home_of(options.workdir))
    from contextdiff_jax.data.one_clip import check_identity, keep_identity
    from contextdiff_jax.pipeline import clip_editing

    if config is not None and "edit" not in config:
        raise UserError("--mode=edit takes the config of an edit: --config=configs/video_edit.py")
    if config is None or clip_editing.is_tuned(options.workdir):
        pipeline = shared.pipeline_of(config, options)
    else:
        pipeline = shared.pipeline_of(None, options, config)
    if tuned := pipeline.config.data.source == "clip":
        editor, targets = _of_a_tuned_run(pipeline, config, options, kept)
        check_identity(editor.clip, home)
    else:
        editor, targets = _of_any_model(pipeline, config, options)
    if kept is None:  # whatever is wrong leaves no folder
        editor.check(targets)
    if tuned:
        keep_identity(editor.clip, home)
    edited = editor.run(targets)
    out = _out(options, home)
    with whole_folder(out) as building:
        edited.write(building)
    print(edited.table())
    print(f"figures: {out / 'edit.json'}   picture: {out / 'edit.png'}   side by side: {out / 'edit.mp4'}")
    if kept is None and (home / "config.json").is_file():  # a training writes it at its end
        shared.write_page(home)


def with_model(config: ConfigDict, workdir: str) -> ConfigDict:
    """The config of an edit with what its model says already: a run that was tuned on a file its clip, where the config
    names none, and any other model itself. Of the model only the config is read.

    Raises:
        UserError: a config that lacks what is read, an export that is damaged, or no model of that name.
    """
    if "edit" not in config:
        return config
    from contextdiff_jax.pipeline import clip_editing

    config_lib.check_present(given := config_lib.with_later(config))
    own, result = clip_editing.tuned_on(workdir), given.copy_and_resolve_references()
    if own is None and not given.model.pretrained:
        result.model.pretrained = workdir
    elif own and own.get("path") and not given.data.path:
        result.data.path, result.data.index = own["path"], 0  # the number is an embedded clip's
    else:
        return config
    return result


def _of_a_tuned_run(pipeline: Any, config: ConfigDict | None, options: Options, kept: Any) -> tuple[Any, list[str]]:
    """What edits the clip of a run that was tuned on one, and the edited prompts."""
    from contextdiff_jax.data.one_clip import clip_of
    from contextdiff_jax.editing.editor import Editor, put_at_rest
    from contextdiff_jax.pipeline import clip_editing

    own = ConfigDict(pipeline.config.to_dict())
    if config is not None:
        own.data, own.preset = clip_editing.own_clip(own, config), config.preset
    targets, clip = clip_editing.targets_of(own, options.prompts), clip_of(own.data)
    if config is None:
        put_at_rest(pipeline.task, own, clip, targets, words=True)
    return Editor(pipeline.task, pipeline.params, pipeline.frozen, clip, own, kept=kept, tuned=True), targets


def _of_any_model(pipeline: Any, config: ConfigDict | None, options: Options) -> tuple[Any, list[str]]:
    """What edits a config's clip with a model that was tuned on none, and the edited prompts."""
    from contextdiff_jax.data.one_clip import clip_of
    from contextdiff_jax.pipeline import clip_editing

    if config is None:
        raise UserError(
            f"{options.workdir} was tuned on no clip, and names none; name one, and a method: "
            f"--config={clip_editing.recipe_for(pipeline.config)} --config.data.path=FILE "
            "--config.data.caption='what it shows'"
        )
    targets, clip = clip_editing.targets_of(config, options.prompts), clip_of(config.data)
    print(f"{options.workdir} was tuned on no clip: it edits this one as it is")
    if other := clip_editing.unread_model(pipeline.config, config, options.workdir):
        logging.warning("config.model.pretrained=%r is not read: %s edits the clip", other, options.workdir)
    return clip_editing.editor_as_it_is(pipeline, clip, config), targets


def _out(options: Options, home: Path) -> Path:
    """Where an edit is written: no earlier one is there."""
    return Path(options.out) if options.out else shared.unused(home / "edit")


def check_out(options: Options, home: Path) -> None:
    """Raises UserError where --out holds an earlier edit, or an edit cannot be written; without it, into `home`."""
    from contextdiff_jax.data.clips import encoder

    encoder()
    if (_out(options, home) / "edit.json").exists():
        raise UserError(
            f"--out={options.out} holds an edit (edit.json), which would be lost; give another --out, or remove it"
        )
    check_writable(_out(options, home), "output folder", "give another --out")


def is_made(config: ConfigDict, options: Options) -> bool:
    """Whether the training of this workdir is at its end, and --out holds the edit that follows it: of the same clip's
    prompt, under the same prompts, by the same method."""
    from contextdiff_jax.data.one_clip import clip_of
    from contextdiff_jax.editing.result import NO_EDITS
    from contextdiff_jax.pipeline import clip_editing
    from contextdiff_jax.training.workdir import folder_of, steps_in

    file = Path(options.out) / "edit.json"
    if not options.out or not file.is_file():
        return False
    if config.train.num_steps not in steps_in(folder_of(options.workdir)):
        return False
    config = whole_paths(config)
    made, method = read_object(file, "remove it"), config.edit.to_dict() | {"sample": config.sample.to_dict()}
    return (
        made.get("source_prompt") == clip_of(config.data).caption
        and set(made.get("rows", ())) - {*NO_EDITS} == set(clip_editing.targets_of(config, options.prompts))
        and made.get("method") == json.loads(json.dumps(method))
    )
