import json
import time

import chex
import numpy as np
import PIL.Image
import pytest
from data_helpers import config, from_records

from contextdiff_jax import data
from contextdiff_jax.data.pipeline import collate
from contextdiff_jax.errors import UserError


def _build(section=None, split="train", batch_size=8, seed=3, process=(0, 1), **options):
    return data.build(
        section or config(),
        split,
        batch_size=batch_size,
        seed=seed,
        process_index=process[0],
        process_count=process[1],
        from_records=from_records,
        **options,
    )


@pytest.fixture
def folder(tmp_path):
    """Ten images whose left half is darker; number 3 is told by its level."""
    for i in range(10):
        pixels = np.full((16, 16, 3), 20 * i + 20, np.uint8)
        pixels[:, :8] //= 2
        PIL.Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    lines = [json.dumps({"file_name": f"{i}.png", "text": f"image {i}"}) for i in range(10)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    return str(tmp_path)


def test_batch_shapes_and_range():
    batch = next(_build())
    chex.assert_shape(batch["image"], (8, 16, 16, 3))
    chex.assert_shape([batch["tokens"], batch["token_mask"]], (8, 8))
    chex.assert_shape([batch["index"], batch["object"], batch["background"]], (8,))
    assert batch["image"].dtype == np.float32 and batch["index"].dtype == np.int32
    assert -1 <= batch["image"].min() < -0.5 and 0.5 < batch["image"].max() <= 1


def test_batch_is_the_source_s_records():
    batch, source = next(_build()), data.source(config(), "train")
    for row, index in enumerate(batch["index"]):
        record = source[int(index)]
        np.testing.assert_array_equal(batch["image"][row], record["image"].astype(np.float32) / 127.5 - 1)
        np.testing.assert_array_equal(batch["tokens"][row], from_records([record])["tokens"][0])
        assert batch["object"][row] == record["object"] and batch["background"][row] == record["background"]


def test_black_and_white_are_exactly_minus_one_and_one():
    record = {"image": np.array([[[0, 255, 127]]], np.uint8), "caption": "a", "index": 0}
    image = collate([record], from_records)["image"]
    assert image[0, 0, 0, 0] == -1 and image[0, 0, 0, 1] == 1 and image.dtype == np.float32


def test_first_and_last_level_are_exactly_minus_one_and_one_for_any_levels():
    for levels in (2, 17, 256):
        record = {"image": np.arange(levels, dtype=np.uint8).reshape(1, levels, 1), "caption": "a", "index": 0}
        image = collate([record], from_records, levels)["image"].ravel()
        assert image[0] == -1 and image[-1] == 1
        np.testing.assert_allclose(image, np.linspace(-1, 1, levels), rtol=0, atol=1e-7)


def test_captions_may_be_tokenized_without_a_condition():
    lengths = lambda texts: {"length": np.array([len(text) for text in texts])}
    alone = dict(batch_size=4, seed=0, process_index=0, process_count=1)
    batch = next(data.build(config(), "train", **alone, tokenize=lengths))
    records = data.source(config(), "train")
    np.testing.assert_array_equal(batch["length"], [len(records[int(i)]["caption"]) for i in batch["index"]])
    with pytest.raises(UserError, match="give one of them"):
        _build(tokenize=lengths)


def test_no_condition_leaves_tokens_out():
    record = {"image": np.zeros((1, 1, 3), np.uint8), "caption": "a", "index": 4}
    assert set(collate([record], None)) == {"image", "index"}


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("flip", [False, True])
def test_global_batch_is_the_same_for_any_number_of_processes(count, flip, folder):
    section = config(source="folder", path=folder, horizontal_flip=True, random_crop=0.5) if flip else config()
    one = _build(section, augment=True)
    several = [_build(section, process=(p, count), augment=True) for p in range(count)]
    for _ in range(4):
        parts = [next(iterator) for iterator in several]
        assert all(len(part["index"]) == 8 // count for part in parts)
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        chex.assert_trees_all_equal(joined, next(one))


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_state_restores_bitwise(threads):
    iterator = _build(config(num_threads=threads, prefetch=4))
    for _ in range(5):
        next(iterator)
    state = iterator.get_state()
    expected = [next(iterator) for _ in range(3)]
    assert json.loads(json.dumps(state)) == state
    other = _build(config(num_threads=1, prefetch=1))
    next(other)
    other.set_state(state)
    chex.assert_trees_all_equal([next(other) for _ in range(3)], expected)


def test_going_ahead_costs_nothing(monkeypatch):
    reads = []
    original = data.OpenMojiSource.__getitem__
    monkeypatch.setattr(data.OpenMojiSource, "__getitem__", lambda s, i: reads.append(i) or original(s, i))
    iterator = _build(config(num_threads=0))
    next(iterator)
    state = iterator.get_state()
    state["examples"] = 8 * 10**9
    reads.clear()
    start = time.perf_counter()
    iterator.set_state(state)
    next(iterator)
    assert len(reads) == 8 and time.perf_counter() - start < 30  # counting to 8e9 takes many minutes


def test_every_epoch_has_every_record_once_in_a_new_order(folder):
    iterator = _build(config(source="folder", path=folder), batch_size=5)
    epochs = [np.concatenate([next(iterator)["index"] for _ in range(2)]) for _ in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(10))
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_batches_run_across_epochs(folder):
    iterator = _build(config(source="folder", path=folder), batch_size=4)
    stream = np.concatenate([next(iterator)["index"] for _ in range(5)])
    assert sorted(stream[:10]) == sorted(stream[10:]) == list(range(10))


def test_a_batch_may_be_larger_than_the_data_set(folder):
    batch = next(_build(config(source="folder", path=folder), batch_size=30))
    assert sorted(batch["index"]) == sorted(list(range(10)) * 3)


def test_without_repeat_every_record_comes_once_in_order(folder):
    batches = list(_build(config(source="folder", path=folder), batch_size=4, repeat=False, shuffle=False))
    assert [len(batch["index"]) for batch in batches] == [4, 4, 2]
    assert np.concatenate([batch["index"] for batch in batches]).tolist() == list(range(10))


def test_order_depends_on_the_seed():
    a, b, c = (next(_build(seed=seed))["index"].tolist() for seed in (0, 0, 1))
    assert a == b != c


def test_flips_are_half_of_the_images_and_only_where_asked_for(folder):
    section = config(source="folder", path=folder, horizontal_flip=True)
    iterator = _build(section, batch_size=50, augment=True)
    source = data.source(section, "train")
    flipped = []
    for _ in range(4):
        batch = next(iterator)
        for image, index in zip(batch["image"], batch["index"], strict=True):
            plain = collate([source[int(index)]], from_records)["image"][0]
            is_flipped = not np.array_equal(image, plain)
            np.testing.assert_array_equal(image[:, ::-1] if is_flipped else image, plain)
            flipped.append(is_flipped)
    assert 60 < sum(flipped) < 140
    plain = next(_build(config(source="folder", path=folder), batch_size=50))
    assert not np.array_equal(plain["image"], next(_build(section, batch_size=50, augment=True))["image"])
    np.testing.assert_array_equal(plain["image"], next(_build(section, batch_size=50))["image"])


def _examples(iterator, count):
    """The stream's next examples as (index, image) whatever the batches."""
    rows = []
    while len(rows) < count:
        batch = next(iterator)
        rows += zip(batch["index"].tolist(), batch["image"], strict=True)
    return rows[:count]


@pytest.mark.parametrize("size", [1, 3, 8, 16, 24])
def test_another_batch_size_goes_on_at_the_same_example(size, folder):
    section = config(source="folder", path=folder, horizontal_flip=True, random_crop=0.7)
    whole = _examples(_build(section, augment=True), 80)
    first = _build(section, augment=True)
    _examples(first, 16)
    assert first.get_state()["examples"] == 16
    again = _build(section, batch_size=size, augment=True)
    again.set_state(first.get_state())
    for (index, image), (expected, pixels) in zip(_examples(again, 30), whole[16:], strict=False):
        assert index == expected
        np.testing.assert_array_equal(image, pixels)
    back = _build(section, augment=True)
    back.set_state(again.get_state())
    assert _examples(back, 8)[0][0] == whole[16 + -(-30 // size) * size][0]


def test_a_state_that_counts_batches_still_loads():
    iterator, other = _build(), _build()
    for _ in range(3):
        next(iterator)
    other.set_state({"next_index": 3})
    chex.assert_trees_all_equal(next(other), next(iterator))


@pytest.mark.parametrize(
    "changes, image_size, size",
    [({}, 16, 1), ({}, 8, 2001), ({"source": "digits"}, 8, 1), ({"source": "digits"}, 8, 2000)]
    + [({"source": "folder"}, 16, 1), ({"source": "folder"}, 16, 23)],
    ids=str,
)
def test_batches_of_one_and_of_more_than_there_are(changes, image_size, size, folder):
    section = config(image_size=image_size, path=folder, num_threads=0, **changes)
    iterator = _build(section, split="train" if changes else "val", batch_size=size)
    batches = [next(iterator) for _ in range(2)]
    assert [len(batch["index"]) for batch in batches] == [size, size]
    assert iterator.get_state()["examples"] == 2 * size


def test_other_records_are_refused_by_name(folder):
    state = _build(config(source="folder", path=folder)).get_state()
    PIL.Image.new("RGB", (16, 16)).save(f"{folder}/new.png")
    with open(f"{folder}/metadata.jsonl", "a") as file:
        file.write("\n" + json.dumps({"file_name": "new.png", "text": "new"}))
    changed = _build(config(source="folder", path=folder))
    with pytest.raises(UserError, match=r"then .* 10 .*, now .* 11 .*--allow_config_change"):
        changed.set_state(state)
    changed.set_state({"examples": state["examples"]})


def test_threads_that_the_buffer_would_idle_are_named():
    with pytest.warns(UserWarning, match="data.num_threads=8 with data.prefetch=2: only 2 threads can ever work"):
        _build(config(num_threads=8, prefetch=2))
    with pytest.warns(UserWarning, match="data.num_threads=8 with data.prefetch=0: nothing is read ahead.*to 8 or"):
        _build(config(num_threads=8, prefetch=0))


def test_scenes_without_left_and_right_may_be_mirrored():
    assert data.sources.augmentation(config(preset="demo_objects", horizontal_flip=True)).mirror


def test_mixture_through_the_pipeline():
    batch = next(_build(config(preset="demo+single+pairs"), batch_size=32))
    assert set(batch) == {"image", "tokens", "token_mask", "index", "label", "object", "background"}
    assert (batch["object"] >= 12).any() and set(batch["index"] % 3) == {0, 1, 2}


@pytest.mark.parametrize(
    "changes, options, message",
    [
        ({"source": "web"}, {}, "data.source: 'web' is unknown; accepted: openmoji, folder, digits, cifar10"),
        ({"preset": "demos"}, {}, "data.preset: 'demos'"),
        ({}, {"split": "dev"}, "split 'dev'"),
        ({}, {"batch_size": 9, "process": (0, 2)}, "data.batch_size: 9"),
        ({}, {"batch_size": 0}, "data.batch_size: 0"),
        ({"image_size": 7}, {}, "data.image_size: 7"),
        ({"num_threads": -1}, {}, "data.num_threads: -1"),
        ({"horizontal_flip": True, "preset": "demo+pairs"}, {}, "data.horizontal_flip: openmoji's 'demo.pairs' is not"),
        ({"horizontal_flip": True, "preset": "single"}, {}, "its captions say left and right"),
        ({"source": "digits", "image_size": 8, "random_crop": 0.5}, {}, "data.random_crop: digits is not to be"),
        ({"random_crop": 1.5}, {}, "data.random_crop: 1.5 is not a share"),
        ({"source": "folder"}, {}, "data.path: is empty"),
    ],
)
def test_bad_values(changes, options, message):
    with pytest.raises(UserError, match=message) as caught:
        _build(config(**changes), **options)
    assert "\n" not in str(caught.value)
