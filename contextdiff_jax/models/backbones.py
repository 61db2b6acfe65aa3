"""The denoising network that a config names, behind one signature: (params, x_t, t, context) -> output."""

import dataclasses
from pathlib import Path
from typing import Any, Protocol

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from contextdiff_jax import parameters, trees
from contextdiff_jax.errors import UserError
from contextdiff_jax.formats import hub
from contextdiff_jax.models.unet import UNet
from contextdiff_jax.models.video import Edit, VideoConfig, sources_of_branches, with_branches_over_time
from contextdiff_jax.types import Array, Context, Params


class Backbone(Protocol):
    """A network that predicts x0, eps or v (models/precond.py)."""

    def init(self, key: Array, xt: Any, t: Any, context: Any) -> Params:
        """Fresh float32 parameters, from shapes alone."""

    def load(self, shardings: Params) -> Params | None:
        """Pretrained parameters, each read onto its sharding; None where there are none."""

    def __call__(
        self, params: Params, xt: Array, t: Array, context: Context, dropout_key: Array | None = None
    ) -> Array:
        """Output [B, H, W, C] for t int32 [B] in 1..T."""


@dataclasses.dataclass(frozen=True)
class PixelBackbone:
    """A network of this library's own, trained from scratch."""

    module: nn.Module

    def init(self, key: Array, xt: Any, t: Any, context: Any) -> Params:
        """Fresh parameters."""
        return parameters.init(self.module, key, xt, t, context)

    def load(self, shardings: Params) -> None:
        """Nothing is pretrained."""

    def __call__(
        self, params: Params, xt: Array, t: Array, context: Context, dropout_key: Array | None = None
    ) -> Array:
        """The network's output."""
        rngs = None if dropout_key is None else {"dropout": dropout_key}
        return self.module.apply({"params": params}, xt, t, context, train=rngs is not None, rngs=rngs)


def _without_level(context: Any, name: str) -> Any:
    """The context, which must have no level: Stable Diffusion's networks have no place for one.

    Raises:
        UserError: it has one, which would not act.
    """
    if context.level is not None:
        raise UserError(f"config.model.backbone={name!r} embeds no level of a condition beside t; take unet or vdm")
    return context


@dataclasses.dataclass(frozen=True)
class StableDiffusionBackbone:
    """The U-Net of a Stable Diffusion folder; its time counts from 0, so ours less one.

    Attributes:
        folder: in the layout of diffusers; of a random start, its config.json alone counts.
        module: the network.
        random_start: whether training starts from `init` and not from `load`.
    """

    folder: Path
    module: nn.Module
    num_frames: int = 1
    random_start: bool = False

    def init(self, key: Array, xt: Any, t: Any, context: Any) -> Params:
        """Random parameters of the same shapes."""
        context = _without_level(context, "sd")
        return parameters.init(self.module, key, xt, t, context.tokens, spatial=context.spatial)

    def load(self, shardings: Params) -> Params | None:
        """The folder's weights; of the layers that join frames those that it has, or that begin as copies of others.
        None for a random start."""
        from contextdiff_jax.models.sd_unet import read_sd_unet

        if self.random_start:
            return None
        video = self.module.video
        if video.temporal_attention != "parallel":
            return read_sd_unet(self.folder, shardings, video)
        # What a branch is a copy of need not be wanted itself: tuning asks for the trained leaves alone.
        read = trees.merge(sources_of_branches(shardings), shardings)
        return with_branches_over_time(read_sd_unet(self.folder, read, video), shardings)

    def __call__(
        self,
        params: Params,
        xt: Array,
        t: Array,
        context: Context,
        dropout_key: Array | None = None,
        *,
        edit: Edit | None = None,
        control: tuple[Array, ...] = (),
    ) -> Array:
        """The network's output; all 77 text tokens are attended to, padding included, as the original does, but of a
        layout only its objects.

        `edit` and `control` are those of `SDUNet`.
        """
        context = _without_level(context, "sd")
        mask = None if context.spatial is None else context.mask
        how = dict(mask=mask, num_frames=self.num_frames, edit=edit, control=control, spatial=context.spatial)
        # An edit may remember what it sees, which it may not across the border of what is computed twice.
        module = self.module if edit is None else self.module.clone(remat=False)
        return module.apply({"params": params}, xt, jnp.maximum(t - 1, 0), context.tokens, **how)


@dataclasses.dataclass(frozen=True)
class LatentBackbone:
    """The U-Net of latent diffusion (Rombach et al. 2022): of Stable Diffusion's shape, as wide as the latents and the
    condition ask, trained from scratch. Its heads have a width, not a number.

    Attributes:
        widths: of the levels, from the finest.
        num_blocks: residual blocks of a level.
        attention_levels: levels with transformers, counted from the finest; the middle always has one.
        head_dim: width of a head.
        dtype: type of the computation.
        remat: recompute blocks in the backward pass to save memory.
    """

    widths: tuple[int, ...]
    num_blocks: int
    attention_levels: tuple[int, ...]
    head_dim: int
    dtype: jnp.dtype
    remat: bool

    def module(self, xt: Any, context: Any) -> nn.Module:
        """The Linen module for such samples and contexts."""
        from contextdiff_jax.models.sd_config import UNetConfig
        from contextdiff_jax.models.sd_unet import SDUNet

        levels = range(len(self.widths))
        kinds = ["CrossAttn" if level in self.attention_levels else "" for level in levels]
        config = UNetConfig(
            in_channels=xt.shape[-1],
            out_channels=xt.shape[-1],
            block_out_channels=self.widths,
            layers_per_block=self.num_blocks,
            down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
            up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
            attention_head_dim=tuple(max(1, width // self.head_dim) for width in self.widths),
            cross_attention_dim=context.tokens.shape[-1],
        )
        return SDUNet(config, self.dtype, self.remat)

    def init(self, key: Array, xt: Any, t: Any, context: Any) -> Params:
        """Fresh parameters."""
        context = _without_level(context, "ldm")
        inputs = xt, t, context.tokens, context.mask
        return parameters.init(self.module(xt, context), key, *inputs, spatial=context.spatial)

    def load(self, shardings: Params) -> None:
        """Nothing is pretrained."""

    def __call__(
        self, params: Params, xt: Array, t: Array, context: Context, dropout_key: Array | None = None
    ) -> Array:
        """The network's output; only real tokens are attended to."""
        context = _without_level(context, "ldm")
        inputs = xt, jnp.maximum(t - 1, 0), context.tokens, context.mask
        return self.module(xt, context).apply({"params": params}, *inputs, spatial=context.spatial)


def factor(config: ConfigDict) -> int:
    """What the sides of a sample must be multiples of."""
    model = config.model
    if model.backbone == "unet":
        return model.patch_size * 2 ** (len(model.multipliers) - 1)
    if model.backbone == "ldm":
        return 2 ** (len(model.multipliers) - 1)
    if model.backbone == "sd":
        from contextdiff_jax.models.sd_unet import read_unet_config

        return read_unet_config(hub.local(model.pretrained) / "unet").factor
    return 1


def check_size(config: ConfigDict, sample_shape: tuple[int, ...]) -> None:
    """Raises UserError where the network cannot halve samples of this shape as often as it must."""
    multiple = factor(config)
    if sample_shape[0] % multiple:
        pixels = config.data.image_size // sample_shape[0] * multiple
        raise UserError(
            f"config.data.image_size={config.data.image_size} is not divisible by {pixels}, which this network needs; "
            f"try {max(1, config.data.image_size // pixels) * pixels}"
        )


def two_headed(config: ConfigDict) -> bool:
    """Whether the network predicts the shift of the reverse step beside x0."""
    return config.adapter.enabled and config.adapter.reverse == "head"


def build(config: ConfigDict, dtype: jnp.dtype) -> Backbone:
    """The backbone of a config's `model` section.

    Raises:
        UserError: an unknown name, or a folder that cannot be read.
    """
    model = config.model
    common = lambda: dict(
        num_timesteps=config.process.num_timesteps,
        num_blocks=model.num_blocks,
        dropout=model.dropout,
        remat=model.remat,
        heads=2 if two_headed(config) else 1,
        dtype=dtype,
    )
    match model.backbone:
        case "unet":
            return PixelBackbone(
                UNet(
                    channels=model.channels,
                    multipliers=tuple(model.multipliers),
                    self_attention_levels=tuple(model.self_attention_levels),
                    cross_attention_levels=tuple(model.cross_attention_levels),
                    head_dim=model.head_dim,
                    patch_size=model.patch_size,
                    **common(),
                )
            )
        case "vdm":
            from contextdiff_jax.models.vdm_unet import VDMUNet

            return PixelBackbone(
                VDMUNet(
                    channels=model.channels,
                    head_dim=model.head_dim,
                    fourier_bands=tuple(model.fourier_bands),
                    **common(),
                )
            )
        case "ldm":
            return LatentBackbone(
                widths=tuple(model.channels * m for m in model.multipliers),
                num_blocks=model.num_blocks,
                attention_levels=tuple(model.cross_attention_levels),
                head_dim=model.head_dim,
                dtype=dtype,
                remat=model.remat,
            )
        case "sd":
            from contextdiff_jax.models.sd_unet import SDUNet, read_unet_config

            folder = hub.local(model.pretrained) / "unet"
            module = SDUNet(read_unet_config(folder), dtype, model.remat, VideoConfig.from_config(model.video))
            return StableDiffusionBackbone(folder, module, config.data.num_frames, model.random_start)
    raise UserError(f"config.model.backbone={model.backbone!r} is unknown; accepted: unet, vdm, ldm, sd")
