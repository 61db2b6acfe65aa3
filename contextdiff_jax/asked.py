"""What a user may ask of a model, checked before anything is compiled: prompts, seeds, sizes, pictures."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from contextdiff_jax.conditions import ClassCondition, Condition, LayoutCondition
from contextdiff_jax.data.images import asked_for, fitted
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import read_json
from contextdiff_jax.pictures import to_uint8
from contextdiff_jax.types import Array

_LAYOUT = '[["frog", [0.1, 0.2, 0.5, 0.8]]]'
Prompts = str | int | Sequence[Any] | None
Picture = Image.Image | str | Path | np.ndarray


def root_key(key: int | Array) -> Array:
    """A jax key from a seed, or the key itself."""
    return jax.random.key(check_seed(key)) if isinstance(key, int | np.integer) else key


def check_seed(seed: int) -> int:
    """The seed; outside 0..2**32-1 different seeds would silently give the same pictures."""
    if not 0 <= seed < 2**32:
        raise UserError(f"seed {seed} is outside 0..{2**32 - 1}")
    return int(seed)


def plain(value: Any) -> Any:
    """A number of numpy's as Python's own."""
    return value.item() if isinstance(value, np.generic) else value


def prompts_of(condition: Condition, prompts: Prompts) -> list[Any]:
    """What is asked for as a list, one entry per picture: texts, classes, layouts, or "" where nothing is taken.

    Raises:
        UserError: nothing, something empty, or something else than the model takes.
    """
    if not condition.takes_prompts:
        if not isinstance(prompts, int | np.integer) or prompts < 1:
            raise UserError(f"prompts={prompts!r}: this model takes no prompt; pass how many pictures, e.g. 16")
        return [""] * int(prompts)
    if isinstance(condition, LayoutCondition):
        return check_layouts(prompts)
    if isinstance(condition, ClassCondition) and not isinstance(prompts, str | None):
        prompts = [_class_name(condition, plain(p)) for p in np.atleast_1d(np.asarray(prompts, object))]
    prompts = [prompts] if isinstance(prompts, str) else prompts
    if prompts is None or isinstance(prompts, int | np.integer):
        raise UserError(f"prompts={prompts}: this model draws what it is asked for; pass one or several texts")
    check_prompts(list(prompts))
    return list(prompts)


def _class_name(condition: ClassCondition, asked: Any) -> str:
    """A number is a class's number, even where a class is called like one; all else is its name."""
    is_number = isinstance(asked, int) and not isinstance(asked, bool)
    return condition.name_of(asked) if is_number else str(asked)


def check_prompts(prompts: Sequence[str]) -> None:
    """Refuses an empty list and blank prompts."""
    if not prompts:
        raise UserError("no prompt given; pass at least one, e.g. --prompt='a red apple on a blue background'")
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str) or not prompt.strip():
            raise UserError(f"prompt {i + 1} of {len(prompts)} is empty ({prompt!r}); describe what to draw")


def check_layouts(layouts: Any) -> list[Any]:
    """Layouts as a list, of one by itself as well; what is in them is checked by the condition.

    Raises:
        UserError: none, or something else than a list of lists.
    """
    asked = list(layouts) if isinstance(layouts, list | tuple) else []
    if not asked or not all(isinstance(layout, list | tuple) for layout in asked):
        raise UserError(
            f"layouts={layouts!r}: pass a list of layouts, e.g. [[('frog', (0.1, 0.2, 0.5, 0.9))]]; boxes "
            "(x0, y0, x1, y1) are fractions of the sides"
        )
    # One layout by itself: its first entry is a class and its box, or means to be.
    return [asked] if asked[0] and not isinstance(asked[0][0], list | tuple) else asked


def read_layouts(path: str) -> list[Any]:
    """The layouts of a JSON file: one, or a list of them.

    Raises:
        UserError: no file given, or one that is missing or no JSON.
    """
    if not path:
        raise UserError("this model draws layouts; give them in a file, --layout=FILE.json")
    if not Path(path).is_file():
        raise UserError(f"layout file {path!r} does not exist; give a JSON file like {_LAYOUT}")
    try:
        layouts = read_json(Path(path), f"give a list like {_LAYOUT}")
    except OSError as error:
        raise UserError(f"layout file {path!r} cannot be read ({error})") from error
    return check_layouts(layouts)


def check_strength(strength: float, num_steps: int) -> None:
    """Refuses a strength that leaves no step, or asks for more than all."""
    if not 1 <= num_steps * strength <= num_steps:
        raise UserError(f"strength={strength} of {num_steps} steps; accepted: {1 / num_steps:.3g} to 1")


def read_size(text: str) -> tuple[int, int]:
    """(height, width) from "32x48".

    Raises:
        UserError: anything else.
    """
    found = re.fullmatch(r"(\d+)x(\d+)", text.strip())
    if not found:
        raise UserError(f"size {text!r} is not HEIGHTxWIDTH in pixels, e.g. 32x48")
    return int(found[1]), int(found[2])


def pictures(image: Picture | Sequence[Picture], count: int, size: tuple[int, int], channels: int) -> np.ndarray:
    """Pictures to start from, float32 [count, height, width, channels] in [-1, 1]; one given picture serves for all.

    Raises:
        UserError: another number of pictures, or one that cannot be read.
    """
    one = isinstance(image, str | Path | Image.Image) or (isinstance(image, np.ndarray | Array) and image.ndim < 4)
    images = [image] if one else list(image)
    if len(images) not in (1, count):
        raise UserError(f"{len(images)} images for {count} prompts; give one for all, or one for each")
    arrays = np.stack([as_array(picture, size) for picture in images])
    if channels == 1:
        arrays = arrays.mean(axis=-1, keepdims=True)
    return np.broadcast_to(arrays, (count, *arrays.shape[1:]))


def as_array(picture: Picture, size: tuple[int, int]) -> np.ndarray:
    """A picture as float32 [height, width, 3] in [-1, 1], upright, cropped to the centre and resized.

    Raises:
        UserError: a file that is not there or no image; an array of another shape or range.
    """
    if isinstance(picture, str | Path):
        return asked_for(picture, size).astype(np.float32) / 127.5 - 1.0
    if not isinstance(picture, Image.Image):
        array = np.asarray(picture)
        if array.ndim != 3 or array.shape[-1] not in (1, 3):
            raise UserError(f"image of shape {array.shape}; give [height, width, 3]")
        if array.dtype != np.uint8 and (not np.isfinite(array).all() or np.abs(array).max() > 1.001):
            raise UserError(
                f"image with values from {array.min():g} to {array.max():g}; give uint8, or floats in [-1, 1]"
            )
        picture = Image.fromarray(to_uint8(array[None])[0])
    return fitted(picture, size).astype(np.float32) / 127.5 - 1.0
