"""A layout as condition: which class stands in which box (paper, section 4.3).

A layout is a set: what is made of it does not depend on the order of its objects, nor on how many places are padded.
"""

import difflib
import warnings
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from contextdiff_jax import parameters
from contextdiff_jax.conditions.base import Record
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import composed
from contextdiff_jax.layers import ResBlock, unit_normal
from contextdiff_jax.types import Array, Batch, Context, Params

PADDING = -1  # as the label of a place that holds no object
_HARMONICS = 4
Layout = Sequence[tuple[str | int, Sequence[float]]]


def rasterise(boxes: Array, height: int, width: int) -> Array:
    """How much of each cell of a grid each box covers, in both directions exactly.

    Args:
        boxes: (x0, y0, x1, y1) as fractions of the sides, [..., 4].
        height, width: of the grid.

    Returns:
        [..., height, width] in [0, 1]. Mirrored boxes give the mirrored map.
    """

    def covered(low: Array, high: Array, cells: int) -> Array:
        edge = jnp.arange(cells) / cells
        overlap = jnp.minimum(high[..., None], edge + 1 / cells) - jnp.maximum(low[..., None], edge)
        return jnp.clip(overlap * cells, 0.0, 1.0)

    x0, y0, x1, y1 = jnp.moveaxis(boxes, -1, 0)
    return covered(y0, y1, height)[..., :, None] * covered(x0, x1, width)[..., None, :]


class LayoutNet(nn.Module):
    """Soft maps of the objects through residual stages to tokens, and a token for each object.

    Attributes:
        num_classes: K.
        width: of the tokens, a multiple of 16.
        depth: residual blocks a stage.
        size: (height, width) of the soft map.
        token_grid: side of the square of tokens that the stages end with, where halving the shorter side leads to it;
            else they end with the nearest that does.
        map_channels: of the map that the denoiser is given.
        dtype: type of the computation; parameters and what it gives are float32, and so is the geometry of boxes.
        remat: recompute the residual blocks in the backward pass to save memory.
    """

    num_classes: int
    width: int
    depth: int
    size: tuple[int, int]
    token_grid: int
    map_channels: int
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, boxes: Array, labels: Array) -> tuple[Array, Array, Array, Array]:
        """Boxes [B, N, 4] and labels int32 [B, N].

        Returns:
            tokens [B, L, width] and their mask [B, L], a pooled feature [B, width], the map [B, H, W, map_channels].
        """
        real = labels != PADDING
        embed = nn.Embed(self.num_classes, self.width, self.dtype, embedding_init=unit_normal, name="label")
        conv = lambda channels, name, **how: nn.Conv(channels, (3, 3), dtype=self.dtype, name=name, **how)
        dense = lambda name: nn.Dense(self.width, dtype=self.dtype, name=name)
        block = nn.remat(ResBlock) if self.remat else ResBlock
        known = jnp.where(real[..., None], embed(labels), 0.0)
        cover = jnp.where(real[..., None, None], rasterise(boxes, *self.size), 0.0)
        # Where boxes overlap, the mean of their classes: the map stays in scale however many objects there are.
        total = jnp.einsum("bnhw,bnd->bhwd", cover.astype(self.dtype), known)
        soft = total / jnp.maximum(cover.sum(1), 1.0)[..., None].astype(self.dtype)
        spatial = conv(self.map_channels, "map", use_bias=False)(soft).astype(jnp.float32)
        h = conv(self.width, "stem")(soft)
        for stage in range(_halvings(self.size, self.token_grid)):
            for i in range(self.depth):
                h = block(self.width, 0.0, self.dtype, name=f"stage_{stage}_{i}")(h)
            h = conv(self.width, f"down_{stage}", strides=(2, 2))(h)
        on_grid = h.reshape(h.shape[0], -1, self.width).astype(jnp.float32)
        place = dense("place")(_waves(boxes))
        objects = jnp.where(real[..., None], dense("object")(nn.silu(known + place)).astype(jnp.float32), 0.0)
        mask = jnp.concatenate([jnp.ones(on_grid.shape[:2], bool), real], axis=1)
        return jnp.concatenate([on_grid, objects], axis=1), mask, on_grid.mean(1), spatial


def _halvings(size: tuple[int, int], token_grid: int) -> int:
    """How often the sides are halved, so that the shorter one comes nearest to the grid's."""
    return max(0, round(np.log2(min(size) / token_grid)))


def _warn_of_grid(size: tuple[int, int], token_grid: int) -> None:
    """Says where halving does not lead to the grid: a run of an earlier version may have trained so."""
    side, halvings = min(size), _halvings(size, token_grid)
    if token_grid * 2**halvings != side:
        ends = [-(-length // 2**halvings) for length in size]
        fitting = [side >> k for k in range(side.bit_length()) if side % 2**k == 0]
        warnings.warn(
            f"config.condition.token_grid={token_grid} cannot be had by halving a side of {side}: the tokens are "
            f"{ends[0]} x {ends[1]}; {', '.join(map(str, fitting))} can",
            stacklevel=3,
        )


def _waves(boxes: Array) -> Array:
    """Sines and cosines of the coordinates, [..., 4] -> [..., 8 * harmonics]."""
    angles = boxes[..., None] * jnp.pi * 2.0 ** jnp.arange(_HARMONICS)
    waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return waves.reshape(*boxes.shape[:-1], -1)


class LayoutCondition:
    """A set of (class, box). Fields: boxes float32 [B, N, 4], labels int32 [B, N], -1 for padding.

    Args:
        names: of the classes.
        max_objects: N.
        size: (height, width) of x0; the denoiser gets a map of this size.
        width, depth: of the network.
        token_grid: see `LayoutNet`.
        map_channels: of the denoiser's map.
        dtype, remat: see `LayoutNet`.
    """

    takes_prompts, trained = True, True
    params: Params = {}

    def __init__(
        self,
        names: Sequence[str],
        max_objects: int,
        size: tuple[int, int],
        width: int,
        depth: int,
        token_grid: int,
        map_channels: int,
        dtype: jnp.dtype = jnp.float32,
        remat: bool = False,
    ):
        _warn_of_grid(size, token_grid)
        self.names, self.max_objects = tuple(names), max_objects
        self._numbers = {composed(name): number for number, name in enumerate(self.names)}
        self.net = LayoutNet(len(self.names), width, depth, size, token_grid, map_channels, dtype, remat)

    def init(self, key: Array) -> Params:
        """Fresh parameters; pure."""
        fields = self.empty(1)
        return parameters.init(self.net, key, jnp.asarray(fields["boxes"]), jnp.asarray(fields["labels"]))

    def from_records(self, records: Sequence[Record]) -> dict[str, np.ndarray]:
        """The records' own objects in their boxes."""
        return self._fields([(record["objects"], record["boxes"]) for record in records])

    def read(self, layouts: Sequence[Layout]) -> dict[str, np.ndarray]:
        """Boxes and labels of what a user asks for.

        Raises:
            UserError: an unknown class (the nearest are named), a box outside 0..1 or of no area, too many objects.
        """
        return self._fields([self._checked(layout, i) for i, layout in enumerate(layouts)])

    def empty(self, batch_size: int) -> dict[str, np.ndarray]:
        """Layouts without an object."""
        return self._fields([((), ())] * batch_size)

    def _fields(self, layouts: Sequence[tuple[Any, Any]]) -> dict[str, np.ndarray]:
        boxes = np.zeros((len(layouts), self.max_objects, 4), np.float32)
        labels = np.full((len(layouts), self.max_objects), PADDING, np.int32)
        for i, (own_labels, own_boxes) in enumerate(layouts):
            kept = np.asarray(own_labels, np.int32).reshape(-1)[: self.max_objects]
            labels[i, : len(kept)] = kept
            boxes[i, : len(kept)] = np.asarray(own_boxes, np.float32).reshape(-1, 4)[: self.max_objects]
        return {"boxes": boxes, "labels": labels}

    def _checked(self, layout: Layout, index: int) -> tuple[list[int], list[tuple[float, ...]]]:
        """(labels, boxes) of one layout."""
        if len(layout) > self.max_objects:
            raise UserError(f"layout {index + 1} has {len(layout)} objects; at most {self.max_objects} fit")
        labels, boxes = [], []
        for entry in layout:
            if not isinstance(entry, list | tuple) or len(entry) != 2:
                raise UserError(f"layout {index + 1}: {entry!r} is no (class, (x0, y0, x1, y1))")
            labels.append(self._label(entry[0], index))
            boxes.append(_box(entry[1], f"layout {index + 1}, {entry[0]!r}"))
        return labels, boxes

    def _label(self, name: str | int, index: int) -> int:
        """A class's number, from its name or number."""
        if isinstance(name, str) and composed(name) in self._numbers:
            return self._numbers[composed(name)]
        if isinstance(name, int | np.integer) and not isinstance(name, bool) and 0 <= name < len(self.names):
            return int(name)
        near = difflib.get_close_matches(str(name), self.names, n=3, cutoff=0.0)
        raise UserError(
            f"layout {index + 1}: {name!r} is no class; nearest are {', '.join(near)} "
            f"({len(self.names)} classes, by name or 0 to {len(self.names) - 1})"
        )

    def encode(self, params: Params, fields: Batch) -> Context:
        """Tokens of the map and of each object, and the map itself for the denoiser."""
        tokens, mask, pooled, spatial = self.net.apply({"params": params}, fields["boxes"], fields["labels"])
        return Context(tokens=tokens, pooled=pooled, mask=mask, spatial=spatial)

    def null(self, params: Params, context: Context) -> Context:
        """The empty layout."""
        none = self.encode(params, {name: jnp.asarray(v) for name, v in self.empty(1).items()})
        repeated = lambda name: jnp.broadcast_to(getattr(none, name), getattr(context, name).shape)
        return context.replace(**{name: repeated(name) for name in ("tokens", "pooled", "mask", "spatial")})


def _box(box: Any, where: str) -> tuple[float, ...]:
    """A box within the picture and with an area."""
    try:
        if any(isinstance(v, str) for v in box):
            raise TypeError("texts are no numbers")
        x0, y0, x1, y1 = (float(v) for v in box)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{where}: {box!r} is no box; give (x0, y0, x1, y1) as fractions of the sides") from error
    if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
        raise UserError(f"{where}: box {(x0, y0, x1, y1)} must have 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1")
    return x0, y0, x1, y1


def layout_of(record: Record, names: Sequence[str]) -> Layout:
    """What to ask for to get a picture like a record's."""
    shown = zip(record["objects"], record["boxes"], strict=True)
    return [(names[label], tuple(float(v) for v in box)) for label, box in shown if label != PADDING]


def in_words(layout: Layout, names: Sequence[str] = ()) -> str:
    """A layout as a caption: the objects, by `names` where they are numbers, and where they are, in hundredths of the
    sides."""
    called = lambda label: label if isinstance(label, str) or not names else names[label]
    place = lambda box: ",".join(str(round(100 * v)) for v in box)
    return "; ".join(f"{called(label)} at {place(box)}" for label, box in layout) or "nothing"
