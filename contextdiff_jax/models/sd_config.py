"""The config.json of Stable Diffusion's U-Net."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from contextdiff_jax.errors import UserError
from contextdiff_jax.formats.diffusers_format import DiffusersConfig

DOWN, UP = ("CrossAttnDownBlock2D", "DownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetConfig(DiffusersConfig):
    """A UNet2DConditionModel as config.json describes it.

    `attention_head_dim` is misnamed in diffusers: it is the number of heads, one for all levels or one for each.
    """

    CLASS_NAME = "UNet2DConditionModel"
    ONLY = dict(
        act_fn=("silu", "swish"),
        attention_type=("default",),
        addition_embed_type=(None,),
        addition_time_embed_dim=(None,),
        center_input_sample=(False,),
        class_embed_type=(None,),
        class_embeddings_concat=(False,),
        conv_in_kernel=(3,),
        conv_out_kernel=(3,),
        cross_attention_norm=(None,),
        downsample_padding=(1,),
        dual_cross_attention=(False,),
        encoder_hid_dim=(None,),
        encoder_hid_dim_type=(None,),
        mid_block_only_cross_attention=(None, False),
        mid_block_scale_factor=(1,),
        mid_block_type=("UNetMidBlock2DCrossAttn",),
        num_attention_heads=(None,),
        num_class_embeds=(None,),
        only_cross_attention=(False,),
        projection_class_embeddings_input_dim=(None,),
        resnet_out_scale_factor=(1.0,),
        resnet_skip_time_act=(False,),
        resnet_time_scale_shift=("default",),
        reverse_transformer_layers_per_block=(None,),
        time_cond_proj_dim=(None,),
        time_embedding_act_fn=(None,),
        time_embedding_dim=(None,),
        time_embedding_type=("positional",),
        timestep_post_act=(None,),
    )
    # The softmax is in float32 in any case; the heads belong to an embedding that is refused; dropout is for training.
    UNUSED = ("sample_size", "upcast_attention", "addition_embed_type_num_heads", "dropout")
    UNIFORM = ("layers_per_block", "cross_attention_dim", "transformer_layers_per_block", "only_cross_attention")

    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    attention_head_dim: int | tuple[int, ...] = 8
    cross_attention_dim: int = 1280
    transformer_layers_per_block: int = 1
    use_linear_projection: bool = False
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: float = 0

    def __post_init__(self):
        widths = self.block_out_channels
        for key, kinds in (("down_block_types", DOWN), ("up_block_types", UP)):
            value = getattr(self, key)
            if len(value) != len(widths) or not set(value) <= set(kinds):
                accepted = f"a list of {len(widths)}, as block_out_channels has, each {' or '.join(kinds)}"
                raise self.unsupported(key, value, accepted)
        if any(width % self.norm_num_groups for width in widths) or widths[0] % 2:
            accepted = f"multiples of norm_num_groups={self.norm_num_groups}, the first even"
            raise self.unsupported("block_out_channels", widths, accepted)
        heads = self.attention_head_dim
        if isinstance(heads, tuple) and len(heads) != len(widths):
            raise self.unsupported("attention_head_dim", heads, f"one number of heads or a list of {len(widths)}")
        if any(width % self.heads(level) for level, width in enumerate(widths) if self.attends(level)):
            raise self.unsupported("attention_head_dim", heads, f"numbers of heads that divide {widths}")

    @property
    def factor(self) -> int:
        """Sides of the input must be multiples of this."""
        return 2 ** (len(self.block_out_channels) - 1)

    def heads(self, level: int) -> int:
        """Attention heads at a level, counted from the finest."""
        heads = self.attention_head_dim
        return heads[level] if isinstance(heads, tuple) else heads

    def attends(self, level: int) -> bool:
        """Whether a level has attention on the way down or up, or in the middle."""
        last = len(self.block_out_channels) - 1
        return "Cross" in self.down_block_types[level] + self.up_block_types[last - level] or level == last


def sample_side(config: Mapping[str, Any]) -> int:
    """Side of the latents that a U-Net's config.json names, as diffusers' StableDiffusionPipeline reads it.

    Before version 0.9.0 the class's default of 32 was written into the files of models for 64; the pipeline reads any
    smaller size of such a file as 64. A file that names no version is taken at its word.

    Raises:
        UserError: none is named, or one that is no square.
    """
    size = config.get("sample_size")
    sides = size if isinstance(size, list | tuple) and len(size) == 2 else (size, size)
    side = sides[0]
    if sides[0] != sides[1] or isinstance(side, bool) or not isinstance(side, int) or side < 1:
        raise UserError(
            f"unet/config.json: sample_size={size!r} is no side of square latents; write one there, 64 for most Stable "
            "Diffusion models"
        )
    version = re.match(r"(\d+)\.(\d+)", str(config.get("_diffusers_version")))
    old = version is not None and tuple(map(int, version.groups())) < (0, 9)
    return 64 if old and isinstance(size, int) and side < 64 else side
