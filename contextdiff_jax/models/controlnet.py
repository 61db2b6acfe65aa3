"""ControlNet (Zhang et al. 2023) in Linen, faithful to diffusers' `ControlNetModel`: edges guide the U-Net."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from contextdiff_jax import parameters
from contextdiff_jax.errors import UserError
from contextdiff_jax.formats import hub, pretrained
from contextdiff_jax.formats.diffusers_format import DiffusersConfig, tensor_name
from contextdiff_jax.layers import zeros
from contextdiff_jax.models.sd_blocks import MidStage, Stage, TimeEmbedding
from contextdiff_jax.models.sd_config import UNetConfig
from contextdiff_jax.types import Array, Params

_ONLY_HERE = dict(
    conditioning_channels=(3,),
    controlnet_conditioning_channel_order=("rgb",),
    encoder_hid_dim=(None,),
    encoder_hid_dim_type=(None,),
    global_pool_conditions=(False,),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControlNetConfig(DiffusersConfig):
    """A ControlNetModel as config.json describes it: the way down and the middle of a U-Net."""

    CLASS_NAME = "ControlNetModel"
    ONLY = UNetConfig.ONLY | _ONLY_HERE
    UNUSED = UNetConfig.UNUSED

    in_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    attention_head_dim: int | tuple[int, ...] = 8
    cross_attention_dim: int = 1280
    transformer_layers_per_block: int = 1
    use_linear_projection: bool = False
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: float = 0
    conditioning_embedding_out_channels: tuple[int, ...] = (16, 32, 96, 256)

    @property
    def unet(self) -> UNetConfig:
        """The U-Net that it is half of."""
        shared = {f.name for f in dataclasses.fields(UNetConfig)} - {"raw", "out_channels", "up_block_types"}
        up = tuple(name.replace("Down", "Up") for name in reversed(self.down_block_types))
        return UNetConfig(**{name: getattr(self, name) for name in shared}, up_block_types=up)


class ControlNet(nn.Module):
    """What a picture adds to a U-Net's skips and middle.

    Attributes:
        config: sizes.
        dtype: type of the computation; parameters are float32.
    """

    config: ControlNetConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, xt: Array, t: Array, tokens: Array, picture: Array) -> tuple[Array, ...]:
        """The `control` of `SDUNet`: one array per skip, and the middle's.

        Args:
            xt: noisy latents [B, h, w, in_channels].
            t: timestep as diffusers counts, [B] or scalar.
            tokens: text features [B, L, cross_attention_dim].
            picture: of the edges, [B, H, W, 3] in [0, 1], as often as large as xt as the embedding halves it.

        Raises:
            UserError: a picture of another size, or the latents and text features of another Stable Diffusion.
        """
        config, unet = self.config, self.config.unet
        _check_inputs(config, xt, tokens)
        conv = lambda width, name, **how: nn.Conv(width, (3, 3), dtype=self.dtype, padding=1, name=name, **how)
        emb = TimeEmbedding(unet, self.dtype, name="time_embedding")(jnp.broadcast_to(t, xt.shape[:1]))
        given = (emb, tokens.astype(self.dtype), None)
        seen = PictureEmbedding(config, self.dtype, name="controlnet_cond_embedding")(picture)
        if seen.shape[1:3] != xt.shape[1:3]:
            factor = 2 ** (len(config.conditioning_embedding_out_channels) - 1)
            raise UserError(
                f"the control picture of {picture.shape[1]} x {picture.shape[2]} does not fit latents of "
                f"{xt.shape[1]} x {xt.shape[2]}; it must be {factor} times as large"
            )
        skips = [conv(config.block_out_channels[0], "conv_in")(xt.astype(self.dtype)) + seen]
        last = len(config.block_out_channels) - 1
        for level, block_type in enumerate(config.down_block_types):
            heads = unet.heads(level) if block_type.startswith("CrossAttn") else 0
            resample = "down" if level < last else ""
            how = (heads, config.layers_per_block, resample, self.dtype, False)
            down = Stage(unet, config.block_out_channels[level], *how, name=f"down_blocks_{level}")
            skips.extend(down(skips[-1], *given))
        middle = MidStage(unet, self.dtype, False, name="mid_block")(skips[-1], *given)

        def added(h: Array, name: str) -> Array:
            # Starts as zero: an untrained ControlNet changes nothing.
            return nn.Conv(h.shape[-1], (1, 1), dtype=self.dtype, kernel_init=zeros, name=name)(h)

        names = [f"controlnet_down_blocks_{i}" for i in range(len(skips))] + ["controlnet_mid_block"]
        return tuple(added(h, name) for h, name in zip([*skips, middle], names, strict=True))


def _check_inputs(config: ControlNetConfig, xt: Array, tokens: Array) -> None:
    """Raises where a ControlNet belongs to another model than the latents and texts come from."""
    for key, found in (("cross_attention_dim", tokens.shape[-1]), ("in_channels", xt.shape[-1])):
        if getattr(config, key) != found:
            raise UserError(
                f"the ControlNet takes {key}={getattr(config, key)}, but this Stable Diffusion has {found}; give one "
                "that was trained for it"
            )


class PictureEmbedding(nn.Module):
    """Convolutions from the control picture to the width and size of the U-Net's first feature map."""

    config: ControlNetConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, picture: Array) -> Array:
        """picture [B, H, W, 3] -> [B, h, w, C]."""
        widths = self.config.conditioning_embedding_out_channels
        conv = lambda width, name, **how: nn.Conv(width, (3, 3), dtype=self.dtype, padding=1, name=name, **how)
        h = nn.silu(conv(widths[0], "conv_in")(picture.astype(self.dtype)))
        for i, (width, wider) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            h = nn.silu(conv(width, f"blocks_{2 * i}")(h))
            h = nn.silu(conv(wider, f"blocks_{2 * i + 1}", strides=2)(h))
        return conv(self.config.block_out_channels[0], "conv_out", kernel_init=zeros)(h)


def control_of(
    net: ControlNet, params: Params, xt: Array, t: Array, tokens: Array, picture: Array
) -> tuple[Array, ...]:
    """What a ControlNet adds for rows at times t in 0..T, as the library counts; the rest is as the call has it."""
    return net.apply({"params": params}, xt, jnp.maximum(t - 1, 0), tokens, picture)


def read_controlnet_config(folder: str | Path) -> ControlNetConfig:
    """A ControlNet's config.json.

    Raises:
        UserError: no such folder, or another kind of model.
    """
    return ControlNetConfig.from_dict(pretrained.read_config(hub.local(folder)))


def load_controlnet(
    folder: str | Path,
    dtype: jnp.dtype = jnp.float32,
    *,
    weights: bool = True,
    shardings: Callable[[Params], Any] | None = None,
) -> tuple[ControlNet, Params]:
    """Reads a ControlNet: the module, computing in `dtype`, and its float32 parameters.

    Args:
        folder: in the layout of diffusers, or the hub's name of a cached one.
        dtype: type of the computation.
        weights: whether to read the parameters; else they are shapes.
        shardings: as for `encoders.load_text_encoder`.

    Raises:
        UserError: no such folder, another kind of model, weights that do not fit.
    """
    folder = hub.local(folder)
    config = read_controlnet_config(folder)
    net, side = ControlNet(config, dtype), config.unet.factor
    side_of_picture = side * 2 ** (len(config.conditioning_embedding_out_channels) - 1)
    shapes = ((1, side, side, config.in_channels), (1,), (1, 1, config.cross_attention_dim))
    args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in (*shapes, (1, side_of_picture, side_of_picture, 3))]
    expected = parameters.shapes(net, *args)
    if not weights:
        return net, expected
    places = shardings(expected) if shardings else None
    return net, pretrained.read_params(folder, expected, tensor_name, shardings=places)
