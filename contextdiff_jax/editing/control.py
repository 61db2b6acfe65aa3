"""Attention control with constant memory: the source's attention weights are at hand exactly when they are used.

Peers store every map of the inversion (28 GiB for 8 frames and 20 steps). Here the rows of a network call are [null,
edit, source], each a clip of F frames, and the source row is the inversion's latent x_t of the time t at hand under the
source prompt: the same network on the same trajectory. The maps are not the peers' to the last digit: FateZero keeps
those of the inversion's own calls, which move x_s up to t and so show the network the less noisy x_s at the time t; the
source row shows it x_t at t, as the edited row's own latent is.

A mask is needed before the layers that it is made of have run, so its maps are those of the inversion's call of the
same time (x_s at t, FateZero's own), averaged over heads and layers and summed over the words that are asked for:
kilobytes.
"""

from collections.abc import Callable
from typing import Any

import einops
import flax.struct
import jax.numpy as jnp

from contextdiff_jax.errors import UserError
from contextdiff_jax.types import Array


@flax.struct.dataclass
class Control:
    """How attention is edited, as arguments of a compiled program; L tokens, K steps.

    Attributes:
        mapping, taken: of the prompts' alignment, [L, L] and [L].
        equalizer: what cross-attention to each token is multiplied by where it is the source's, [L].
        cross: 1 in the steps in which a token takes the source's weights, [K, L].
        self_attention: 1 in the steps in which self-attention takes the source's weights, [K].
        blend: 1 in the steps after which latents outside the mask become the source's, [K].
        source_words, target_words: 1 for the tokens whose attention makes the mask, [L].
        threshold: of the mask, [].
    """

    mapping: Array
    taken: Array
    equalizer: Array
    cross: Array
    self_attention: Array
    blend: Array
    source_words: Array
    target_words: Array
    threshold: Array


class Recorder:
    """An edit that changes nothing and remembers the cross-attention of one resolution.

    Args:
        resolution: side of the feature maps.
    """

    def __init__(self, resolution: int):
        self.resolution, self._maps, self._sides = resolution, [], set()

    def looks_at(self, site: Any) -> bool:
        """Whether a layer's weights are needed at all; the others keep their fast kernel."""
        if site.kind == "cross":
            self._sides.add(site.height)
        return site.kind == "cross" and site.height == self.resolution

    def __call__(self, weights: Array, site: Any) -> Array:
        """Remembers weights [B, H, Tq, L] as maps [B, h, w, L], averaged over heads."""
        if site.kind == "cross" and site.height == self.resolution:
            self._maps.append(weights.mean(axis=1).reshape(-1, site.height, site.width, weights.shape[-1]))
        return weights

    @property
    def has_maps(self) -> bool:
        """Whether a layer has had this resolution."""
        return bool(self._maps)

    def maps(self) -> Array:
        """The mean over the layers, [B, h, w, L].

        Raises:
            UserError: no layer has this resolution.
        """
        if not self._maps:
            sides = ", ".join(str(side) for side in sorted(self._sides)) or "none"
            raise UserError(
                f"edit.mask_resolution={self.resolution}: the network attends to the text at the sides {sides}; "
                "take one of those"
            )
        return sum(self._maps) / len(self._maps)


class Fusion(Recorder):
    """The edit of one step: the source's weights in the place of the edited row's.

    Args:
        resolution: of the cross-attention maps that are remembered.
        max_tokens: attention of feature maps with more positions is left alone, as FateZero does (32 x 32): it is only
            remembered where it has the resolution.
        control: `mapping`, `taken` and `equalizer` are used.
        cross: 1 where a token takes the source's weights in this step, [L].
        self_attention: 1 where self-attention does, [].
        region: from (height, width) to where self-attention stays the edited row's, [F, height, width]; None: nowhere.
        num_frames: F.
    """

    def __init__(
        self,
        resolution: int,
        max_tokens: int,
        control: Control,
        cross: Array,
        self_attention: Array,
        region: Callable[[tuple[int, int]], Array] | None,
        num_frames: int,
    ):
        super().__init__(resolution)
        self._max_tokens, self._control, self._region, self._num_frames = max_tokens, control, region, num_frames
        self._cross, self._self_attention = cross, self_attention

    def looks_at(self, site: Any) -> bool:
        """Attention to the text and to the frames of few positions, and what is remembered."""
        return super().looks_at(site) or self._fused(site)

    def heads_apart(self, site: Any) -> bool:
        """Only attention to the text is remembered, as the mean over heads."""
        return site.kind != "cross"

    def _fused(self, site: Any) -> bool:
        """Whether a layer takes the source's weights."""
        return site.kind in ("cross", "self") and site.height * site.width <= self._max_tokens

    def __call__(self, weights: Array, site: Any) -> Array:
        """Weights [rows * F, H, Tq, Tk] -> the same; the last two rows are the edited clip's and its source's."""
        super().__call__(weights, site)
        if not self._fused(site):
            return weights
        rows = einops.rearrange(weights, "(r f) h q k -> r f h q k", f=self._num_frames)
        edit, source = rows[-2], rows[-1]
        new = self._cross_weights(edit, source) if site.kind == "cross" else self._self_weights(edit, source, site)
        rows = jnp.concatenate([rows[:-2], new.astype(weights.dtype)[None], source[None]])
        return einops.rearrange(rows, "r f h q k -> (r f) h q k")

    def _cross_weights(self, edit: Array, source: Array) -> Array:
        """Aligned tokens take the source's weights, times the equalizer; the others keep their own."""
        control = self._control
        aligned = (source @ control.mapping) * control.taken + edit * (1.0 - control.taken)
        return self._cross * aligned * control.equalizer + (1.0 - self._cross) * edit

    def _self_weights(self, edit: Array, source: Array, site: Any) -> Array:
        """The source's weights, but inside the mask the edited row's own."""
        if self._region is not None:
            inside = self._region((site.height, site.width)).reshape(self._num_frames, 1, -1, 1)
            source = inside * edit + (1.0 - inside) * source
        return self._self_attention * source + (1.0 - self._self_attention) * edit
