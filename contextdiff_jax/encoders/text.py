"""Text encoders with their tokenizers: the text tower of CLIP alone, and T5."""

import dataclasses
import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax import parameters
from contextdiff_jax.encoders import clip as clip_lib
from contextdiff_jax.encoders import t5 as t5_lib
from contextdiff_jax.formats import pretrained
from contextdiff_jax.formats.tokenizers import TOKENIZER_FILES, Tokenize, load_tokenizer, trained_length
from contextdiff_jax.types import Array, Context, Params


class TextEncoder:
    """What all text encoders do alike. Each adds `config`, `module`, `init` and `encode_text`.

    Attributes:
        params: tree of arrays.
        tokenizer_dir: folder of the tokenizer.
        max_length: tokens per text, L.
        names, ignore: as `pretrained.read_params` takes them.
    """

    config: Any
    params: Params
    tokenizer_dir: Path
    max_length: int
    names: pretrained.NameMap
    ignore: tuple[str, ...]

    @functools.cached_property
    def tokenize(self) -> Tokenize:
        """texts -> {"tokens": int32 [n, L], "token_mask": bool [n, L]}."""
        return load_tokenizer(self.tokenizer_dir, self.max_length)

    def null_tokens(self) -> dict[str, np.ndarray]:
        """The empty text, [1, L]."""
        return self.tokenize([""])

    def read(
        self,
        folder: Path,
        shardings: Callable[[Params], Any] | None = None,
        dtype: Any = np.float32,
        weights: bool = True,
    ) -> Self:
        """The model with the parameters of a folder; see `load_text_encoder`."""
        expected = jax.eval_shape(self.init, jax.random.key(0))
        if not weights:
            return dataclasses.replace(self, params=expected)
        places = shardings(expected) if shardings else None
        params = pretrained.read_params(folder, expected, self.names, self.ignore, shardings=places, dtype=dtype)
        return dataclasses.replace(self, params=params)

    def save(self, folder: str | Path, params: Params, dtype: Any = np.float32) -> None:
        """Writes the model in the Hugging Face layout: weights, config and tokenizer."""
        folder = Path(folder)
        pretrained.write_params(folder, params, self.names, self.config.to_dict(), dtype)
        for name in TOKENIZER_FILES:
            if (self.tokenizer_dir / name).is_file() and self.tokenizer_dir.resolve() != folder.resolve():
                shutil.copyfile(self.tokenizer_dir / name, folder / name)


def clip_length(tokenizer_dir: Path, positions: int) -> int:
    """Tokens per text of a CLIP: as many as its tokenizer names, as diffusers has it, and no more than positions."""
    return min(trained_length(tokenizer_dir) or positions, positions)


@dataclasses.dataclass(frozen=True)
class ClipText(TextEncoder):
    """The text tower of CLIP with its parameters beside it, as Stable Diffusion pipelines have it.

    Attributes:
        config: sizes.
        params: tree of arrays.
        tokenizer_dir: folder of the tokenizer.
        dtype: type of the computation.
    """

    config: clip_lib.CLIPTextConfig
    params: Params
    tokenizer_dir: Path
    dtype: jnp.dtype = jnp.float32

    names = staticmethod(clip_lib.text_tensor_names)
    ignore = ("position_ids$", r"^text_projection\.")  # unless the projection is a parameter, which comes first

    @functools.cached_property
    def max_length(self) -> int:
        """Tokens per text."""
        return clip_length(self.tokenizer_dir, self.config.max_position_embeddings)

    @property
    def module(self) -> clip_lib.CLIPTextModel:
        """The Linen module."""
        return clip_lib.CLIPTextModel(self.config, self.dtype)

    def init(self, key: Array) -> Params:
        """Fresh parameters; pure."""
        return parameters.init(self.module, key, jnp.zeros((1, self.config.max_position_embeddings), jnp.int32))

    def encode_text(self, params: Params, tokens: Array, token_mask: Array) -> Context:
        """tokens int32 [B, L], token_mask bool [B, L] -> Context (last layer, normed; the end token's)."""
        features, pooled = self.module.apply({"params": params}, tokens)
        return Context(tokens=features, pooled=pooled, mask=token_mask)


@dataclasses.dataclass(frozen=True)
class T5(TextEncoder):
    """A T5 encoder with its parameters beside it.

    Attributes:
        config: sizes.
        params: tree of arrays.
        tokenizer_dir: folder of the tokenizer.
        max_length: tokens per text; T5 itself has no limit.
        dtype: type of the computation; bfloat16 where float32 is too slow (float16 overflows in T5's large models).
    """

    config: t5_lib.T5Config
    params: Params
    tokenizer_dir: Path
    max_length: int
    dtype: jnp.dtype = jnp.float32

    names = staticmethod(t5_lib.tensor_names)
    ignore = t5_lib.NOT_THE_ENCODER

    @property
    def module(self) -> t5_lib.T5Encoder:
        """The Linen module."""
        return t5_lib.T5Encoder(self.config, self.dtype)

    def init(self, key: Array) -> Params:
        """Fresh parameters; pure."""
        return parameters.init(self.module, key, jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool))

    def encode_text(self, params: Params, tokens: Array, token_mask: Array) -> Context:
        """tokens int32 [B, L], token_mask bool [B, L] -> Context (last layer, normed; mean over the real tokens)."""
        features = self.module.apply({"params": params}, tokens, token_mask)
        real = token_mask[..., None].astype(jnp.float32)
        pooled = (features.astype(jnp.float32) * real).sum(1) / jnp.maximum(real.sum(1), 1.0)
        return Context(tokens=features, pooled=pooled.astype(features.dtype), mask=token_mask)
