import collections
import hashlib
import subprocess
import sys
import time

import numpy as np
import pytest

from contextdiff_jax.data import OpenMojiSource, raster, scenes, vocabulary
from contextdiff_jax.data.vocabulary import PRESETS, RELATIONS, SAME_DRAWING, SPLITS
from contextdiff_jax.errors import UserError

_N = 600


def _digest(preset: str) -> str:
    records = [OpenMojiSource(preset, "train", 32)[i] for i in (5, 0, 99, 5)]
    return hashlib.sha256(b"".join(r["image"].tobytes() + r["caption"].encode() for r in records)).hexdigest()


def _picture(scene: scenes.Scene, vocab) -> tuple:
    """What a scene shows, whatever the names and the order of its objects."""
    drawings = [SAME_DRAWING.get(vocab.codes[o], vocab.codes[o]) for o in scene.objects]
    return (tuple(sorted(zip(drawings, scene.places, strict=True))), scene.background, scene.shade)


def test_records_are_the_same_in_another_process():
    code = "import sys; sys.path.insert(0, 'tests/data'); import test_openmoji as t; "
    code += f"print(*[t._digest(p) for p in {PRESETS!r}])"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert out == [_digest(preset) for preset in PRESETS]


def test_records_are_pinned():
    """The records themselves must not change unnoticed: shipped encoders were trained on this split."""
    source = OpenMojiSource("demo", "train", 32)
    assert [source[i]["caption"] for i in range(3)] == [
        "a mushroom on a purple background",
        "a pig face on a white background",
        "a bear on a yellow background",
    ]


@pytest.mark.parametrize("preset", [*PRESETS, "demo+single+pairs"])
def test_random_access(preset):
    a, b = OpenMojiSource(preset, "train", 16), OpenMojiSource(preset, "train", 16)
    forward = [a[i] for i in range(8)]
    for i in reversed(range(8)):
        record = b[i]
        np.testing.assert_array_equal(record["image"], forward[i]["image"])
        assert record["caption"] == forward[i]["caption"] and record["index"] == i
    assert a[len(a) - 1]["image"].shape == (16, 16, 3)
    for index in (-1, len(a)):
        with pytest.raises(IndexError):
            a[index]


@pytest.mark.parametrize("preset", PRESETS)
def test_splits_are_disjoint_whatever_the_seed(preset):
    pictures = {}
    for split in SPLITS:
        found = set()
        for seed in (0, 1):
            source = OpenMojiSource(preset, split, 16, seed)
            for i in range(_N):
                scene = source.scene(i)
                assert scene.split(source.vocabulary) == split
                found.add(_picture(scene, source.vocabulary))
        pictures[split] = found
    for split in SPLITS:
        for other in SPLITS:
            assert split == other or not pictures[split] & pictures[other]


def test_a_scene_has_one_split_in_all_presets():
    demo, single = vocabulary("demo"), vocabulary("single")
    source = OpenMojiSource("demo", "val", 16)
    assert all(source.scene(i).split(single) == source.scene(i).split(demo) == "val" for i in range(100))


def test_swapped_pair_is_the_same_picture_and_split():
    vocab, source = vocabulary("pairs"), OpenMojiSource("pairs", "test", 16)
    for i in range(50):
        s = source.scene(i)
        swapped = scenes.Scene(s.objects[::-1], s.places[::-1], s.background, s.shade, s.relation ^ 1)
        np.testing.assert_array_equal(s.draw(vocab, 32), swapped.draw(vocab, 32))
        assert swapped.split(vocab) == "test"


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_held_out_combinations_are_never_trained_on(preset, split):
    source = OpenMojiSource(preset, split, 16)
    for i in range(2000):
        scene = source.scene(i)
        assert not {(o, scene.background) for o in scene.objects} & source.vocabulary.unseen


@pytest.mark.parametrize("preset", PRESETS)
def test_unseen_shows_held_out_combinations_only(preset):
    source = OpenMojiSource(preset, "unseen", 16)
    for i in range(500):
        scene = source.scene(i)
        assert (scene.objects[0], scene.background) in source.vocabulary.unseen


def test_the_recogniser_s_split_has_every_combination():
    source = OpenMojiSource("demo", "recogniser", 16)
    assert len({(s.objects[0], s.background) for s in map(source.scene, range(1500))}) == 72


def test_demo_train_covers_everything_evenly():
    source = OpenMojiSource("demo", "train", 16)
    counts = collections.Counter((s.objects[0], s.background) for s in map(source.scene, range(6000)))
    assert set(counts) == set(source.vocabulary.seen)
    assert min(counts.values()) > 60 and max(counts.values()) < 150
    sizes = {source.scene(i).places[0][2] / scenes.GRID for i in range(2000)}
    assert min(sizes) >= 0.55 and max(sizes) <= 0.85 and len(sizes) == 10
    unseen = OpenMojiSource("demo", "unseen", 16)
    assert {(s.objects[0], s.background) for s in map(unseen.scene, range(500))} == unseen.vocabulary.unseen


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", [16, 24, 33, 48, 64, 512])
def test_boxes_match_the_pixels_at_any_size(preset, size, monkeypatch):
    source = OpenMojiSource(preset, "train", size)
    black_white = np.array([[0, 0, 0], [255, 255, 255]])
    monkeypatch.setattr(scenes, "_BASE_COLOURS", black_white)
    for i in range(6):
        scene = source.scene(i)
        boxes = scene.boxes(source.vocabulary, size)
        assert boxes.dtype == np.float32 and (boxes >= 0).all() and (boxes <= 1).all()
        assert not boxes[len(scene.objects) :].any()
        for o, place, box in zip(scene.objects, scene.places, boxes * size, strict=False):
            on_black, on_white = (
                scenes.Scene((o,), (place,), b, shade=4).draw(source.vocabulary, size).astype(int)
                for b in (0, 1)
            )
            alpha = 1 - (on_white - on_black).mean(-1) / 255
            # The extent of a drawing is known to 1/4 of its 72 units, 0.4 % of the side.
            slack = 0.25 + 0.004 * size
            if (alpha >= 0.5).any():  # a thin line may be faint all over in a small image
                assert _distances(alpha >= 0.5, box).min() >= -0.5 - slack
            assert _distances(alpha > 0, box).max() <= slack


def _distances(drawn, box):
    """How far the drawn pixels stay inside the box on its four sides."""
    columns, rows = np.flatnonzero(drawn.any(0)), np.flatnonzero(drawn.any(1))
    return np.array([columns[0] - box[0], rows[0] - box[1], box[2] - columns[-1] - 1, box[3] - rows[-1] - 1])


@pytest.mark.parametrize("size", [16, 32, 64, 256])
def test_same_scene_at_all_sizes(size):
    big, small = OpenMojiSource("demo", "train", 512), OpenMojiSource("demo", "train", size)
    for i in range(8):
        assert small.scene(i) == big.scene(i)
        rounding = 0 if size >= 32 else 1 / size  # of places and of sizes, half a pixel each
        np.testing.assert_allclose(small[i]["boxes"], big[i]["boxes"], rtol=0, atol=rounding)
        k = 512 // size
        shrunk = big[i]["image"].reshape(size, k, size, k, 3).astype(float).mean((1, 3))
        # From 32 on, places and sizes are whole pixels: averaging the large picture gives nearly the small
        # one (thin strokes differ a little), and a shift by one pixel is clearly worse.
        if size >= 32:
            moves = [(0, 0), (0, 1), (1, 0), (0, -1), (-1, 0)]
            errors = [np.abs(np.roll(shrunk, move, (0, 1)) - small[i]["image"]).mean() for move in moves]
            assert errors[0] < 7 and errors[0] < 0.6 * min(errors[1:])


def test_pairs_obey_their_relation():
    source = OpenMojiSource("pairs", "train", 32)
    relations = collections.Counter()
    for i in range(400):
        record = source[i]
        a, b = record["boxes"]
        name = RELATIONS[record["relation"]]
        assert {
            "to the left of": a[2] <= b[0] + 1e-6,
            "to the right of": b[2] <= a[0] + 1e-6,
            "above": a[3] <= b[1] + 1e-6,
            "below": b[3] <= a[1] + 1e-6,
        }[name]
        x, y = np.abs((a[:2] + a[2:]) - (b[:2] + b[2:])) / 2
        assert (x > y) == ("the" in name)
        assert f" {name} " in record["caption"] and record["objects"][0] != record["objects"][1]
        relations[name] += 1
    assert min(relations.values()) > 60


def test_backgrounds_stay_apart_in_every_shade():
    colours = np.array(list(scenes.BACKGROUNDS.values()))
    nearest = min(np.abs(a - b).sum() for i, a in enumerate(colours) for b in colours[:i])
    assert nearest > 150
    assert colours.min() - 12 >= 0 and colours.max() + 12 <= 255


def test_mixture_takes_its_presets_in_turn():
    mixed = OpenMojiSource("demo+pairs", "train", 16)
    demo, pairs = OpenMojiSource("demo", "train", 16), OpenMojiSource("pairs", "train", 16)
    assert len(mixed) == 2 * len(pairs)
    for i in range(20):
        part = (demo, pairs)[i % 2]
        np.testing.assert_array_equal(mixed[i]["image"], part[i // 2]["image"])
        assert mixed[i]["caption"] == part[i // 2]["caption"]
    assert mixed[2 * len(demo)]["caption"] == demo[0]["caption"]


def test_seed_changes_the_scenes():
    a, b = OpenMojiSource("demo", "train", 16, 0), OpenMojiSource("demo", "train", 16, 1)
    assert sum(a.scene(i) == b.scene(i) for i in range(100)) < 3


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("demos", "train", 32), "data.preset: 'demos'"),
        (("demo", "training", 32), "'training' is unknown for openmoji; accepted: train, val, test, unseen"),
        (("demo", "train", 4), "data.image_size: 4"),
        (("demo", "train", 32.5), "data.image_size: 32.5"),
    ],
)
def test_bad_values(arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        OpenMojiSource(*arguments)
    assert "\n" not in str(caught.value)


def test_a_warm_scene_costs_a_small_part_of_one_drawing():
    # Both are this thread's own work, measured in turn: what else the machine does, and its speed, drop out.
    source = OpenMojiSource("demo", "train", 32)
    for i in range(2000):
        source[i]
    drawings = list(raster._CACHE._items)[:20]
    scenes, renders = [], []
    for repeat in range(5):
        start = time.thread_time()
        for i in range(2000 + 200 * repeat, 2200 + 200 * repeat):
            source[i]
        middle = time.thread_time()
        for code, size in drawings:
            raster.render(raster._cropped_svg(code), size)
        scenes.append((middle - start) / 200)
        renders.append((time.thread_time() - middle) / len(drawings))
    assert min(scenes) < 0.25 * min(renders)
    assert raster._CACHE._bytes < raster._CACHE._max_bytes


@pytest.mark.parametrize("preset", [*PRESETS, "demo+pairs"])
def test_label_names_what_is_shown(preset):
    source = OpenMojiSource(preset, "train", 16)
    assert source.channels == 3 and source.levels == 256 and source.num_classes == len(source.class_names)
    for i in range(40):
        record = source[i]
        shown = source.class_names[record["label"]]
        assert shown == record["caption"] if preset == "demo" else shown == source.vocabulary.objects[record["object"]]
    assert source.num_classes == (72 if preset == "demo" else len(vocabulary(preset).objects))
