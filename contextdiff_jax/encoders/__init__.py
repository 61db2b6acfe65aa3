"""Frozen encoders of texts and images, read from the Hugging Face layouts."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax import parameters
from contextdiff_jax.encoders import clip as clip_lib
from contextdiff_jax.encoders import t5 as t5_lib
from contextdiff_jax.encoders.text import T5, ClipText, TextEncoder, clip_length
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import read_object, write_json
from contextdiff_jax.formats import hub, pretrained
from contextdiff_jax.formats.kinds import check
from contextdiff_jax.formats.tokenizers import has_tokenizer, trained_length
from contextdiff_jax.types import Array, Context, Params

ASSETS = Path(__file__).parent.parent / "assets"
BUILTIN = "builtin:"
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
_SWITCHES = ("do_rescale", "do_normalize")
T5_LENGTH = 512  # of the texts that T5 was trained with


@flax.struct.dataclass
class ImageFeatures:
    """What an image tower says of a batch.

    Attributes:
        tokens: patch features without the class token, [B, h * w, D].
        pooled: projected class feature, [B, P].
        grid: (h, w), static.
    """

    tokens: Array
    pooled: Array
    grid: tuple[int, int] = flax.struct.field(pytree_node=False)


@dataclasses.dataclass(frozen=True)
class Clip(TextEncoder):
    """A CLIP model with its parameters beside it: every function takes the parameters as an argument.

    Attributes:
        config: sizes.
        params: tree of arrays.
        tokenizer_dir: folder of the tokenizer.
        mean, std: of the image normalisation.
        dtype: type of the computation.
    """

    config: clip_lib.CLIPConfig
    params: Params
    tokenizer_dir: Path
    mean: tuple[float, ...] = OPENAI_MEAN
    std: tuple[float, ...] = OPENAI_STD
    dtype: jnp.dtype = jnp.float32

    names = staticmethod(clip_lib.tensor_name)
    ignore = ("position_ids$",)

    @classmethod
    def create(cls, config: clip_lib.CLIPConfig, key: Array, tokenizer_dir: str | Path) -> "Clip":
        """A freshly initialised model."""
        model = cls(config, None, Path(tokenizer_dir))
        return dataclasses.replace(model, params=jax.device_get(jax.jit(model.init)(key)))

    @functools.cached_property
    def max_length(self) -> int:
        """Tokens per text."""
        return clip_length(self.tokenizer_dir, self.config.max_position_embeddings)

    @property
    def module(self) -> clip_lib.CLIPModel:
        """The Linen module."""
        return clip_lib.CLIPModel(self.config, self.dtype)

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the image tokens."""
        side = self.config.image_size // self.config.patch_size
        return side, side

    def init(self, key: Array) -> Params:
        """Fresh parameters; pure."""
        tokens = jnp.zeros((1, self.config.max_position_embeddings), jnp.int32)
        size = self.config.image_size
        return parameters.init(self.module, key, tokens, jnp.zeros((1, size, size, 3)))

    def encode_text(self, params: Params, tokens: Array, token_mask: Array) -> Context:
        """tokens int32 [B, L], token_mask bool [B, L] -> Context (last layer, normed; projected end)."""
        features, pooled = self.module.apply({"params": params}, tokens, method="encode_text")
        return Context(tokens=features, pooled=pooled, mask=token_mask)

    def encode_image(self, params: Params, images: Array) -> ImageFeatures:
        """images [B, H, W, 3] in [-1, 1], any size -> ImageFeatures; differentiable in the images."""
        pixels = clip_lib.preprocess(images, self.config, jnp.array(self.mean), jnp.array(self.std))
        hidden, pooled = self.module.apply({"params": params}, pixels, method="encode_image")
        return ImageFeatures(tokens=hidden[:, 1:], pooled=pooled, grid=self.grid)

    def save(self, folder: str | Path, params: Params, dtype: Any = np.float32) -> None:
        """Writes the model in the Hugging Face layout: weights, config, tokenizer and image preprocessing."""
        super().save(folder, params, dtype)
        size = {"height": self.config.image_size, "width": self.config.image_size}
        preprocessor = dict(
            image_processor_type="CLIPImageProcessor",
            crop_size=size,
            size={"shortest_edge": self.config.image_size},
            image_mean=self.mean,
            image_std=self.std,
            resample=3,
        )
        write_json(preprocessor, Path(folder) / "preprocessor_config.json")


def _builtin(name: str) -> Path:
    """Folder of a CLIP model that ships with the package."""
    shipped = sorted(path.parent.name for path in ASSETS.glob("clip*/model.safetensors"))
    if name not in shipped:
        names = ", ".join(BUILTIN + s for s in shipped) or "none"
        raise UserError(f"built-in CLIP {BUILTIN + name!r} does not exist; shipped: {names}")
    return ASSETS / name


def located(path: str) -> str:
    """The folder of "builtin:NAME", a model that ships with the package; any other path as it is.

    Raises:
        UserError: none of that name ships.
    """
    if not path.startswith(BUILTIN):
        return path
    folder = ASSETS / path.removeprefix(BUILTIN)
    if not folder.is_dir():
        # Whole models: encoders and judges ship beside them, and what is no model.
        shipped = ", ".join(BUILTIN + index.parent.name for index in sorted(ASSETS.glob("*/contextdiff.json")))
        raise UserError(f"model {path!r} does not ship; shipped: {shipped}")
    return str(folder)


def folder_of(path: str | Path) -> Path:
    """Where a model lies: one that ships with the package, a cached one by its name on the hub, or a folder."""
    return Path(located(str(path))) if str(path).startswith(BUILTIN) else hub.local(path)


def load_clip(
    path: str | Path,
    dtype: jnp.dtype = jnp.float32,
    tokenizer_dir: str | Path | None = None,
    *,
    shardings: Callable[[Params], Any] | None = None,
    param_dtype: Any = np.float32,
    weights: bool = True,
) -> Clip:
    """Reads a CLIP model of both towers.

    Args:
        path: a folder in the Hugging Face layout, the hub's name of a cached model, or "builtin:NAME" for one that
            ships with the package.
        dtype, tokenizer_dir, shardings, param_dtype, weights: as for `load_text_encoder`.

    Raises:
        UserError: no such folder, not a CLIP model, weights that do not fit.
    """
    folder = _clip_folder(path)
    return _clip(folder, dtype, tokenizer_dir).read(folder, shardings, param_dtype, weights)


def _clip_folder(path: str | Path) -> Path:
    name = str(path)
    return _builtin(name.removeprefix(BUILTIN)) if name.startswith(BUILTIN) else hub.local(path)


def _clip(folder: Path, dtype: jnp.dtype, tokenizer_dir: str | Path | None) -> Clip:
    """A CLIP model as its files describe it, without parameters."""
    config = clip_lib.CLIPConfig.from_dict(pretrained.read_config(folder))
    mean, std = _normalisation(folder / "preprocessor_config.json")
    return Clip(config, None, Path(tokenizer_dir or folder), mean, std, dtype)


def _normalisation(path: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation by which images of 0 to 1 are normalised; OpenAI's where no file says another.

    Sizes and crops of the file do not matter: images of any size are brought to the model's.
    """
    image = read_object(path) if path.is_file() else {}
    kinds = dict.fromkeys(("image_mean", "image_std"), tuple[float, ...]) | dict.fromkeys(_SWITCHES, bool)
    check(f"{path}:", image, kinds | dict(rescale_factor=float))
    if not image.get("do_rescale", True) or abs(image.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        raise UserError(f"{path}: only do_rescale=true by rescale_factor=1/255 is supported; images are bytes")
    if not image.get("do_normalize", True):
        return (0.0,) * 3, (1.0,) * 3
    mean, std = tuple(image.get("image_mean", OPENAI_MEAN)), tuple(image.get("image_std", OPENAI_STD))
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise UserError(f"{path}: image_mean={mean} and image_std={std} must be three numbers each, the latter above 0")
    return mean, std


def load_text_encoder(
    path: str | Path,
    dtype: jnp.dtype = jnp.float32,
    tokenizer_dir: str | Path | None = None,
    *,
    max_length: int | None = None,
    shardings: Callable[[Params], Any] | None = None,
    param_dtype: Any = np.float32,
    weights: bool = True,
) -> TextEncoder:
    """Reads a text encoder: CLIP, CLIP's text tower alone, or the encoder of T5, as config.json says.

    Args:
        path: a folder in the Hugging Face layout, the hub's name of a cached model, or "builtin:NAME" for a CLIP that
            ships with the package.
        dtype: type of the computation.
        tokenizer_dir: folder of the tokenizer. None takes `path`, or for a pipeline's `text_encoder` its `tokenizer`.
        max_length: tokens per text, for T5 only. None takes the tokenizer's own, or 512.
        shardings: from a tree of shapes to a tree of shardings, where the parameters go as they are read. None gives
            numpy arrays.
        param_dtype: type of the parameters.
        weights: whether to read the parameters; else they are float32 shapes.

    Raises:
        UserError: no such folder, another kind of model, weights that do not fit, or a length that cannot be.
    """
    model = described(path, dtype, tokenizer_dir, max_length=max_length)
    return model.read(_clip_folder(path), shardings, param_dtype, weights)


def described(
    path: str | Path,
    dtype: jnp.dtype = jnp.float32,
    tokenizer_dir: str | Path | None = None,
    *,
    max_length: int | None = None,
) -> TextEncoder:
    """A text encoder as its files describe it, without parameters; arguments and errors as `load_text_encoder`."""
    folder = _clip_folder(path)
    config = pretrained.read_config(folder)
    kind = config.get("model_type")
    if max_length is not None and (kind != "t5" or max_length < 1):
        raise UserError(f"max_length={max_length}: only T5 has a choice, and it takes 1 or more; leave it out")
    if kind == "clip":
        return _clip(folder, dtype, tokenizer_dir or _find_tokenizer(folder))
    tokenizer_dir = Path(tokenizer_dir) if tokenizer_dir else _find_tokenizer(folder)
    if kind == "clip_text_model":
        return ClipText(clip_lib.CLIPTextConfig.from_dict(config), None, tokenizer_dir, dtype)
    if kind == "t5":
        length = max_length or trained_length(tokenizer_dir) or T5_LENGTH
        return T5(t5_lib.T5Config.from_dict(config), None, tokenizer_dir, length, dtype)
    raise UserError(
        f"{str(path)!r} holds a model of type {kind!r}; text encoders are clip, clip_text_model (the text_encoder "
        "folder of a pipeline) and t5"
    )


def _find_tokenizer(folder: Path) -> Path:
    """The folder itself, or beside `text_encoder` or `text_encoder_2` the folder `tokenizer` or `tokenizer_2`."""
    beside = folder.resolve().parent / folder.resolve().name.replace("text_encoder", "tokenizer")
    return beside if not has_tokenizer(folder) and has_tokenizer(beside) else folder
