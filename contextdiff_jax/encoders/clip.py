"""CLIP (Radford et al. 2021) in Linen: image tower and text tower, faithful to transformers' `CLIPModel`.

Module and parameter names follow the hub's checkpoints, so the name map in `pretrained.py` is a single rule.
"""

import dataclasses
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from contextdiff_jax.attention import attention
from contextdiff_jax.errors import UserError
from contextdiff_jax.types import Array

ACTIVATIONS = {
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "gelu": lambda x: nn.gelu(x, approximate=False),
}


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """One transformer tower; the names are those of config.json."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """A CLIP model as config.json describes it."""

    text: TowerConfig
    vision: TowerConfig
    projection_dim: int
    vocab_size: int
    max_position_embeddings: int
    eos_token_id: int
    image_size: int
    patch_size: int
    bos_token_id: int = 0  # this and the next are only carried from file to file; as `train_bpe` numbers them
    pad_token_id: int = 1

    def __post_init__(self):
        for name, tower in (("text", self.text), ("vision", self.vision)):
            if tower.hidden_act not in ACTIVATIONS:
                accepted = ", ".join(ACTIVATIONS)
                raise UserError(f"CLIP {name} hidden_act={tower.hidden_act!r} is unknown; use {accepted}")
            if tower.hidden_size % tower.num_attention_heads:
                raise UserError(
                    f"CLIP {name} width {tower.hidden_size} is not divisible by its "
                    f"{tower.num_attention_heads} heads; choose a multiple"
                )
        if self.image_size % self.patch_size:
            raise UserError(
                f"CLIP image_size={self.image_size} is not divisible by patch_size={self.patch_size}; "
                "choose a multiple"
            )

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> "CLIPConfig":
        """From config.json's content; absent keys take transformers' defaults.

        Raises:
            UserError: not a CLIP model, or sizes or an activation that cannot work.
        """
        if config.get("model_type") != "clip":
            found = config.get("model_type")
            raise UserError(f"config.json has model_type={found!r}; give the folder of a CLIP model ('clip')")
        # Old files hold the sections a second time as *_config_dict, which wins.
        section = lambda name: (config.get(name) or {}) | (config.get(f"{name}_dict") or {})
        text, vision = section("text_config"), section("vision_config")
        return cls(
            text=_tower(text, TowerConfig(512, 2048, num_hidden_layers=12, num_attention_heads=8)),
            vision=_tower(vision, TowerConfig(768, 3072, num_hidden_layers=12, num_attention_heads=12)),
            projection_dim=config.get("projection_dim", 512),
            vocab_size=text.get("vocab_size", 49408),
            max_position_embeddings=text.get("max_position_embeddings", 77),
            eos_token_id=text.get("eos_token_id", 49407),
            image_size=vision.get("image_size", 224),
            patch_size=vision.get("patch_size", 32),
            bos_token_id=text.get("bos_token_id", 49406),
            pad_token_id=text.get("pad_token_id", 1),
        )

    def to_dict(self) -> dict[str, Any]:
        """The content of config.json, as transformers reads it."""
        text, vision = dataclasses.asdict(self.text), dataclasses.asdict(self.vision)
        text |= dict(
            vocab_size=self.vocab_size,
            max_position_embeddings=self.max_position_embeddings,
            eos_token_id=self.eos_token_id,
            bos_token_id=self.bos_token_id,
            pad_token_id=self.pad_token_id,
            projection_dim=self.projection_dim,
            model_type="clip_text_model",
        )
        vision |= dict(
            image_size=self.image_size,
            patch_size=self.patch_size,
            projection_dim=self.projection_dim,
            model_type="clip_vision_model",
        )
        return dict(
            architectures=["CLIPModel"],
            model_type="clip",
            projection_dim=self.projection_dim,
            text_config=text,
            vision_config=vision,
        )


def _tower(section: dict[str, Any], defaults: TowerConfig) -> TowerConfig:
    """The keys of one section of config.json that matter to a tower, over transformers' defaults."""
    names = {field.name for field in dataclasses.fields(TowerConfig)}
    return dataclasses.replace(defaults, **{k: v for k, v in section.items() if k in names})


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
        dense = lambda name, std: nn.Dense(
            width, dtype=self.dtype, kernel_init=nn.initializers.normal(std), name=name
        )
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

    config: CLIPConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        """tokens int32 [B, L] -> features after the final layer norm [B, L, D]."""
        text = self.config.text
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


class CLIPModel(nn.Module):
    """Both towers, their projections and the logit scale."""

    config: CLIPConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        config = self.config
        self.text_model = CLIPTextTower(config, self.dtype)
        self.vision_model = CLIPVisionTower(config, self.dtype)
        init = lambda width: nn.initializers.normal(width**-0.5)
        projection = lambda width: nn.Dense(
            config.projection_dim, use_bias=False, dtype=self.dtype, kernel_init=init(width)
        )
        self.text_projection = projection(config.text.hidden_size)
        self.visual_projection = projection(config.vision.hidden_size)
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(2.6592), ())

    def encode_text(self, tokens: Array) -> tuple[Array, Array]:
        """tokens int32 [B, L] -> (token features [B, L, D], projected feature of the end token [B, P])."""
        x = self.text_model(tokens)
        # Configs from before eos_token_id was corrected carry 2; for them the end token is the largest id.
        if self.config.eos_token_id == 2:
            end = jnp.argmax(tokens, axis=1)
        else:
            end = jnp.argmax(tokens == self.config.eos_token_id, axis=1)
        return x, self.text_projection(x[jnp.arange(x.shape[0]), end])

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
