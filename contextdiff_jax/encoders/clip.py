"""CLIP (Radford et al. 2021) in Linen: image tower and text tower, faithful to transformers' `CLIPModel`, and the text
tower alone, faithful to `CLIPTextModel` and `CLIPTextModelWithProjection`.

Module and parameter names follow the hub's checkpoints, so the name map in `pretrained.py` is a single rule.
"""

import re

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from contextdiff_jax.attention import attention
from contextdiff_jax.encoders.clip_config import ACTIVATIONS, CLIPConfig, CLIPTextConfig, TowerConfig
from contextdiff_jax.encoders.resizing import resize_8bit
from contextdiff_jax.types import Array


def residual_std(config: TowerConfig) -> float:
    """Initial standard deviation of what enters the residual stream, as OpenAI has it."""
    return (2 * config.num_hidden_layers * config.hidden_size) ** -0.5


def layer_norm(config: TowerConfig, dtype: jnp.dtype, name: str) -> nn.LayerNorm:
    """Layer norm as PyTorch computes it: CLIP's few very large features would spoil E[x^2] - E[x]^2."""
    return nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=dtype, use_fast_variance=False, name=name)


class CLIPAttention(nn.Module):
    """Self-attention with biased projections."""

    config: TowerConfig
    is_causal: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, T, D] -> [B, T, D]."""
        width = self.config.hidden_size
        dense = lambda name, std: nn.Dense(width, dtype=self.dtype, kernel_init=nn.initializers.normal(std), name=name)
        heads = lambda h: einops.rearrange(h, "b t (h d) -> b t h d", h=self.config.num_attention_heads)
        q, k, v = (heads(dense(name, width**-0.5)(x)) for name in ("q_proj", "k_proj", "v_proj"))
        out = einops.rearrange(attention(q, k, v, is_causal=self.is_causal), "b t h d -> b t (h d)")
        return dense("out_proj", residual_std(self.config))(out)


class CLIPMLP(nn.Module):
    """Two dense layers around the activation."""

    config: TowerConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, T, D] -> [B, T, D]."""
        init = nn.initializers.normal
        width = self.config.hidden_size
        h = nn.Dense(
            self.config.intermediate_size, dtype=self.dtype, kernel_init=init((2 * width) ** -0.5), name="fc1"
        )(x)
        h = ACTIVATIONS[self.config.hidden_act](h)
        return nn.Dense(width, dtype=self.dtype, kernel_init=init(residual_std(self.config)), name="fc2")(h)


class CLIPLayer(nn.Module):
    """Pre-norm transformer block."""

    config: TowerConfig
    is_causal: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, T, D] -> [B, T, D]."""
        norm = lambda name: layer_norm(self.config, self.dtype, name)
        h = norm("layer_norm1")(x)
        x = x + CLIPAttention(self.config, self.is_causal, self.dtype, name="self_attn")(h)
        return x + CLIPMLP(self.config, self.dtype, name="mlp")(norm("layer_norm2")(x))


class CLIPTextTower(nn.Module):
    """Causal text transformer."""

    config: CLIPTextConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        """tokens int32 [B, L] -> features after the final layer norm [B, L, D]."""
        text = self.config.tower
        table = nn.Embed(
            self.config.vocab_size,
            text.hidden_size,
            embedding_init=nn.initializers.normal(0.02),
            dtype=self.dtype,
            name="token_embedding",
        )
        positions = nn.Embed(
            self.config.max_position_embeddings,
            text.hidden_size,
            embedding_init=nn.initializers.normal(0.01),
            dtype=self.dtype,
            name="position_embedding",
        )
        x = table(tokens) + positions(jnp.arange(tokens.shape[1]))
        for i in range(text.num_hidden_layers):
            x = CLIPLayer(text, True, self.dtype, name=f"layers_{i}")(x)
        return layer_norm(text, self.dtype, "final_layer_norm")(x)


class CLIPVisionTower(nn.Module):
    """ViT over image patches with a class token."""

    config: CLIPConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, pixels: Array) -> tuple[Array, Array]:
        """Normalised pixels [B, S, S, 3] -> (last hidden state [B, 1 + N, D], pooled class token [B, D])."""
        vision, p = self.config.vision, self.config.patch_size
        x = nn.Conv(
            vision.hidden_size,
            (p, p),
            strides=(p, p),
            padding="VALID",
            use_bias=False,
            dtype=self.dtype,
            kernel_init=nn.initializers.normal(0.02),
            name="patch_embedding",
        )(pixels)
        x = einops.rearrange(x, "b h w c -> b (h w) c")
        width = vision.hidden_size
        cls = self.param("class_embedding", nn.initializers.normal(width**-0.5), (width,))
        cls = jnp.broadcast_to(cls.astype(x.dtype), (x.shape[0], 1, width))
        x = jnp.concatenate([cls, x], axis=1)
        positions = nn.Embed(
            x.shape[1],
            vision.hidden_size,
            embedding_init=nn.initializers.normal(0.02),
            dtype=self.dtype,
            name="position_embedding",
        )
        x = x + positions(jnp.arange(x.shape[1]))
        norm = lambda name: layer_norm(vision, self.dtype, name)
        x = norm("pre_layrnorm")(x)
        for i in range(vision.num_hidden_layers):
            x = CLIPLayer(vision, False, self.dtype, name=f"layers_{i}")(x)
        return x, norm("post_layernorm")(x[:, 0])


def projection(width_in: int, width_out: int, dtype: jnp.dtype) -> nn.Dense:
    """From a tower's width to the common one."""
    init = nn.initializers.normal(width_in**-0.5)
    return nn.Dense(width_out, use_bias=False, dtype=dtype, kernel_init=init)


def end_features(x: Array, tokens: Array, eos_token_id: int) -> Array:
    """The feature of the first end token: x [B, L, D], tokens int32 [B, L] -> [B, D]."""
    # Configs from before eos_token_id was corrected carry 2; for them the end token is the largest id.
    end = jnp.argmax(tokens if eos_token_id == 2 else tokens == eos_token_id, axis=1)
    # Along the axis, row by row: indexed by the rows as well it would be summed over all devices of a batch.
    return jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]


class CLIPTextModel(nn.Module):
    """The text tower alone, with or without its projection."""

    config: CLIPTextConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        config = self.config
        self.text_model = CLIPTextTower(config, self.dtype)
        if config.has_projection:
            self.text_projection = projection(config.tower.hidden_size, config.projection_dim, self.dtype)

    def __call__(self, tokens: Array) -> tuple[Array, Array]:
        """tokens int32 [B, L] -> (token features [B, L, D], feature of the end token [B, P], or [B, D] unprojected)."""
        x = self.text_model(tokens)
        pooled = end_features(x, tokens, self.config.eos_token_id)
        return x, self.text_projection(pooled) if self.config.has_projection else pooled


class CLIPModel(nn.Module):
    """Both towers, their projections and the logit scale."""

    config: CLIPConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        config = self.config
        self.text_model = CLIPTextTower(config.text_part, self.dtype)
        self.vision_model = CLIPVisionTower(config, self.dtype)
        self.text_projection = projection(config.text.hidden_size, config.projection_dim, self.dtype)
        self.visual_projection = projection(config.vision.hidden_size, config.projection_dim, self.dtype)
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(2.6592), ())

    def encode_text(self, tokens: Array) -> tuple[Array, Array]:
        """tokens int32 [B, L] -> (token features [B, L, D], projected feature of the end token [B, P])."""
        x = self.text_model(tokens)
        return x, self.text_projection(end_features(x, tokens, self.config.eos_token_id))

    def encode_image(self, pixels: Array) -> tuple[Array, Array]:
        """Normalised pixels [B, S, S, 3] -> (hidden states [B, 1 + N, D], projected class feature [B, P])."""
        x, pooled = self.vision_model(pixels)
        return x, self.visual_projection(pooled)

    def __call__(self, tokens: Array, pixels: Array) -> tuple[Array, Array]:
        """Projected (text [B, P], image [B, P]) features; initialises every parameter."""
        _ = self.logit_scale
        return self.encode_text(tokens)[1], self.encode_image(pixels)[1]


def preprocess(images: Array, config: CLIPConfig, mean: Array, std: Array) -> Array:
    """[B, H, W, 3] in [-1, 1] -> pixels for the tower, resized (antialiased cubic) and normalised."""
    size, (batch, height, width, channels) = config.image_size, images.shape
    if (height, width) != (size, size):
        images = jax.image.resize(images, (batch, size, size, channels), "cubic", antialias=True)
    return ((images + 1.0) / 2.0 - mean) / std


def cropped(images: Array, size: int) -> Array:
    """Pictures as OpenAI's code hands them to CLIP: the shorter side becomes `size`, and a square is cut out.

    Args:
        images: [B, H, W, 3] of 0 to 255.
        size: of a side, S.

    Returns:
        [B, S, S, 3] of whole numbers in 0..255, float32.
    """
    height, width = images.shape[1:3]
    short = min(height, width)
    # The longer side is cut down to a whole number, the corner of the crop rounded, halves to even.
    height, width = size * height // short, size * width // short
    top, left = round((height - size) / 2), round((width - size) / 2)
    return resize_8bit(images, height, width)[:, top : top + size, left : left + size]


def tensor_name(path: str) -> str:
    """Our parameter path -> the name in a CLIP checkpoint."""
    name = re.sub(r"/layers_(\d+)/", r"/encoder/layers/\1/", path)
    name = re.sub(r"^(\w+)/((token|position|patch|class)_embedding)", r"\1/embeddings/\2", name)
    return re.sub(r"/(kernel|embedding|scale)$", "/weight", name).replace("/", ".")


def text_tensor_names(path: str) -> tuple[str, ...]:
    """The names where the text tower is alone: transformers 5 also writes them without their first part."""
    name = tensor_name(path)
    return tuple(dict.fromkeys((name, name.removeprefix("text_model."))))
