"""What turns Stable Diffusion's U-Net into one of clips: frames folded into the batch, and the layers that join them.

An array of a clip is [B * F, h, w, C] here, the frames of one clip after another; F is known when a program is traced.
Every layer of this file starts as identity, so that the network of a clip starts as the image network on each frame
(but for the key frames that self-attention looks at). Sources: Tune-A-Video (Wu et al. 2023), FateZero (Qi et al.
2023), ControlVideo (Zhao et al. 2023).
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import einops
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from contextdiff_jax.errors import UserError
from contextdiff_jax.layers import Attention, zeros
from contextdiff_jax.types import Array, Params

KeyFrame = int | str
NAMED = ("first", "mid", "last")
TEMPORAL_ATTENTION = ("none", "after", "parallel")
_BRANCH = "attn_temporal"


class Site(NamedTuple):
    """An attention layer, as an edit of its weights sees it.

    Attributes:
        name: path of the layer, such as down_blocks_0/attentions_0/transformer_blocks_0/attn2.
        kind: self, cross or temporal.
        height, width: of the feature map that the queries come from.
    """

    name: str
    kind: str
    height: int
    width: int


# Weights [B, H, Tq, Tk] after the softmax -> the weights to use. One that has `looks_at(site) -> bool` leaves the other
# layers their fast kernel; one that has `heads_apart(site) -> bool` may be given one head at a time where that is true.
Edit = Callable[[Array, Site], Array]


class EditAt(NamedTuple):
    """An edit of one layer.

    Attributes:
        edit: of all layers.
        site: the layer.
    """

    edit: Edit
    site: Site

    @property
    def heads_apart(self) -> bool:
        """Whether weights [B, 1, Tq, Tk] of one head after the other give the same as all at once."""
        return hasattr(self.edit, "heads_apart") and self.edit.heads_apart(self.site)

    def __call__(self, weights: Array) -> Array:
        return self.edit(weights, self.site)


@dataclasses.dataclass(frozen=True)
class VideoConfig:
    """Which layers join the frames of a clip. The default joins none: the image network, frame by frame.

    Attributes:
        temporal_conv_rank: of the low-rank convolution over time behind every convolution that is larger than one
            pixel (at most half its channels); 0 for none. FateZero: 160.
        temporal_attention: attention over time at every position: none; after the MLP of each transformer block (Tune-
            A-Video, FateZero); or parallel to the self-attention on the way down and up (ControlVideo).
        key_frames: frames whose positions are keys and values of self-attention: whole numbers count from the frame
            itself and stop at the ends of the clip; first, last, mid (the earlier of two middle ones, as FateZero has
            it). () is the frame itself. FateZero: (-1, "first").
        key_frames_min_channels: narrower feature maps attend to their own frame alone.
    """

    temporal_conv_rank: int = 0
    temporal_attention: str = "none"
    key_frames: tuple[KeyFrame, ...] = ()
    key_frames_min_channels: int = 0

    def __post_init__(self):
        if self.temporal_conv_rank < 0:
            raise UserError(f"temporal_conv_rank={self.temporal_conv_rank} is negative; 0 is none, 160 is usual")
        if self.temporal_attention not in TEMPORAL_ATTENTION:
            raise UserError(
                f"temporal_attention={self.temporal_attention!r} is unknown; accepted: {', '.join(TEMPORAL_ATTENTION)}"
            )
        for frame in self.key_frames:
            if isinstance(frame, bool) or not (isinstance(frame, int) or frame in NAMED):
                raise UserError(
                    f"key_frames={self.key_frames!r}: {frame!r} is no frame; use whole numbers, {', '.join(NAMED)}"
                )

    @classmethod
    def from_config(cls, section: ConfigDict) -> "VideoConfig":
        """From a config's `model.video`."""
        return cls(**(section.to_dict() | {"key_frames": tuple(section.key_frames)}))

    def frames_seen(self, num_frames: int, channels: int) -> np.ndarray | None:
        """The frames that each frame attends to, int [F, K]; None where that is itself alone."""
        if not self.key_frames or num_frames == 1 or channels < self.key_frames_min_channels:
            return None
        named = {"first": 0, "mid": (num_frames - 1) // 2, "last": num_frames - 1}
        own = np.arange(num_frames)
        seen = [np.full(num_frames, named[k]) if isinstance(k, str) else own + k for k in self.key_frames]
        return np.clip(np.stack(seen, axis=1), 0, num_frames - 1)


class Frames(NamedTuple):
    """How a call of the network sees its batch: clips of so many frames, and what edits its attention.

    Attributes:
        video: the layers that join frames.
        num_frames: F.
        edit: of attention weights, or None, with which nothing is computed differently.
    """

    video: VideoConfig = VideoConfig()
    num_frames: int = 1
    edit: Edit | None = None

    def edit_at(self, path: tuple[str, ...], kind: str, height: int, width: int) -> EditAt | None:
        """The edit of one layer's weights."""
        if self.edit is None:
            return None
        site = Site("/".join(path), kind, height, width)
        if hasattr(self.edit, "looks_at") and not self.edit.looks_at(site):
            return None
        return EditAt(self.edit, site)

    def keys_of(self, x: Array) -> Array | None:
        """The positions that self-attention of x [B * F, T, D] looks at, [B * F, K * T, D]; None for x itself."""
        seen = self.video.frames_seen(self.num_frames, x.shape[-1])
        if seen is None:
            return None
        clips = einops.rearrange(x, "(b f) t d -> b f t d", f=self.num_frames)
        return einops.rearrange(clips[:, seen], "b f k t d -> (b f) (k t) d")


class FrameConv(nn.Conv):
    """A convolution of each frame, then a residual low-rank pair over time: three frames down, three frames up.

    Attributes:
        num_frames: F.
        rank: channels between the two; at most half of those of the result.
    """

    num_frames: int = 1
    rank: int = 0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B * F, h, w, C] -> [B * F, h', w', features]."""
        h = super().__call__(x)
        if not self.rank:
            return h
        rank = max(1, min(self.rank, self.features // 2))
        over_time = lambda size, name, init: nn.Conv(
            size, (3,), use_bias=False, dtype=self.dtype, kernel_init=init, name=name
        )
        height, width = h.shape[1:3]
        clips = einops.rearrange(h, "(b f) h w c -> (b h w) f c", f=self.num_frames)
        low = over_time(rank, "temporal_down", nn.initializers.normal(rank**-0.5))(clips)
        joined = over_time(self.features, "temporal_up", zeros)(low)
        return h + einops.rearrange(joined, "(b h w) f c -> (b f) h w c", h=height, w=width)


class TemporalAttention(nn.Module):
    """Attention over the frames of a clip at each position; starts as zero.

    Attributes:
        num_heads: attention heads.
        dtype: type of the computation.
        num_frames: F.
        out_init: of the output kernel.
    """

    num_heads: int
    dtype: jnp.dtype
    num_frames: int
    out_init: nn.initializers.Initializer = zeros

    @nn.compact
    def __call__(self, x: Array, edit: Callable[[Array], Array] | None = None, seen: Array | None = None) -> Array:
        """x [B * F, T, D], seen bool [F, F] (True where frame i may look at frame j) -> the same shape."""
        clips = einops.rearrange(x, "(b f) t d -> (b t) f d", f=self.num_frames)
        attend = Attention(self.num_heads, self.dtype, out_init=self.out_init, name="over_time")
        return einops.rearrange(attend(clips, mask=seen, edit=edit), "(b t) f d -> (b f) t d", t=x.shape[1])


def joins_frames(name: str) -> bool:
    """Whether a parameter, by its "/"-joined name, is one of a layer that joins frames; all of those say so."""
    return "temporal" in name


def sources_of_branches(places: Params) -> Params:
    """Shardings of the self-attention that the wanted ones of ControlVideo's branches begin as copies of.

    Args:
        places: shardings of the wanted leaves.
    """
    flat = traverse_util.flatten_dict(places)
    return traverse_util.unflatten_dict({_beside(path): s for path, s in flat.items() if _BRANCH in path})


def with_branches_over_time(params: Params, places: Params) -> Params:
    """The wanted leaves; those of ControlVideo's branches that were not read are copies of the self-attention beside
    them.

    Args:
        params: of the U-Net that was read, with `sources_of_branches` in it; the branches too where it was tuned.
        places: shardings of the wanted leaves; what the U-Net has beside them is left out.
    """
    flat, result = traverse_util.flatten_dict(params), {}
    for path in traverse_util.flatten_dict(places):
        if path in flat:
            result[path] = flat[path]
        elif _BRANCH in path:
            result[path] = jnp.copy(flat[_beside(path)])
    return traverse_util.unflatten_dict(result)


def _beside(path: tuple[str, ...]) -> tuple[str, ...]:
    """Of a branch's parameter .../attn_temporal/over_time/... that of the self-attention, .../attn1/..."""
    at = path.index(_BRANCH)
    return (*path[:at], "attn1", *path[at + 2 :])
