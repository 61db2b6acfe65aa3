"""Stored latents: what is written is read, and what does not fit or is damaged is refused by name."""

import concurrent.futures
import errno
import json
import os
import resource
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from configs import t2i
from contextdiff_jax import data
from contextdiff_jax.conditions.spaces import Latents, nearest_multiple, read_rgb_map, write_rgb_map
from contextdiff_jax.data import images as images_on_disk
from contextdiff_jax.data import latents
from contextdiff_jax.data.base import Description
from contextdiff_jax.data.latents import LatentSource
from contextdiff_jax.errors import UserError
from contextdiff_jax.tasks import encode as precompute

SHAPE = (2, 2, 3)
AGAIN = "delete this file and run --mode=encode again"


def config_of(**changes):
    config = t2i.get_config("sd")
    config.data.image_size, config.data.path, config.data.batch_size = 8, "pictures", 3
    config.data.update(changes)
    return config


def record(index):
    return {"latent": np.full((2, 2, 6), index, np.float16), "caption": f"picture {index}", "label": index % 3}


def store(folder, count=10, shard_size=4, **changes):
    """Latents as `--mode=encode` leaves them."""
    contents = latents.contents_of(config_of(), Averages(), {"train": count})
    latents.write_contents(folder, contents | {"shard_size": shard_size} | changes)
    for number, start in enumerate(range(0, count, shard_size)):
        rows = range(start, min(start + shard_size, count))
        latents.write_shard(latents.shard_path(folder, "train", number), map(record, rows))
    return folder


def open_source(folder, **kwargs):
    return LatentSource(folder, "train", SHAPE, Description(), **kwargs)


class Averages(Latents):
    """An "autoencoder" that averages squares of 4 x 4 pixels; the standard deviation is its only parameter."""

    def __init__(self, side=2, std=0.5, dtype=jnp.float32):
        config = types.SimpleNamespace(scaling_factor=1.0)
        params = {"std": np.float32(std)}
        self.vae = types.SimpleNamespace(downscale=4, latent_channels=3, params=params, config=config, dtype=dtype)
        self.shape, self.params = (side, side, 3), {"vae": params, "rgb": {}}

    def moments(self, params, images):
        assert isinstance(params["vae"]["std"], jax.core.Tracer), "weights compiled in as constants"
        side = self.shape[0]
        mean = images.reshape(len(images), side, 4, side, 4, 3).mean(axis=(2, 4))
        return jnp.concatenate([mean, jnp.full_like(mean, params["vae"]["std"])], axis=-1)

    def decode(self, params, x0):
        return x0.repeat(4, axis=1).repeat(4, axis=2)


def test_every_record_is_read_back(tmp_path):
    source = open_source(store(tmp_path))
    assert len(source) == 10
    for index in (9, 0, 3, 4, 8):
        found = source[index]
        np.testing.assert_array_equal(found["latent"], record(index)["latent"])
        assert (found["caption"], found["label"], found["index"]) == (f"picture {index}", index % 3, index)
    with pytest.raises(IndexError):
        source[10]


def test_more_shards_than_open_files_are_read_by_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(latents, "_OPEN_SHARDS", 4)
    store(tmp_path, count=60, shard_size=1)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = sorted(set(range(500)) - {int(name) for name in os.listdir("/dev/fd")})
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[30], before[1]))
    try:
        source = open_source(tmp_path)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            values = list(pool.map(lambda index: source[index]["latent"][0, 0, 0], [*range(60), *range(60)]))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert values == [*range(60), *range(60)]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"path": "others"}, "data: there 'folder /.*/pictures', now 'folder /.*/others'"),
        ({"source": "openmoji", "preset": "pairs"}, "data: there 'folder .*', now 'openmoji pairs'; classes: .*"),
        ({"seed": 3}, "seed: there 0, now 3"),
        ({"labels": "subfolders", "class_names": ("ant", "cat")}, "classes: there '[0-9a-f]{16}', now '[0-9a-f]{16}'"),
        ({"image_size": 9}, "image_size: there 8, now 9"),
        ({"std": 0.25}, "autoencoder: there '[0-9a-f]{16}', now '[0-9a-f]{16}'"),
        ({"dtype": jnp.bfloat16}, "dtype: there 'float32', now 'bfloat16'"),
        ({"side": 3}, r"shape: there \[2, 2, 6\], now \[3, 3, 6\]"),
    ],
)
def test_latents_of_anything_else_are_refused(tmp_path, changes, words):
    store(tmp_path)
    space = Averages(**{name: changes.pop(name) for name in ("side", "std", "dtype") if name in changes})
    expected = latents.contents_of(config_of(**changes), space, {})
    for attempt in (lambda: latents.check(tmp_path, expected), lambda: open_source(tmp_path, expected=expected)):
        with pytest.raises(UserError, match=f"holds other latents \\({words}\\); set"):
            attempt()


def test_contents_of_earlier_versions_are_still_read(tmp_path, monkeypatch):
    """They name the images from where one stood, and say nothing of the type or of classes."""
    path = store(tmp_path / "latents") / "latents.json"
    monkeypatch.chdir(tmp_path)
    contents = json.loads(path.read_text()) | {"data": "folder pictures"}
    del contents["dtype"], contents["classes"]
    path.write_text(json.dumps(contents))
    expected = latents.contents_of(config_of(path=str(tmp_path / "pictures")), Averages(), {})
    assert len(open_source(tmp_path / "latents", expected=expected)) == 10
    latents.write_contents(tmp_path / "latents", expected | {"shard_size": 4, "splits": {"train": 10}})


def test_what_does_not_concern_the_images_may_change(tmp_path):
    """And the folder of images, "pictures", may be gone."""
    expected = latents.contents_of(config_of(preset="pairs", batch_size=7), Averages(), {})
    assert len(open_source(store(tmp_path), expected=expected)) == 10
    with pytest.raises(UserError, match="horizontal_flip=True"):
        latents.contents_of(config_of(horizontal_flip=True), Averages(), {})


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", "Expecting"),
        ("", "Expecting"),
        ("{}", "has no data"),
        ("[]", "list instead of a table"),
        ({"shard_size": 0}, "shard_size is 0"),
        ({"shard_size": True}, "shard_size is True"),
        ({"seed": "0"}, "seed is '0'"),
        ({"image_size": 8.5}, "image_size is 8.5"),
        ({"shape": [2, 2]}, r"shape is \[2, 2\]"),
        ({"shape": 4}, "shape is 4"),
        ({"autoencoder": None}, "autoencoder is None"),
        ({"splits": {}}, "splits is {}"),
        ({"splits": {"train": -1}}, "splits is {'train': -1}"),
        ({"splits": ["train"]}, r"splits is \['train'\]"),
    ],
)
def test_damaged_contents_are_named(tmp_path, content, words):
    path = store(tmp_path) / "latents.json"
    path.write_text(content if isinstance(content, str) else json.dumps(json.loads(path.read_text()) | content))
    for attempt in (lambda: open_source(tmp_path), lambda: latents.held_out(tmp_path)):
        with pytest.raises(UserError, match=f"latents.json is damaged.*{words}.*delete its folder"):
            attempt()


@pytest.mark.parametrize("damage", [lambda raw: b"", lambda raw: b"?" * 200_000, lambda raw: raw[:-20]])
def test_a_damaged_shard_is_named_at_the_start(tmp_path, damage):
    path = latents.shard_path(store(tmp_path), "train", 1)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=f"00001.array_record is damaged.*{AGAIN}"):
        open_source(tmp_path)


@pytest.mark.parametrize("count", [1, 4])
def test_a_shard_with_another_number_of_records_is_named(tmp_path, count):
    path = latents.shard_path(store(tmp_path), "train", 2)
    latents.write_shard(path, map(record, range(count)))
    with pytest.raises(UserError, match=f"00002.array_record is damaged .{count} records instead of 2.; {AGAIN}"):
        open_source(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    latents.shard_path(store(tmp_path), "train", 2).unlink()
    with pytest.raises(UserError, match="lacks 1 of 3 shards of train .first 00002.*continues"):
        open_source(tmp_path)


def test_a_damaged_record_is_named_when_it_is_read(tmp_path):
    store(tmp_path)
    source = open_source(tmp_path)
    first, second = (latents.shard_path(tmp_path, "train", number) for number in (0, 1))
    latents.write_shard(first, [{"latent": np.zeros((2, 2, 4)), "caption": "narrow"}] * 4)
    raw = bytearray(second.read_bytes())
    raw[raw.index(b"picture 4") + 2] ^= 1
    second.write_bytes(raw)
    with pytest.raises(UserError, match=f"00000.array_record is damaged .record 1 is no .*{AGAIN}"):
        source[1]
    with pytest.raises(UserError, match=f"00001.array_record is damaged .*{AGAIN}"):
        source[4]
    latents.shard_path(tmp_path, "train", 2).unlink()
    with pytest.raises(UserError, match="00002.array_record cannot be opened .No such file"):
        source[8]


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", "Expecting"),
        ("[]", "no kernel and bias"),
        ('{"bias": [0, 0, 0]}', "no kernel and bias"),
        ('{"kernel": "x", "bias": [0, 0, 0]}', "no kernel and bias"),
        ('{"kernel": [[1, 2], [3]], "bias": [0, 0, 0]}', "no kernel and bias"),
        ('{"kernel": [[1, 2, 3, 4]], "bias": [0, 0, 0]}', r"kernel \[1, 4\]"),
        ('{"kernel": [[1, 2, 3]], "bias": 0}', r"bias \[\] instead"),
        ('{"kernel": [[1, 2, null]], "bias": [0, 0, 0]}', "finite"),
    ],
)
def test_a_damaged_colour_map_is_named(tmp_path, content, words):
    (tmp_path / "latent_rgb.json").write_text(content)
    with pytest.raises(UserError, match=f"latent_rgb.json is damaged.*{words}.*{AGAIN}"):
        read_rgb_map(tmp_path)


def test_a_colour_map_of_other_latents_is_refused(tmp_path):
    write_rgb_map({"kernel": np.ones((4, 3)), "bias": np.ones(3)}, tmp_path)
    with pytest.raises(UserError, match=f"latent_rgb.json is for 4 latent channels, .* has 3; {AGAIN}"):
        Latents(Averages().vae, 8, "linear", read_rgb_map(tmp_path))


def test_the_digest_is_of_the_weights_and_the_scale():
    assert Averages(side=2).digest == Averages(side=3).digest != Averages(std=0.25).digest
    scaled = Averages()
    scaled.vae.config.scaling_factor = 0.18
    assert scaled.digest != Averages().digest


@pytest.mark.parametrize("size, factor, nearest", [(17, 8, 16), (500, 64, 512), (12, 8, 16), (1, 8, 8), (64, 64, 64)])
def test_the_nearest_size(size, factor, nearest):
    assert nearest_multiple(size, factor) == nearest


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """40 captioned pictures of one colour each, and a config for them."""
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(40):
        PIL.Image.new("RGB", (8, 8), (6 * index, 255 - 6 * index, index)).save(folder / f"{index:02d}.png")
        (folder / f"{index:02d}.txt").write_text(f"colour {index}")
    return folder


@pytest.fixture
def bars(monkeypatch):
    """The progress of every split that is encoded: total, where it began, where it is."""
    made = []

    class Bar(precompute.Progress):
        def __init__(self, what, total, unit, done):
            super().__init__(what, total, unit, done)
            self.total, self.first, self.now = total, done, done
            made.append(self)

        def update(self, count=1):
            super().update(count)
            self.now += count

    monkeypatch.setattr(precompute, "Progress", Bar)
    return made


def test_encoding_reads_each_image_once_and_continues(pictures, tmp_path, monkeypatch, bars):
    monkeypatch.setattr(latents, "SHARD_SIZE", 8)
    monkeypatch.setattr(precompute, "FIT_IMAGES", 2)
    reads = []
    for split in ("train", "val"):
        data.source(config_of(path=str(pictures)).data, split)  # the scan's own reads are remembered
    read = images_on_disk.read_image
    monkeypatch.setattr(images_on_disk, "read_image", lambda path, size: reads.append(path.name) or read(path, size))
    config = config_of(path=str(pictures))
    folder = tmp_path / "deep" / "latents"
    precompute.encode(config, Averages(), folder)
    expected = latents.contents_of(config, Averages(), {})
    source, images = open_source(folder, expected=expected), data.source(config.data, "train")
    val = len(LatentSource(folder, "val", SHAPE, Description()))
    assert val > 0 and len(reads) == 40 + 2 and len(set(reads)) == 40, "two of them twice, for the colour map"
    assert len(source) == len(images) == 40 - val
    for index in (0, 2, 9, len(images) - 1):
        found, image = source[index], images[index]
        np.testing.assert_allclose(found["latent"][..., :3], (image["image"][:2, :2] - 127.5) / 127.5, atol=1e-3)
        assert (found["latent"][..., 3:] == 0.5).all() and found["caption"] == image["caption"]

    latents.shard_path(folder, "train", 1).unlink()
    reads.clear(), bars.clear()
    precompute.encode(config, Averages(), folder)
    assert len(reads) == 8 + 2
    assert [(bar.total, bar.first) for bar in bars] == [(40 - val, 32 - val), (val, val)]
    with pytest.raises(UserError, match="autoencoder: there"):
        precompute.encode(config, Averages(std=0.25), folder)


def test_every_process_shows_its_own_share(tmp_path, monkeypatch, bars):
    monkeypatch.setattr(latents, "SHARD_SIZE", 4)
    monkeypatch.setattr(precompute.jax, "process_index", lambda: 1)
    monkeypatch.setattr(precompute.jax, "process_count", lambda: 2)
    precompute._encode_split(lambda source, rows: map(record, rows), range(14), range(14), tmp_path, "train")
    assert sorted(path.name[:5] for path in (tmp_path / "train").iterdir()) == ["00001", "00003"]
    assert bars[0].total == bars[0].now == 4 + 2


def test_a_part_of_the_images_is_spread_and_stays_the_same_images(pictures, tmp_path):
    config, folder = config_of(path=str(pictures)), tmp_path / "latents"
    config.space.max_latents = 5
    precompute.encode(config, Averages(), folder)
    images, source = data.source(config.data, "train"), open_source(folder)
    rows = data.chosen(len(images), 5, config.data.seed)
    assert [source[i]["caption"] for i in range(5)] == [images[i]["caption"] for i in rows] and rows != list(range(5))
    assert source.identity.endswith(f"({images.identity})")
    # As an earlier version left it, half done: it goes on with the first ones.
    contents = json.loads((folder / "latents.json").read_text())
    del contents["records"]
    (folder / "latents.json").write_text(json.dumps(contents))
    latents.shard_path(folder, "train", 0).unlink()
    precompute.encode(config, Averages(), folder)
    assert [open_source(folder)[i]["caption"] for i in range(5)] == [images[i]["caption"] for i in range(5)]


def test_other_images_are_not_put_behind_those_that_are_stored(pictures, tmp_path):
    config = config_of(path=str(shutil.copytree(pictures, tmp_path / "pictures")))
    precompute.encode(config, Averages(), tmp_path / "latents")
    first = data.source(config.data, "train").names[0]
    (tmp_path / "pictures" / first).with_suffix(".txt").write_text("another")
    with pytest.raises(UserError, match=r"holds other latents \(records: there .*train: .*, now "):
        precompute.encode(config, Averages(), tmp_path / "latents")


def test_images_that_were_only_moved_are_the_same(pictures, tmp_path, caplog):
    there = config_of(path=str(shutil.copytree(pictures, tmp_path / "pictures")))
    precompute.encode(there, Averages(), folder := tmp_path / "latents")
    (tmp_path / "pictures").rename(tmp_path / "moved")
    moved = config_of(path=str(tmp_path / "moved"))
    images = lambda split: data.source(moved.data, split).identity
    found = lambda: latents.check(folder, latents.contents_of(moved, Averages(), {}), images)
    assert found()["data"].endswith("pictures")
    precompute.encode(moved, Averages(), folder)
    first = data.source(moved.data, "train").names[0]
    (tmp_path / "moved" / first).with_suffix(".txt").write_text("another")
    with pytest.raises(UserError, match=r"data: there '.*pictures', now '.*moved'"):
        found()
    shutil.rmtree(tmp_path / "moved")
    assert found() and "moved is not there" in caplog.text


@pytest.mark.parametrize("source, count", [("clip", 1), ("folder", 2)])
def test_a_clip_is_not_encoded(tmp_path, source, count):
    with pytest.raises(UserError, match="stores the latents of single pictures"):
        precompute.encode(config_of(source=source, num_frames=count), Averages(), tmp_path / "latents")
    assert not (tmp_path / "latents").exists()


@pytest.mark.parametrize("place", ["write_contents", "write_shard"])
def test_a_disk_that_is_full_is_one_line(pictures, tmp_path, monkeypatch, place):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(latents, place, full)
    with pytest.raises(UserError, match="config.space.latents: .* cannot be written .No space left on device.; make"):
        precompute.encode(config_of(path=str(pictures)), Averages(), tmp_path / "latents")


def test_encoding_refuses_before_any_work(pictures, tmp_path):
    """None of these reads an image or writes a file."""
    file = tmp_path / "file"
    file.write_text("x")
    for folder in (file, file / "below"):
        with pytest.raises(UserError, match=f"config.space.latents: '{folder}' cannot be made a folder"):
            precompute.encode(config_of(path="nowhere"), Averages(), folder)
    with pytest.raises(UserError, match="is a file"):
        open_source(file)
    target = tmp_path / "target"
    for changes, factor, words in (
        ({"image_size": 24}, 4, r"image_size=24 is no multiple of 16 .* 4 x .* 4.; try 32"),
        ({"horizontal_flip": True}, 1, "horizontal_flip=True"),
        ({"source": "digits"}, 1, "'digits' has 1 channels"),
    ):
        with pytest.raises(UserError, match=words):
            precompute.encode(config_of(path="nowhere", **changes), Averages(), target, factor)
    assert not target.exists()


def test_shards_of_unknown_origin_are_refused(pictures, tmp_path):
    (store(tmp_path) / "latents.json").unlink()
    with pytest.raises(UserError, match="shards without the latents.json .*delete its folder"):
        precompute.encode(config_of(path=str(pictures)), Averages(), tmp_path)
