"""The U-Net of Stable Diffusion 1.x and 2.x in Linen, faithful to diffusers' `UNet2DConditionModel`."""

import dataclasses
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp

from contextdiff_jax import parameters, trees
from contextdiff_jax.errors import UserError
from contextdiff_jax.formats import hub, pretrained
from contextdiff_jax.formats.diffusers_format import STEM, tensor_name
from contextdiff_jax.layers import GroupNorm, zeros
from contextdiff_jax.models.sd_blocks import MidStage, Stage, TimeEmbedding, frame_conv
from contextdiff_jax.models.sd_config import UNetConfig
from contextdiff_jax.models.video import Edit, Frames, VideoConfig, joins_frames
from contextdiff_jax.types import Array, Params


class SDUNet(nn.Module):
    """U-Net over latents with text cross-attention.

    Attributes:
        config: sizes.
        dtype: type of the computation; parameters are float32.
        remat: recompute residual blocks and transformers in the backward pass to save memory.
        video: the layers that join the frames of a clip; by default there are none.
    """

    config: UNetConfig
    dtype: jnp.dtype = jnp.float32
    remat: bool = False
    video: VideoConfig = VideoConfig()

    @nn.compact
    def __call__(
        self,
        xt: Array,
        t: Array,
        tokens: Array,
        mask: Array | None = None,
        *,
        num_frames: int = 1,
        edit: Edit | None = None,
        control: tuple[Array, ...] = (),
        spatial: Array | None = None,
    ) -> Array:
        """Network output, eps or v as the checkpoint was trained.

        Args:
            xt: noisy latents [B, h, w, in_channels].
            t: timestep as diffusers counts, int or float [B] or scalar, in 0..T-1 with 0 the least noisy.
            tokens: text features [B, L, cross_attention_dim].
            mask: True where a token may be looked at, bool [B, L]; None (as Stable Diffusion is trained) for all.
            num_frames: F; a batch is B / F clips, the frames of each one after another.
            edit: of attention weights (models/video.py); None is the fastest program.
            spatial: maps beside xt [B, h, w, C] or None; what they add to the first feature map starts as zero.
            control: what a ControlNet adds to the skips, in their order, and last to the middle; () for nothing.

        Returns:
            [B, h, w, out_channels] float32.

        Raises:
            UserError: sides that are not multiples of the config's factor, other channels than the config's, or what a
                ControlNet of another U-Net adds.
        """
        config, widths = self.config, self.config.block_out_channels
        self._check(xt, tokens, num_frames)
        emb = TimeEmbedding(config, self.dtype, name="time_embedding")(jnp.broadcast_to(t, xt.shape[:1]))
        given = (emb, tokens.astype(self.dtype), mask)
        frames = Frames(self.video, num_frames, edit)
        conv = lambda channels, name, dtype=self.dtype, **how: frame_conv(frames)(
            channels, (3, 3), dtype=dtype, name=name, **how
        )

        def stage(level: int, block_type: str, num_layers: int, resample: str, name: str) -> Stage:
            heads = config.heads(level) if block_type.startswith("CrossAttn") else 0
            return Stage(config, widths[level], heads, num_layers, resample, self.dtype, self.remat, frames, name=name)

        h = conv(widths[0], "conv_in")(xt.astype(self.dtype))
        if spatial is not None:
            # The same as more channels of conv_in, whose kernel keeps the shape that checkpoints have.
            h = h + conv(widths[0], "conv_spatial", kernel_init=zeros, use_bias=False)(spatial.astype(self.dtype))
        skips, last = [h], len(widths) - 1
        for level, block_type in enumerate(config.down_block_types):
            resample = "down" if level < last else ""
            down = stage(level, block_type, config.layers_per_block, resample, f"down_blocks_{level}")
            skips.extend(down(skips[-1], *given))
        # ControlVideo has its branch over time on the way down and up only.
        parallel = self.video.temporal_attention == "parallel"
        in_the_middle = dataclasses.replace(self.video, temporal_attention="none") if parallel else self.video
        mid = MidStage(config, self.dtype, self.remat, frames._replace(video=in_the_middle), name="mid_block")
        h = mid(skips[-1], *given)
        if control:
            _check_control(control, (*skips, h))
            skips = [skip + added.astype(self.dtype) for skip, added in zip(skips, control[:-1], strict=True)]
            h = h + control[-1].astype(self.dtype)
        for i, block_type in enumerate(config.up_block_types):
            resample, num_layers = "up" if i < last else "", config.layers_per_block + 1
            up = stage(last - i, block_type, num_layers, resample, f"up_blocks_{i}")
            h = up(h, *given, tuple(skips.pop() for _ in range(num_layers)))[-1]
        # The output in float32 whatever the type, which would round it
        h = nn.silu(GroupNorm(jnp.float32, config.norm_num_groups, config.norm_eps, name="conv_norm_out")(h))
        return conv(config.out_channels, "conv_out", kernel_init=zeros, dtype=jnp.float32)(h)

    def _check(self, xt: Array, tokens: Array, num_frames: int) -> None:
        """Raises for inputs that do not fit."""
        if num_frames < 1 or xt.shape[0] % num_frames:
            raise UserError(f"a batch of {xt.shape[0]} pictures is no whole number of clips of {num_frames} frames")
        config, (height, width, channels) = self.config, xt.shape[1:]
        if height % config.factor or width % config.factor:
            raise UserError(f"latents of {height} x {width} do not fit the U-Net; give multiples of {config.factor}")
        if channels != config.in_channels:
            raise UserError(f"the U-Net takes in_channels={config.in_channels}, but the latents have {channels}")
        if tokens.shape[-1] != config.cross_attention_dim:
            raise UserError(
                f"the U-Net takes text features of cross_attention_dim={config.cross_attention_dim}, but these have "
                f"{tokens.shape[-1]}; give the text encoder that belongs to it"
            )


def _check_control(control: tuple[Array, ...], features: tuple[Array, ...]) -> None:
    """Raises where what a ControlNet adds does not fit the feature maps, one by one."""
    added, own = ([" x ".join(map(str, x.shape[1:])) for x in maps] for maps in (control, features))
    if len(added) != len(own):
        raise UserError(
            f"the ControlNet adds {len(added)} feature maps, but this U-Net takes {len(own)}; give one that was "
            "trained for it"
        )
    for theirs, ours in zip(added, own, strict=True):
        if theirs != ours:
            raise UserError(
                f"the ControlNet adds a feature map of {theirs} where this U-Net has one of {ours}; give one that was "
                "trained for it"
            )


def read_unet_config(folder: str | Path) -> UNetConfig:
    """The config of a U-Net's folder.

    Raises:
        UserError: no such folder, another kind of model, or values that are not supported.
    """
    return UNetConfig.from_dict(pretrained.read_config(hub.local(folder)))


def read_sd_unet(folder: str | Path, shardings: Params | None = None, video: VideoConfig | None = None) -> Params:
    """Parameters of a U-Net, float32; with the layer for maps beside x_t, and those of the layers that join frames,
    which the folder has.

    Args:
        folder: in the layout of diffusers, `unet` of a pipeline's folder.
        shardings: tree of shardings, as `pretrained.read_params` takes it.
        video: the layers that may join frames, or None; the folder of a network that no clip has tuned has none.

    Raises:
        UserError: no such folder, another kind of model, weights that do not fit.
    """
    config = read_unet_config(folder)
    latents = jnp.zeros((1, config.factor, config.factor, config.in_channels))
    args = latents, jnp.zeros(1), jnp.zeros((1, 1, config.cross_attention_dim))
    stored = pretrained.stored_tensors(hub.local(folder))
    found = stored.get(tensor_name("conv_spatial/kernel"))
    spatial = None if found is None else jnp.zeros((*latents.shape[:3], found.shape[1]))  # stored as O I H W
    network = SDUNet(config, video=video or VideoConfig())
    expected = parameters.shapes(network, *args, spatial=spatial)
    expected = trees.select(expected, lambda name: not joins_frames(name) or tensor_name(name) in stored)
    return pretrained.read_params(hub.local(folder), expected, tensor_name, shardings=shardings)


def load_sd_unet(folder: str | Path, dtype: jnp.dtype = jnp.float32) -> tuple[SDUNet, Params]:
    """Reads a U-Net: the module, computing in `dtype`, and its float32 parameters; errors as above."""
    return SDUNet(read_unet_config(folder), dtype), read_sd_unet(folder)


def save_sd_unet(folder: str | Path, config: UNetConfig, params: Params, dtype: jnp.dtype = jnp.float32) -> None:
    """Writes a U-Net in the layout of diffusers, which loads it unchanged; `dtype` is that of the stored tensors."""
    pretrained.write_params(folder, params, tensor_name, config.to_dict(), dtype, STEM)
