"""Frozen encoders of conditions and images, read from the Hugging Face layouts."""

import dataclasses
import functools
import re
import shutil
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.encoders import clip as clip_lib
from contextdiff_jax.encoders import pretrained
from contextdiff_jax.encoders.tokenizers import Tokenize, load_tokenizer
from contextdiff_jax.errors import UserError
from contextdiff_jax.types import Array, Context, Params

ASSETS = Path(__file__).parent.parent / "assets"
BUILTIN = "builtin:"
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)


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
class Clip:
    """A CLIP model with its parameters beside it: every function takes the parameters as an argument.

    Attributes:
        config: sizes.
        params: float32 numpy tree.
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

    @classmethod
    def create(cls, config: clip_lib.CLIPConfig, key: Array, tokenizer_dir: str | Path) -> "Clip":
        """A freshly initialised model."""
        model = cls(config, None, Path(tokenizer_dir))
        return dataclasses.replace(model, params=jax.device_get(jax.jit(model.init)(key)))

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
        return self.module.init(key, tokens, jnp.zeros((1, size, size, 3)))["params"]

    @functools.cached_property
    def tokenize(self) -> Tokenize:
        """texts -> {"tokens": int32 [n, L], "token_mask": bool [n, L]}."""
        return load_tokenizer(self.tokenizer_dir, self.config.max_position_embeddings)

    def null_tokens(self) -> dict[str, np.ndarray]:
        """The empty text, [1, L]."""
        return self.tokenize([""])

    def encode_text(self, params: Params, tokens: Array, token_mask: Array) -> Context:
        """tokens int32 [B, L], token_mask bool [B, L] -> Context (last layer, normed; projected end)."""
        features, pooled = self.module.apply({"params": params}, tokens, method="encode_text")
        return Context(tokens=features, pooled=pooled, mask=token_mask)

    def encode_image(self, params: Params, images: Array) -> ImageFeatures:
        """images [B, H, W, 3] in [-1, 1], any size -> ImageFeatures; differentiable in the images."""
        pixels = clip_lib.preprocess(images, self.config, jnp.array(self.mean), jnp.array(self.std))
        hidden, pooled = self.module.apply({"params": params}, pixels, method="encode_image")
        return ImageFeatures(tokens=hidden[:, 1:], pooled=pooled, grid=self.grid)

    def save(self, folder: str | Path, params: Params, dtype: jnp.dtype = np.float32) -> None:
        """Writes the model in the Hugging Face layout: weights, config, tokenizer and image preprocessing."""
        folder = Path(folder)
        pretrained.write_params(folder, params, tensor_name, self.config.to_dict(), dtype)
        size = {"height": self.config.image_size, "width": self.config.image_size}
        preprocessor = dict(
            image_processor_type="CLIPImageProcessor",
            crop_size=size,
            size={"shortest_edge": self.config.image_size},
            image_mean=self.mean,
            image_std=self.std,
            resample=3,
        )
        pretrained.write_json(preprocessor, folder / "preprocessor_config.json")
        for name in TOKENIZER_FILES:
            if (self.tokenizer_dir / name).is_file() and self.tokenizer_dir != folder:
                shutil.copyfile(self.tokenizer_dir / name, folder / name)


def tensor_name(path: str) -> str:
    """Our parameter path -> the name in a CLIP checkpoint."""
    name = re.sub(r"/layers_(\d+)/", r"/encoder/layers/\1/", path)
    name = re.sub(r"^(\w+)/((token|position|patch|class)_embedding)", r"\1/embeddings/\2", name)
    name = re.sub(r"/(kernel|embedding|scale)$", "/weight", name)
    return name.replace("/", ".")


def _builtin(name: str) -> Path:
    """Folder of a CLIP model that ships with the package."""
    shipped = sorted(path.parent.name for path in ASSETS.glob("clip*/model.safetensors"))
    if name not in shipped:
        names = ", ".join(BUILTIN + s for s in shipped) or "none"
        raise UserError(f"built-in CLIP {BUILTIN + name!r} does not exist; shipped: {names}")
    return ASSETS / name


def load_clip(path: str | Path, dtype: jnp.dtype = jnp.float32) -> Clip:
    """Reads a CLIP model.

    Args:
        path: a folder in the Hugging Face layout, or "builtin:NAME" for one that ships with the package.
        dtype: type of the computation.

    Raises:
        UserError: no such folder, not a CLIP model, weights that do not fit.
    """
    name = str(path)
    folder = _builtin(name.removeprefix(BUILTIN)) if name.startswith(BUILTIN) else Path(path)
    config = clip_lib.CLIPConfig.from_dict(pretrained.read_config(folder))
    model = Clip(config, None, folder, dtype=dtype)
    expected = jax.eval_shape(model.init, jax.random.key(0))
    params = pretrained.read_params(folder, expected, tensor_name, ignore=("position_ids",))
    preprocessor = folder / "preprocessor_config.json"
    image = pretrained.read_json(preprocessor) if preprocessor.is_file() else {}
    return dataclasses.replace(
        model,
        params=params,
        mean=tuple(image.get("image_mean", OPENAI_MEAN)),
        std=tuple(image.get("image_std", OPENAI_STD)),
    )
