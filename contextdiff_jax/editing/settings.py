"""What the config's section `edit` accepts."""

import math

from ml_collections import ConfigDict

from contextdiff_jax.errors import UserError
from contextdiff_jax.keys import Values, are

VALUES = Values(
    choices={
        "edit.inversion_prompt": ("source", "empty"),
        "edit.alignment": ("refine", "replace", "none"),
        "edit.mask": ("attention", "outside", "clip", "around"),
        "edit.mask_scale": ("maximum", "range"),
    },
    not_negative="edit.equalize_added edit.rate",
    fractions="edit.cross_replace_steps edit.self_replace_steps edit.mask_threshold",
    whole="edit.mask_resolution edit.max_tokens",
    listed="edit.latent_blend edit.cross_replace_words edit.equalizer edit.blend_words",
    needed="""
        edit.inversion_prompt edit.alignment edit.cross_replace_steps edit.cross_replace_words edit.self_replace_steps
        edit.equalizer edit.self_blend edit.latent_blend edit.blend_words edit.mask edit.mask_threshold
        edit.mask_resolution edit.max_tokens edit.control
    """,
)


def check(config: ConfigDict) -> None:
    """What editing would otherwise find out after tuning.

    Raises:
        UserError: names the keys, their values and the remedy.
    """
    if "edit" not in config:
        return
    if config.data.source != "clip":
        raise UserError(
            f"config.data.source={config.data.source!r} beside a section `edit`, which is for clips: of a model that "
            "was tuned on none a config for clips is for --mode=edit alone; give its own, or data.source='clip'"
        )
    if config.model.backbone != "sd" or config.data.num_frames < 2:
        raise UserError(
            f"config.model.backbone={config.model.backbone!r} with config.data.num_frames={config.data.num_frames} "
            "edits no clip; it takes 'sd' and 2 or more"
        )
    for key in ("mask_resolution", "max_tokens"):
        if config.edit[key] < 1:
            raise UserError(f"config.edit.{key}={config.edit[key]} must be 1 or more")
    _check_clip(config.data)
    for key in {"prompts", "blend_words"} & set(config.edit):  # a caller's prompts are no setting
        if isinstance(config.edit[key], str) or not are(config.edit[key], str):
            raise UserError(f"config.edit.{key}={config.edit[key]!r} must hold texts, e.g. ('a frog',)")
    blend = tuple(config.edit.latent_blend)
    if blend and (len(blend) != 2 or not are(blend, int | float) or not 0 <= blend[0] <= blend[1] <= 1):
        raise UserError(f"config.edit.latent_blend={blend} is not (from, to) with 0 <= from <= to <= 1, or () for none")
    for key, largest in (("equalizer", math.inf), ("cross_replace_words", 1.0)):
        for pair in config.edit[key]:
            if not _is_word_and_number(pair):
                raise UserError(f"config.edit.{key}={config.edit[key]!r} must hold pairs (word, number)")
            if not (math.isfinite(pair[1]) and 0 <= pair[1] <= largest):
                accepted = "0 to 1" if largest == 1 else "0 or more, and finite"
                raise UserError(f"config.edit.{key}: {pair[1]} for the word {pair[0]!r}; accepted: {accepted}")


def _check_clip(data: ConfigDict) -> None:
    """What is said of a clip's files and length."""
    if data.length and data.length < data.num_frames:
        raise UserError(
            f"config.data.length={data.length} is less than the config.data.num_frames={data.num_frames} that the "
            "network takes at once; accepted: 0 for as many, or more"
        )
    of_files = dict(mask_path="", flow_path="", start=0, crop=(0, 0, 0, 0))
    for key, at_rest in of_files.items():
        given = tuple(data[key]) if key == "crop" else data[key]
        if given != at_rest and not data.path:
            raise UserError(
                f"config.data.{key}={given!r} cannot act: without config.data.path the clip is an embedded one, with "
                "its own masks and motion; leave it out, or give a path"
            )


def _is_word_and_number(pair: object) -> bool:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        return False
    return isinstance(pair[0], str) and are(pair[1:], int | float)
