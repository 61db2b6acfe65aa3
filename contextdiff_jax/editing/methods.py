"""The methods that ship, as data: values of a config's keys. Sources: ContextDiff (Table 8), FateZero, Tune-A-Video,
ControlVideo of Zhao et al. 2023, as their public code and configs have them.

Each method can be run with and without the adapter.
"""

from collections.abc import Sequence
from typing import Any

from contextdiff_jax.errors import UserError

Values = dict[str, Any]  # {"section.key": value}

# Nothing is controlled: the edited prompt alone. Every method changes some of these.
NOTHING: Values = {
    "edit.reconstruct": False,
    "edit.inversion_prompt": "source",
    "edit.alignment": "none",
    "edit.cross_replace_steps": 0.0,
    "edit.cross_replace_words": (),
    "edit.self_replace_steps": 0.0,
    "edit.equalizer": (),
    "edit.equalize_added": 1.0,
    "edit.self_blend": False,
    "edit.latent_blend": (),
    "edit.blend_words": (),
    "edit.mask": "attention",
    "edit.mask_threshold": 0.3,
    "edit.mask_scale": "maximum",
    "edit.mask_resolution": 16,
    "edit.max_tokens": 1024,
    "edit.control": "",
}

# What another method leaves as the run has it: it guided the tuning, or depends on the network's attention.
OF_THE_MODEL = ("edit.control", "edit.mask_scale", "edit.mask_threshold", "edit.mask_resolution", "edit.max_tokens")
# The attention of the model that ships is nearly flat: shares of the range find the object where shares of the maximum
# find all.
DEMO: Values = {"edit.mask_scale": "range", "edit.mask_threshold": 0.5}
DEMO_GUIDANCE = 3.0  # at most: more costs that small model its background

# One expression each, because one that finds nothing is an error, and the adapter may be switched off. The norm before
# attention over time is new, as that is; FateZero and Tune-A-Video leave it as it starts.
_OVER_TIME = "^adapter/|/attn_temporal/|/norm_temporal/|/temporal_out/"
_QUERIES = (_OVER_TIME + "|/attn[12]/query/|/temporal_(down|up)/",)
_NETWORK: Values = {
    "model.video.temporal_conv_rank": 160,
    "model.video.temporal_attention": "after",
    "model.video.key_frames": (-1, "first"),
    "train.trainable": _QUERIES,
    "train.num_steps": 200,
    "optim.lr": 1e-5,
}

METHODS: dict[str, Values] = {
    "contextdiff": {
        **_NETWORK,
        "sample.num_steps": 20,
        "sample.guidance": 7.5,
        "edit.alignment": "refine",
        "edit.cross_replace_steps": 0.5,
        "edit.self_replace_steps": 0.5,
        "edit.self_blend": True,
        "edit.latent_blend": (0.2, 0.8),
    },
    "fatezero": {
        **_NETWORK,
        "sample.num_steps": 50,
        "sample.guidance": 7.5,
        "edit.alignment": "refine",
        "edit.cross_replace_steps": 0.8,
        "edit.self_replace_steps": 0.8,
        "edit.self_blend": True,
        "edit.latent_blend": (0.2, 0.8),
    },
    "tune_a_video": {
        "data.num_frames": 24,
        "data.sampling_rate": 2,
        "model.video.temporal_attention": "after",
        "model.video.key_frames": ("first", -1),
        "train.trainable": (_OVER_TIME + "|/attn[12]/query/",),
        "train.num_steps": 500,
        "optim.lr": 3e-5,
        "sample.num_steps": 50,
        "sample.guidance": 12.5,
        "edit.inversion_prompt": "empty",
    },
    "controlvideo": {
        "model.video.temporal_attention": "parallel",
        "model.video.key_frames": ("first",),
        "train.trainable": (_OVER_TIME + "|/attn1/out/",),
        "train.num_steps": 300,
        "optim.lr": 3e-5,
        "sample.num_steps": 50,
        "sample.guidance": 12.0,
    },
    "inversion": {**_NETWORK, "sample.num_steps": 20, "sample.guidance": 1.0, "edit.reconstruct": True},
    "ddim": {**_NETWORK, "sample.num_steps": 20, "sample.guidance": 7.5},
}

# What FateZero's configs choose by the kind of edit. A method that fuses no attention does with a recipe.
_FUSED: Values = {"edit.alignment": "refine", "edit.inversion_prompt": "source"}
_UNMASKED: Values = {
    "edit.self_blend": False,
    "edit.latent_blend": (),
    "edit.blend_words": (),
    "edit.mask": "attention",
}
RECIPES: dict[str, Values] = {
    "style": {
        **_FUSED,
        "model.video.key_frames": ("mid",),
        "model.video.key_frames_min_channels": 640,
        "edit.cross_replace_steps": 0.8,
        "edit.self_replace_steps": 0.8,
        "edit.equalize_added": 10.0,
        **_UNMASKED,
    },
    "attribute": {
        **_FUSED,
        "model.video.key_frames": ("mid",),
        "model.video.key_frames_min_channels": 640,
        "edit.cross_replace_steps": 0.7,
        "edit.self_replace_steps": 0.5,
    },
    "shape": {
        **_FUSED,
        "edit.alignment": "replace",
        "edit.cross_replace_steps": 0.5,
        "edit.self_replace_steps": 0.5,
        "edit.self_blend": True,
        "edit.mask_threshold": 0.3,
    },
    # Ours: attention to the words of a background does not mark it, so nothing is kept apart by a mask.
    "background": {
        **_FUSED,
        "edit.cross_replace_steps": 0.5,
        "edit.self_replace_steps": 0.5,
        **_UNMASKED,
    },
}


def without_control(names: str, control: str) -> str:
    """What a method is left without that is guided by a ControlNet, where none is given; "" where nothing lacks.

    Args:
        names: of the method and its recipes, joined by "+".
        control: `edit.control`.
    """
    if control or "controlvideo" not in names.split("+"):
        return ""
    return "a ControlNet (edit.control): controlvideo is guided by one, and this is its attention over time alone"


def in_order(names: Sequence[str]) -> list[str]:
    """Names as they are applied, however they were asked for: a recipe changes a method.

    Raises:
        UserError: several methods, of which each would undo the other.
    """
    methods = [name for name in names if name in METHODS]
    if len(methods) > 1:
        raise UserError(f"{' and '.join(methods)} are methods, of which one is used; recipes are {', '.join(RECIPES)}")
    return methods + [name for name in names if name not in METHODS]


def values_of(method: str) -> Values | None:
    """All that a method or recipe says of `edit` and the rest; None for an unknown name."""
    if method in METHODS:
        return NOTHING | METHODS[method]
    return RECIPES.get(method)
