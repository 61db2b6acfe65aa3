"""Scenes as small integers: what is shown where. Drawing them at any size comes after, in pixels.

A scene is independent of the image size, of the seed and of the preset that drew it, and a hash of it alone
decides its split. So no scene can be in two splits, whatever seeds and presets are compared.
"""

import dataclasses
import hashlib
import struct

import numpy as np

from contextdiff_jax.data import raster
from contextdiff_jax.data.vocabulary import BACKGROUNDS, OF_TWO, SAME_DRAWING, Vocabulary

GRID = 32  # positions and sizes are whole numbers of 1/32 of the image side: exact pixels at 32 x 32
MAX_OBJECTS = 2
_SHADES = 9
_SHADE_STEP = 3  # levels of brightness per shade, -12 .. 12
_ALONE_SIZES = (18, 27)  # 56 % to 84 % of the side
_PAIR_SIZES = (10, 14)  # 31 % to 44 %
_MARGIN = 1
_PAIR_SWAY = 4  # how far the pair's objects may stray across their relation's axis
_VAL_SHARE, _TEST_SHARE, _RECOGNISER_SHARE = 0.05, 0.05, 0.1
_BASE_COLOURS = np.array(list(BACKGROUNDS.values()), np.int64)


@dataclasses.dataclass(frozen=True, slots=True)
class Scene:
    """One picture in integers.

    Attributes:
        objects: object ids, one or two.
        places: (x, y, size) of each object's square in 1/32 of the image side.
        background: background id.
        shade: brightness of the background, 0..8.
        relation: index into RELATIONS, -1 for one object alone.
    """

    objects: tuple[int, ...]
    places: tuple[tuple[int, int, int], ...]
    background: int
    shade: int
    relation: int = -1

    def split(self, vocab: Vocabulary) -> str:
        """train, val, test, unseen or recogniser; depends only on what the picture shows."""
        drawings = (SAME_DRAWING.get(vocab.codes[o], vocab.codes[o]) for o in self.objects)
        # Sorted, because "a left of b" and "b right of a" are the same picture.
        key = repr((sorted(zip(drawings, self.places, strict=True)), self.background, self.shade))
        share = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "little") / 2**32
        if share >= 1 - _RECOGNISER_SHARE:  # whatever the combination
            return "recogniser"
        if any((o, self.background) in vocab.unseen for o in self.objects):
            return "unseen"
        if share < _VAL_SHARE:
            return "val"
        return "test" if share < _VAL_SHARE + _TEST_SHARE else "train"

    def caption(self, vocab: Vocabulary) -> str:
        """The scene in words."""
        if self.relation < 0:
            return vocab.caption(self.objects[0], self.background)
        return vocab.relation_caption(self.objects[0], self.relation, self.objects[1], self.background)

    def pixels(self, image_size: int) -> list[tuple[int, int, int]]:
        """(left, top, side) of each object's square in whole pixels of a picture of that side."""
        found = []
        for x, y, size in self.places:
            side = _to_pixels(size, image_size)
            left, top = (min(_to_pixels(start, image_size), image_size - side) for start in (x, y))
            found.append((left, top, side))
        return found

    def boxes(self, vocab: Vocabulary, image_size: int) -> np.ndarray:
        """Tight boxes of the objects as they are drawn at that size, float32 [MAX_OBJECTS, 4] xyxy in 0..1; zero rows
        where none is. The same at all multiples of 32 pixels; at others, places and sizes are rounded to pixels."""
        boxes = np.zeros((MAX_OBJECTS, 4), np.float32)
        for row, (o, (left, top, side)) in enumerate(zip(self.objects, self.pixels(image_size), strict=True)):
            tight = np.array(raster.tight_box(vocab.codes[o]))
            boxes[row] = (np.array([left, top, left, top]) + side * tight) / image_size
        return boxes

    def draw(self, vocab: Vocabulary, image_size: int) -> np.ndarray:
        """The picture, uint8 [image_size, image_size, 3]."""
        colour = _BASE_COLOURS[self.background] + (self.shade - _SHADES // 2) * _SHADE_STEP
        image = np.empty((image_size, image_size, 3), np.uint8)
        image[...] = colour
        for o, (left, top, side) in zip(self.objects, self.pixels(image_size), strict=True):
            raster.paste(image, vocab.codes[o], left, top, side)
        return image


def draw_scene(preset: str, vocab: Vocabulary, split: str, seed: int, index: int) -> Scene:
    """Scene `index` of a split: candidates follow each other until one belongs to the split."""
    propose = _propose_pair if preset in OF_TWO else _propose_alone
    attempt = 0
    while True:
        scene = propose(vocab, split, _words(preset, split, seed, index, attempt))
        if scene.split(vocab) == split:
            return scene
        attempt += 1


def _words(preset: str, split: str, seed: int, index: int, attempt: int) -> tuple[int, ...]:
    """Sixteen random 32-bit words. A hash, so record i needs no other record, process or library version."""
    key = f"{preset}/{split}/{seed}/{index}/{attempt}".encode()
    return struct.unpack("<16I", hashlib.blake2b(key, digest_size=64).digest())


def _between(word: int, low: int, high: int) -> int:
    """A whole number in low..high inclusive."""
    return low + word % (high - low + 1)


def _background(vocab: Vocabulary, split: str, objects: tuple[int, ...], word: int) -> int:
    """A background id: for the unseen split the one held out from the first object, for the recogniser any,
    otherwise one that is seen with it."""
    seen, held_out = [], []
    for b in range(len(vocab.backgrounds)):
        (held_out if (objects[0], b) in vocab.unseen else seen).append(b)
    choices = {"unseen": held_out, "recogniser": seen + held_out}.get(split, seen)
    return choices[word % len(choices)]


def _propose_alone(vocab: Vocabulary, split: str, words: tuple[int, ...]) -> Scene:
    """One object of 56-84 % of the side, anywhere inside the margin."""
    objects = (words[0] % len(vocab.objects),)
    size = _between(words[1], *_ALONE_SIZES)
    high = GRID - _MARGIN - size
    place = (_between(words[2], _MARGIN, high), _between(words[3], _MARGIN, high), size)
    return Scene(objects, (place,), _background(vocab, split, objects, words[4]), words[5] % _SHADES)


def _propose_pair(vocab: Vocabulary, split: str, words: tuple[int, ...]) -> Scene:
    """Two different objects, one in each half of the picture along the relation's axis."""
    first = words[0] % len(vocab.objects)
    second = (first + 1 + words[1] % (len(vocab.objects) - 1)) % len(vocab.objects)
    relation = words[2] % 4
    places = []
    for i, (size_word, along_word, across_word) in enumerate((words[5:8], words[8:11])):
        size = _between(size_word, *_PAIR_SIZES)
        # The first object comes first on the axis for "left of" and "above" (even relations).
        start, end = (_MARGIN, GRID // 2) if i == relation % 2 else (GRID // 2, GRID - _MARGIN)
        along = _between(along_word, start, end - size)
        across = _between(across_word, (GRID - size) // 2 - _PAIR_SWAY, (GRID - size) // 2 + _PAIR_SWAY)
        places.append((along, across, size) if relation < 2 else (across, along, size))
    objects = (first, second)
    background = _background(vocab, split, objects, words[3])
    return Scene(objects, tuple(places), background, words[4] % _SHADES, relation)


def _to_pixels(units: int, image_size: int) -> int:
    """Grid units to whole pixels, halves up, in integers so that every machine agrees."""
    return (2 * units * image_size + GRID) // (2 * GRID)
