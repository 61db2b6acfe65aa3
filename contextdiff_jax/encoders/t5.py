"""The T5 encoder (Raffel et al. 2020) in Linen, faithful to transformers' `T5EncoderModel`, versions 1.0 and 1.1."""

import dataclasses
import math
import re
from typing import Any

import einops
import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.attention import attention
from contextdiff_jax.errors import UserError
from contextdiff_jax.formats.kinds import check
from contextdiff_jax.types import Array

# What config.json calls the feed-forward layer -> whether it is gated, and its activation.
FEED_FORWARD = {
    "relu": (False, nn.relu),
    "gated-gelu": (True, lambda x: nn.gelu(x, approximate=True)),
}
# Of checkpoints of the whole T5, what is not the encoder.
NOT_THE_ENCODER = (r"^decoder\.", r"^lm_head\.")

# Ours -> the two layers of a block in a checkpoint.
PARTS = {
    "attention_norm": "0/layer_norm",
    "attention": "0/SelfAttention",
    "mlp_norm": "1/layer_norm",
    "mlp": "1/DenseReluDense",
}


@dataclasses.dataclass(frozen=True)
class T5Config:
    """The encoder of a T5 model; the names and defaults are those of config.json."""

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "relu"
    pad_token_id: int = 0  # this and the next are only carried from file to file
    eos_token_id: int = 1

    def __post_init__(self):
        if self.feed_forward_proj not in FEED_FORWARD:
            accepted = ", ".join(FEED_FORWARD)
            raise UserError(f"T5 feed_forward_proj={self.feed_forward_proj!r} is unknown; use {accepted}")
        buckets, distance = self.relative_attention_num_buckets, self.relative_attention_max_distance
        if buckets < 4 or buckets % 2 or distance <= buckets // 4:
            raise UserError(
                f"T5 relative_attention_num_buckets={buckets} with relative_attention_max_distance={distance} cannot "
                "work; the number is even and at least 4, the distance more than a quarter of it"
            )

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> "T5Config":
        """From config.json's content; absent keys take transformers' defaults.

        Raises:
            UserError: not a T5 model, or values that are not supported.
        """
        if config.get("model_type") != "t5":
            found = config.get("model_type")
            raise UserError(f"config.json has model_type={found!r}; give the folder of a T5 model ('t5')")
        kinds = {field.name: field.type for field in dataclasses.fields(cls) if not field.name.endswith("_token_id")}
        check("T5", config, kinds)
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: config[name] for name in names if name in config})

    def to_dict(self) -> dict[str, Any]:
        """The content of config.json, as transformers reads it."""
        kind = dict(architectures=["T5EncoderModel"], model_type="t5", is_encoder_decoder=False, use_cache=False)
        return kind | dataclasses.asdict(self)


def position_buckets(length: int, num_buckets: int, max_distance: int) -> np.ndarray:
    """Which entry of the bias table a query takes for a key, int [query, key].

    Half of the buckets are for keys behind the query, half for keys before it. The nearest half of each has a bucket
    for every distance; beyond, buckets grow logarithmically up to `max_distance`, from where on all share the last.
    """
    distance = np.arange(length)[None] - np.arange(length)[:, None]
    half = num_buckets // 2
    exact = half // 2
    # In float32 and in PyTorch's order of operations: distances on the border between two buckets are common.
    ratio = np.log(np.maximum(np.abs(distance), 1).astype(np.float32) / np.float32(exact))
    grown = ratio / np.float32(math.log(max_distance / exact)) * np.float32(half - exact)
    far = np.minimum(exact + grown.astype(np.int64), half - 1)
    return np.where(distance > 0, half, 0) + np.where(np.abs(distance) < exact, np.abs(distance), far)


class T5Attention(nn.Module):
    """Self-attention without scaling or bias terms, with a learned bias for the distance of two tokens."""

    config: T5Config
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, mask: Array, position_bias: Array | None) -> tuple[Array, Array]:
        """x [B, T, D], mask bool [B, T], bias [1, H, T, T] or None, then it is made -> ([B, T, D], the bias)."""
        config = self.config
        width = config.num_heads * config.d_kv
        dense = lambda name, size: nn.Dense(size, use_bias=False, dtype=self.dtype, name=name)
        heads = lambda h: einops.rearrange(h, "b t (h d) -> b t h d", h=config.num_heads)
        if position_bias is None:
            buckets = position_buckets(
                x.shape[1], config.relative_attention_num_buckets, config.relative_attention_max_distance
            )
            table = nn.Embed(config.relative_attention_num_buckets, config.num_heads, name="relative_attention_bias")
            position_bias = einops.rearrange(table(buckets).astype(jnp.float32), "q k h -> 1 h q k")
        q, k, v = (heads(dense(name, width)(x)) for name in "qkv")
        out = attention(q, k, v, mask[:, None, None], bias=position_bias, scale=1.0)
        return dense("o", config.d_model)(einops.rearrange(out, "b t h d -> b t (h d)")), position_bias


class T5FeedForward(nn.Module):
    """Two dense layers around the activation; in version 1.1 another one gates it."""

    config: T5Config
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, T, D] -> [B, T, D]."""
        dense = lambda name, size: nn.Dense(size, use_bias=False, dtype=self.dtype, name=name)
        gated, activation = FEED_FORWARD[self.config.feed_forward_proj]
        if gated:
            h = activation(dense("wi_0", self.config.d_ff)(x)) * dense("wi_1", self.config.d_ff)(x)
        else:
            h = activation(dense("wi", self.config.d_ff)(x))
        return dense("wo", self.config.d_model)(h)


class T5Block(nn.Module):
    """Pre-norm transformer block."""

    config: T5Config
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, mask: Array, position_bias: Array | None) -> tuple[Array, Array]:
        """As `T5Attention`."""
        norm = lambda name: rms_norm(self.config, self.dtype, name)
        attend = T5Attention(self.config, self.dtype, name="attention")
        out, position_bias = attend(norm("attention_norm")(x), mask, position_bias)
        x = x + out
        return x + T5FeedForward(self.config, self.dtype, name="mlp")(norm("mlp_norm")(x)), position_bias


class T5Encoder(nn.Module):
    """Tokens to features; all blocks use the position bias of the first."""

    config: T5Config
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array, mask: Array) -> Array:
        """tokens int32 [B, L], mask bool [B, L] -> features after the final norm [B, L, D]."""
        x = nn.Embed(self.config.vocab_size, self.config.d_model, dtype=self.dtype, name="shared")(tokens)
        position_bias = None
        for i in range(self.config.num_layers):
            x, position_bias = T5Block(self.config, self.dtype, name=f"block_{i}")(x, mask, position_bias)
        return rms_norm(self.config, self.dtype, "final_layer_norm")(x)


def rms_norm(config: T5Config, dtype: jnp.dtype, name: str) -> nn.RMSNorm:
    """Division by the root mean square, in float32."""
    return nn.RMSNorm(epsilon=config.layer_norm_epsilon, dtype=dtype, name=name)


def tensor_names(path: str) -> tuple[str, ...]:
    """Our parameter path -> the names in a T5 checkpoint, the encoder's alone or the whole model's."""
    if path == "shared/embedding":
        return "shared.weight", "encoder.embed_tokens.weight"
    name = re.sub(r"^block_(\d+)/(\w+)", lambda m: f"block/{m[1]}/layer/{PARTS[m[2]]}", path)
    return ("encoder." + re.sub(r"/(kernel|embedding|scale)$", "/weight", name).replace("/", "."),)
