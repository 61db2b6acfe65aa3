"""What the adapter sees of x0: the image tokens of a frozen CLIP, or the plain patches of the sample."""

from typing import Protocol

import einops

from contextdiff_jax.conditions.spaces import Latents, Pixels
from contextdiff_jax.errors import UserError
from contextdiff_jax.types import Array, Params


class Features(Protocol):
    """Image features of x0."""

    def grid(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """(h, w) of the tokens of an x0 of this shape (H, W, C)."""

    def encode(self, clip_params: Params, space_params: Params, x0: Array) -> Array:
        """x0 [B, ...] -> tokens [B, h * w, D]."""


class ClipFeatures:
    """Patch tokens of a CLIP image tower (paper, section 4.1)."""

    def __init__(self, clip, space: Pixels | Latents):
        self.clip, self._space = clip, space

    def grid(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """The CLIP's own, which resizes what it is shown."""
        return self.clip.grid

    def encode(self, clip_params: Params, space_params: Params, x0: Array) -> Array:
        """[B, h * w, D]; differentiable in x0."""
        return self.clip.encode_image(clip_params, self._space.to_rgb(space_params, x0)).tokens


class PatchFeatures:
    """The values of each patch of x0 themselves, for data that no CLIP has seen."""

    def __init__(self, shape: tuple[int, int, int], patch_size: int):
        height, width, _ = shape
        if height % patch_size or width % patch_size:
            raise UserError(f"samples of {height} x {width} have no whole patches of adapter.patch_size={patch_size}")
        self._patch_size = patch_size

    def grid(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """The patches along each side."""
        return shape[0] // self._patch_size, shape[1] // self._patch_size

    def encode(self, clip_params: Params, space_params: Params, x0: Array) -> Array:
        """[B, h * w, patch * patch * C]."""
        p = self._patch_size
        return einops.rearrange(x0, "b (h p) (w q) c -> b (h w) (p q c)", p=p, q=p)
