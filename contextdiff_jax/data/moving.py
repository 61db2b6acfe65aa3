"""Embedded clips: one or two drawings on a coloured background, one of them moving, with exact masks and motion."""

import dataclasses
import hashlib
import struct

import numpy as np

from contextdiff_jax.data import raster
from contextdiff_jax.data.clips import RATE, Clip, Motion
from contextdiff_jax.data.scenes import GRID, Scene, draw_scene
from contextdiff_jax.data.vocabulary import Vocabulary, vocabulary
from contextdiff_jax.errors import UserError

_MARGIN = 1
_LARGEST = 20  # of the moving drawing's size in grid units: leaves room to move
_STEPS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))  # grid units per frame


@dataclasses.dataclass(frozen=True)
class Moving:
    """A scene whose first object moves by whole grid units per frame and turns back at the margin.

    Attributes:
        scene: at frame 0.
        step: (dx, dy) per frame in 1/32 of the side.
        vocab: names and drawings.
    """

    scene: Scene
    step: tuple[int, int]
    vocab: Vocabulary

    @property
    def caption(self) -> str:
        """The scene in words; the motion is not said."""
        return self.scene.caption(self.vocab)

    def other_captions(self) -> tuple[str, str]:
        """What to ask for: another object on this background, and this object on another, both seen in training.

        The object is the one half way round the list (a pumpkin for the demo's apple), the background the next.
        """
        (object_, *_), b, vocab = self.scene.objects, self.scene.background, self.vocab
        after = lambda i, n, first: [(i + first + k) % n for k in range(n - 1)]
        half = len(vocab.objects) // 2
        objects = (o for o in after(object_, len(vocab.objects), half) if (o, b) not in vocab.unseen and o != object_)
        colours = (c for c in after(b, len(vocab.backgrounds), 1) if (object_, c) not in vocab.unseen)
        swap = lambda **what: dataclasses.replace(self.scene, **what).caption(vocab)
        return swap(objects=(next(objects), *self.scene.objects[1:])), swap(background=next(colours))

    def at(self, frame: int) -> Scene:
        """The scene at a frame."""
        (x, y, size), *others = self.scene.places
        room = _room(self.scene, size)
        moved = (_turn_back(p + frame * d, *ends) for p, d, ends in zip((x, y), self.step, room, strict=True))
        return dataclasses.replace(self.scene, places=((*moved, size), *others))

    def clip(self, num_frames: int, image_size: int) -> Clip:
        """Frames, masks of the moving object and motion, all exact: objects move by whole pixels.

        Raises:
            UserError: a side that is not a multiple of 32, where positions would be rounded.
        """
        if image_size % GRID:
            raise UserError(
                f"data.image_size={image_size}: embedded clips need a multiple of {GRID}, to move by whole pixels"
            )
        scenes = [self.at(frame) for frame in range(num_frames)]
        frames = np.stack([scene.draw(self.vocab, image_size) for scene in scenes])
        owners = np.stack([owner_map(scene, self.vocab, image_size) for scene in scenes])
        unit = image_size // GRID
        corners = np.array([[place[:2] for place in scene.places] for scene in scenes]) * unit  # [F, objects, 2]
        return Clip(frames, RATE, self.caption, owners == 1, _motion(owners, corners))


def _room(scene: Scene, size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(lowest, highest) position of the moving object in x and in y: its half of the picture if it is one of two."""
    ends = [[_MARGIN, GRID - _MARGIN - size], [_MARGIN, GRID - _MARGIN - size]]
    if scene.relation >= 0:
        axis, first = scene.relation // 2, scene.relation % 2 == 0
        ends[axis] = [_MARGIN, GRID // 2 - size] if first else [GRID // 2, GRID - _MARGIN - size]
    return tuple(ends[0]), tuple(ends[1])


def _turn_back(position: int, low: int, high: int) -> int:
    """A position reflected at both ends as often as needed."""
    if high <= low:
        return low
    along = (position - low) % (2 * (high - low))
    return low + min(along, 2 * (high - low) - along)


def owner_map(scene: Scene, vocab: Vocabulary, image_size: int) -> np.ndarray:
    """Which object each pixel shows, if only a little of it: 1, 2, or 0 for the background; int [H, W]."""
    owners, unit = np.zeros((image_size, image_size), np.int32), image_size // GRID
    for number, (o, (x, y, size)) in enumerate(zip(scene.objects, scene.places, strict=True), start=1):
        side = size * unit
        region = owners[y * unit : y * unit + side, x * unit : x * unit + side]
        region[raster.alpha(vocab.codes[o], side) > 0] = number
    return owners


def _motion(owners: np.ndarray, corners: np.ndarray) -> Motion:
    """The flow that moved whole objects; owners int [F, H, W], corners int [F, objects, 2] in pixels."""
    count, height, width = owners.shape
    flow, valid = np.zeros((count - 1, height, width, 2), np.float32), np.zeros((count - 1, height, width), bool)
    ys, xs = np.mgrid[:height, :width]
    for f in range(count - 1):
        moves = np.concatenate([np.zeros((1, 2), int), corners[f] - corners[f + 1]])  # of the background, then objects
        flow[f] = moves[owners[f + 1]]
        from_x, from_y = xs + moves[owners[f + 1], 0], ys + moves[owners[f + 1], 1]
        inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
        same = owners[f][from_y.clip(0, height - 1), from_x.clip(0, width - 1)] == owners[f + 1]
        valid[f] = inside & same
    return Motion(flow, valid)


def moving(preset: str, index: int, seed: int = 0) -> Moving:
    """Embedded clip `index`: a held-out scene of the preset (demo, single: one object; pairs: two) that moves."""
    digest = hashlib.blake2b(f"clip/{preset}/{seed}/{index}".encode(), digest_size=8).digest()
    first, second = struct.unpack("<2I", digest)
    vocab = vocabulary(preset)
    scene = draw_scene(preset, vocab, "test", seed, index)
    if scene.relation < 0:
        x, y, size = scene.places[0]
        scene = dataclasses.replace(scene, places=((x, y, min(size, _LARGEST)),))
    steps = [step for step in _STEPS if scene.relation < 0 or not step[scene.relation // 2]]
    return Moving(scene, steps[(first ^ second) % len(steps)], vocab)
