"""Real data sets in their own file layouts, a few records of each, written by the tests."""

import gzip
import hashlib
import json

import numpy as np
import PIL.Image

from contextdiff_jax.data import fashion

COCO_THINGS = [{"id": 3, "name": "car"}, {"id": 1, "name": "person"}]
COCO_STUFF = [{"id": 157, "name": "sky-other"}, {"id": 183, "name": "other"}]
# Pictures are 80 x 60. Of these boxes (x, y, w, h), the small one, the crowd and the collective class do not count.
COCO_BOXES = [
    (1, (10, 0, 20, 30)),
    (3, (40, 20, 30, 30)),
    (157, (0, 0, 80, 20)),
    (3, (1, 1, 5, 5)),
    (183, (0, 0, 80, 60)),
]
FASHION_COUNTS = {"train": 6, "test": 4}
WNIDS = ("n01440764", "n01443537")


def write_coco(folder, whole=(7,)):
    """Pictures with three objects each, `whole`; picture 8 with two, picture 9 with nine."""
    (folder / "annotations").mkdir()
    images = [{"id": i, "file_name": f"{i:012}.jpg", "height": 60, "width": 80} for i in (9, *whole, 8)]
    entries = [(i, *entry, 0) for i in whole for entry in COCO_BOXES] + [(7, 1, (0, 0, 40, 40), 1)]
    entries += [(8, 1, (0, 0, 40, 40), 0)] * 2 + [(9, 1, (0, 0, 40, 40), 0)] * 9
    row = lambda i, c, box, crowd: dict(image_id=i, category_id=c, bbox=list(box), iscrowd=crowd, segmentation=[[1, 2]])
    for split in ("train", "val"):
        for kind, classes in (("instances", COCO_THINGS), ("stuff", COCO_STUFF)):
            own = [row(*entry) for entry in entries if entry[1] in {c["id"] for c in classes}]
            table = {"images": images, "annotations": own, "categories": classes}
            (folder / "annotations" / f"{kind}_{split}2017.json").write_text(json.dumps(table))
        (folder / f"{split}2017").mkdir()
        pixels = np.zeros((60, 80, 3), np.uint8)
        pixels[20:50, 40:70] = 255  # the car
        for image in images:
            PIL.Image.fromarray(pixels).save(folder / f"{split}2017" / image["file_name"], quality=95)


def write_fashion(folder, monkeypatch):
    """Two compressed and two plain files; returns {split: (images, labels)}."""
    rng, content = np.random.default_rng(0), {}
    monkeypatch.setattr(fashion, "_COUNTS", FASHION_COUNTS)
    for split, stem in (("train", "train"), ("test", "t10k")):
        images = rng.integers(0, 256, (FASHION_COUNTS[split], 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, FASHION_COUNTS[split], dtype=np.uint8)
        content[split] = images, labels
        for name, magic, values in (("images-idx3-ubyte", 0x803, images), ("labels-idx1-ubyte", 0x801, labels)):
            raw = magic.to_bytes(4, "big") + b"".join(n.to_bytes(4, "big") for n in values.shape) + values.tobytes()
            monkeypatch.setitem(fashion._CHECKSUMS, f"{stem}-{name}", hashlib.sha256(raw).hexdigest())
            plain = split == "train"
            (folder / f"{stem}-{name}{'' if plain else '.gz'}").write_bytes(raw if plain else gzip.compress(raw))
    return content


def write_imagenet(folder, each=4):
    """ILSVRC's train folder: a subfolder for each class, of JPEGs of several sizes."""
    rng = np.random.default_rng(0)
    for wnid in WNIDS:
        (folder / wnid).mkdir(parents=True)
        for i in range(each):
            pixels = rng.integers(0, 256, (20 + 4 * i, 24, 3), dtype=np.uint8)
            PIL.Image.fromarray(pixels).save(folder / wnid / f"{wnid}_{i}.JPEG")
