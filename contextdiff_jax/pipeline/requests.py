"""What a user may ask of a model, checked before anything is compiled: prompts, seeds, sizes, pictures, options."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from contextdiff_jax import config as config_lib
from contextdiff_jax.conditions import ClassCondition, Condition, LayoutCondition
from contextdiff_jax.data.images import asked_for, fitted
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import read_json, user_path
from contextdiff_jax.pictures import to_uint8
from contextdiff_jax.samplers.settings import ELSEWHERE
from contextdiff_jax.types import Array

_LAYOUT = '[["frog", [0.1, 0.2, 0.5, 0.8]]]'
Prompts = str | int | Sequence[Any] | None
Picture = Image.Image | str | Path | np.ndarray
STRENGTH = 0.8  # how far a picture to start from is noised, unless that is said
# Of `Pipeline.sample`, beside the keys of the config's section `sample`; one of these has another name there.
_ARGUMENTS = ("key", "steps", "negative", "size", "image", "strength", "noise", "first", "on_step")
_ARGUMENT_OF = {"num_steps": "steps"}
_ARGUMENTS_ELSEWHERE = {
    "seed": "key",
    "generator": "key",
    "negative_prompt": "negative",
    "height": "size=(height, width)",
    "width": "size=(height, width)",
    "latents": "noise",
    "callback_on_step_end": "on_step",
    "num_images_per_prompt": "the prompt as many times: [prompt] * 4",
}


def root_key(key: int | Array) -> Array:
    """A jax key from a seed, or the key itself.

    Raises:
        UserError: several keys, or what is neither.
    """
    if isinstance(key, Array) and key.ndim:  # a key in jax's older form
        one = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
        key = jax.random.wrap_key_data(key) if (key.shape, key.dtype) == (one.shape, one.dtype) else key
    if isinstance(key, Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.ndim:
            raise UserError(f"key of shape {key.shape}: several keys; give one, from which each picture takes its own")
        return key
    if not is_whole(seed := plain(key)):
        raise UserError(f"key={key!r} is no seed; give a whole number from 0, or a key of jax.random.key")
    return jax.random.key(check_seed(seed))


def check_seed(seed: int) -> int:
    """The seed; outside 0..2**32-1 different seeds would silently give the same pictures."""
    if not 0 <= seed < 2**32:
        raise UserError(f"seed {seed} is outside 0..{2**32 - 1}")
    return int(seed)


def plain(value: Any) -> Any:
    """A number of numpy's or jax's as Python's own."""
    return value.item() if isinstance(value, np.generic | np.ndarray | Array) and not value.ndim else value


def is_whole(value: Any) -> bool:
    """Whether this is a whole number; True is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def listed(value: Any) -> Any:
    """What can be gone through only once as a list; all else as it is."""
    return list(value) if isinstance(value, Iterator) else value


def prompts_of(condition: Condition, prompts: Prompts) -> list[Any]:
    """What is asked for as a list, one entry per picture: texts, classes, layouts, or "" where nothing is taken.

    Raises:
        UserError: nothing, something empty, or something else than the model takes.
    """
    prompts = plain(listed(prompts))
    if not condition.takes_prompts:
        if not is_whole(count := prompts) or count < 1:
            raise UserError(f"prompts={prompts!r}: this model takes no prompt; pass how many pictures, e.g. 16")
        return [""] * count
    if isinstance(condition, LayoutCondition):
        return check_layouts(prompts)
    if isinstance(condition, ClassCondition) and not isinstance(prompts, str | None):
        prompts = [_class_name(condition, plain(p)) for p in np.atleast_1d(np.asarray(prompts, object))]
    prompts = [prompts] if isinstance(prompts, str) else prompts
    if not isinstance(prompts, Iterable):
        wanted = "classes, by name or number" if isinstance(condition, ClassCondition) else "texts"
        raise UserError(f"prompts={prompts!r}: this model draws what it is asked for; pass one or several {wanted}")
    check_prompts(prompts := list(prompts))
    return prompts


def _class_name(condition: ClassCondition, asked: Any) -> str:
    """A number is a class's number, even where a class is called like one; all else is its name."""
    return condition.name_of(asked) if is_whole(asked) else str(asked)


def check_prompts(prompts: Sequence[str]) -> None:
    """Refuses an empty list, blank prompts and what is no text."""
    if not prompts:
        raise UserError("no prompt given; pass at least one, e.g. --prompt='a red apple on a blue background'")
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str) or not prompt.strip():
            what = "is empty" if isinstance(prompt, str) else "is no text"
            raise UserError(f"prompt {i + 1} of {len(prompts)} {what} ({prompt!r}); describe what to draw")


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
    file = user_path(path)  # --layout=~/lay.json reaches us as it is
    if not file.is_file():
        raise UserError(f"layout file {path!r} does not exist; give a JSON file like {_LAYOUT}")
    try:
        layouts = read_json(file, f"give a list like {_LAYOUT}")
    except OSError as error:
        raise UserError(f"layout file {path!r} cannot be read ({error})") from error
    return check_layouts(layouts)


def negatives_of(condition: Condition, negative: Any, count: int, guided: bool) -> list[str] | None:
    """What each picture's guidance moves away from; None where that is not said.

    Raises:
        UserError: it cannot act, or does not fit the prompts.
    """
    if negative is None:
        return None
    if not condition.takes_prompts:
        raise UserError(f"negative={negative!r}: this model takes no prompt, and so none to avoid; leave it out")
    if isinstance(condition, LayoutCondition):
        raise UserError(f"negative={negative!r}: guidance of layouts moves away from the empty one; leave it out")
    if not guided:
        raise UserError(f"negative={negative!r} cannot act without guidance; set guidance above 1, e.g. 3")
    one = isinstance(negative, str) or not isinstance(negative, Iterable)
    negatives = [negative] * count if one else list(negative)
    if len(negatives) != count:
        raise UserError(f"{len(negatives)} negative prompts for {count} prompts; give one for all, or one for each")
    if isinstance(condition, ClassCondition):
        negatives = [_class_name(condition, plain(asked)) for asked in negatives]
    if not all(isinstance(text, str) for text in negatives):
        raise UserError(f"negative={negative!r}: negative prompts are texts")
    condition.read(negatives)
    return negatives


def elsewhere(name: str) -> str:
    """What an option of other libraries is called here; "" where it has no counterpart."""
    key = ELSEWHERE.get(name, "")
    here = _ARGUMENT_OF.get(key, key) or _ARGUMENTS_ELSEWHERE.get(name)
    return f"here it is {here}" if here else ""


def kind_of(value: Any) -> str:
    """What an option must be, whose present value this is, in words."""
    kinds = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}
    return next((words for kind, words in kinds.items() if isinstance(value, kind)), f"like {value!r}")


def section_of(config: ConfigDict, options: dict[str, Any], **unless_given: Any) -> ConfigDict:
    """A config's `sample` section under a caller's options, checked; of those None takes the model's own.

    Raises:
        UserError: an unknown option, or a value that is not accepted or cannot act.
    """
    config = ConfigDict(config.to_dict())
    config.sample.update(unless_given)
    for name, value in options.items():
        if name not in config.sample:
            hint = elsewhere(name) or f"accepted: {', '.join((*_ARGUMENTS, *sorted(config.sample)))}"
            raise UserError(f"sampling option {name}={value!r} is unknown; {hint}")
        if value is None:
            continue
        try:
            config.sample[name] = plain(value)
        except TypeError as error:
            wanted, said = kind_of(config.sample[name]), _ARGUMENT_OF.get(name, name)
            raise UserError(f"sampling option {said}={value!r} has the wrong type; it is {wanted}") from error
    check_adapter(config, options)
    asked = [name for name, value in options.items() if value is not None]
    config_lib.put_at_rest(config, [f"sample.{name}" for name in asked])
    config_lib.check(config)
    return config.sample


def check_adapter(config: ConfigDict, options: dict[str, Any]) -> None:
    """Refuses what asks for an adapter of a model that has none.

    Raises:
        UserError: it has none.
    """
    asked = options.get("adapter")
    if asked is not None and plain(asked) and not config.adapter.enabled:
        raise UserError("adapter=True cannot act: this model was trained without an adapter; leave it out")


def steps_of(steps: Any, overrides: dict[str, Any]) -> dict[str, Any]:
    """What is asked for under the key's own name, `num_steps`, of which `steps` is the short one.

    Raises:
        UserError: both are given.
    """
    if steps is not None and overrides.get("num_steps") is not None:
        both = f"steps={steps!r} and num_steps={overrides['num_steps']!r}"
        raise UserError(f"{both} are two names of the same; give one of them")
    return overrides if steps is None else overrides | {"num_steps": steps}


def strength_of(strength: float | None, num_steps: int, of_picture: bool) -> float:
    """The share of the steps that is taken: all of them, but from a picture on as much as is asked, or `STRENGTH`.

    Raises:
        UserError: none without a picture to start from; one that leaves no step, or asks for more than all.
    """
    if not of_picture:
        if strength is not None:
            raise UserError(f"strength={strength!r} cannot act without a picture to start from; give both or none")
        return 1.0
    share = STRENGTH if strength is None else plain(strength)
    is_number = isinstance(share, int | float) and not isinstance(share, bool)
    if not is_number or not 1 <= round(num_steps * share, 9) <= num_steps:
        default = ", which is taken where none is given," * (strength is None)
        raise UserError(f"strength={share!r}{default} of {num_steps} steps; accepted: {1 / num_steps:.3g} to 1")
    return share


def check_noise(noise: Any, count: int, shape: tuple[int, ...], of_picture: bool) -> np.ndarray:
    """Given x_T, float32 [count, *shape] of the model's space, such as an inversion ends in.

    Raises:
        UserError: another shape, other numbers, or a picture to start from beside it.
    """
    if of_picture:
        raise UserError("noise=... and image=... both say where to start; give one of them")
    array, expected = np.asarray(noise), (count, *shape)
    if array.shape != expected or not jnp.issubdtype(array.dtype, jnp.floating):
        what = f"{array.dtype} of shape {array.shape}"
        raise UserError(f"noise is {what}; give floats {expected}: one x_T per picture, in the model's space")
    if not np.isfinite(array).all():
        raise UserError("noise holds NaN or infinite values; give the last of what `invert` returns, or normal noise")
    return array.astype(np.float32)


def size_of(size: Any) -> Any:
    """(height, width) in Python's own numbers; what is no such pair the model refuses."""
    return tuple(plain(n) for n in size) if isinstance(size, Iterable) and not isinstance(size, str) else size


def read_size(text: str) -> tuple[int, int]:
    """(height, width) from "32x48".

    Raises:
        UserError: anything else.
    """
    found = re.fullmatch(r"(\d+)x(\d+)", text.strip())
    if not found:
        raise UserError(f"size {text!r} is not HEIGHTxWIDTH in pixels, e.g. 32x48")
    return int(found[1]), int(found[2])


def listed_pictures(image: Picture | Iterable[Picture]) -> list[Picture]:
    """One picture, or several, as a list.

    Raises:
        UserError: none, or what is no picture.
    """
    one = isinstance(image, str | Path | Image.Image) or (isinstance(image, np.ndarray | Array) and image.ndim < 4)
    if not one and not isinstance(image, Iterable):
        raise UserError(f"image={image!r} is no picture; give PIL images, paths, or arrays [height, width, 3]")
    images = [image] if one else list(image)
    if not images:
        raise UserError("no picture is given; give at least one")
    return images


def pictures(image: Picture | Iterable[Picture], count: int, size: tuple[int, int], channels: int) -> np.ndarray:
    """Pictures to start from, float32 [count, height, width, channels] in [-1, 1]; one given picture serves for all.

    Raises:
        UserError: another number of pictures, or one that cannot be read.
    """
    images = listed_pictures(image)
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
        if array.ndim != 3 or array.shape[-1] not in (1, 3) or not array.size:
            raise UserError(f"image of shape {array.shape}; give [height, width, 3]")
        if not any(jnp.issubdtype(array.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
            raise UserError(f"image of {array.dtype}; give uint8, or floats in [-1, 1]")
        if array.dtype != np.uint8 and (not np.isfinite(array).all() or np.abs(array).max() > 1.001):
            raise UserError(
                f"image with values from {array.min():g} to {array.max():g}; give uint8, or floats in [-1, 1]"
            )
        picture = Image.fromarray(to_uint8(array[None])[0])
    return fitted(picture, size).astype(np.float32) / 127.5 - 1.0
