"""Feature spaces: which network, at which resize, says what a picture is like. Each is named in every result."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from contextdiff_jax.encoders import ASSETS, BUILTIN, folder_of, load_clip
from contextdiff_jax.encoders.dinov2 import load_dinov2
from contextdiff_jax.encoders.efficientnet import load_efficientnet
from contextdiff_jax.encoders.inception import load_inception
from contextdiff_jax.errors import UserError
from contextdiff_jax.formats.tensor_files import opened
from contextdiff_jax.models.recogniser import load_recogniser, resize
from contextdiff_jax.pictures import to_uint8
from contextdiff_jax.runtime import here
from contextdiff_jax.types import Array, Params

BATCH = 32  # pictures of a forward pass; smaller batches are padded, so that there is one program per size of picture
SPACES = (
    "efficientnet, inception:FILE.safetensors, clip:FOLDER, clip:builtin:clip_mini, dinov2:FOLDER, judge:PRESET (demo)"
)


@dataclasses.dataclass(frozen=True)
class Described:
    """What a figure must say of the space it was taken in.

    Attributes:
        name: of the network.
        digest: of its weights, the first 16 digits of a SHA-256.
        resize: how pictures come to the network's size.
        width: of the features, D.
        is_fid: whether its Frechet distance is FID, and its kernel distance KID.
    """

    name: str
    digest: str
    resize: str
    width: int
    is_fid: bool = False


class FeatureSpace:
    """A network with what is to be said of it. The features of the last batch are kept: metrics share a forward pass.

    Args:
        described: name, digest, resize and width.
        run: (params, images uint8 [B, H, W, 3]) -> {"pooled": [B, D], and where there are any "spatial" [B, D'],
            "probabilities" [B, K]}.
        params: of the network.
        embed_texts: captions -> [B, D]; None where there is no text encoder.
    """

    def __init__(
        self,
        described: Described,
        run: Callable[[Params, Array], dict[str, Array]],
        params: Params,
        embed_texts: Callable[[Sequence[str]], np.ndarray] | None = None,
    ):
        self.described, self.embed_texts = described, embed_texts
        # All devices of this process: each has the parameters and sees its share of the pictures.
        devices = Mesh(np.array(here().local), ("data",))
        self._run, self._params = jax.jit(run), jax.device_put(params, NamedSharding(devices, P()))
        self._rows, self._size = NamedSharding(devices, P("data")), -(-BATCH // devices.size) * devices.size
        self._last: tuple[Any, dict[str, np.ndarray]] = (None, {})

    def about(self) -> dict[str, Any]:
        """What a result says of the space, beside its name."""
        return {key: value for key, value in dataclasses.asdict(self.described).items() if key != "name"}

    def features(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """All that the network says of pictures [B, H, W, 3], uint8 or float in [-1, 1] (rounded to 8 bits first)."""
        if self._last[0] is not images:
            pixels, parts = to_uint8(images), []
            for start in range(0, len(pixels), self._size):
                part = pixels[start : start + self._size]
                padded = np.concatenate([part, np.zeros((self._size - len(part), *part.shape[1:]), np.uint8)])
                found = self._run(self._params, jax.device_put(padded, self._rows))
                parts.append({k: np.asarray(v)[: len(part)] for k, v in found.items()})
            self._last = (images, {k: np.concatenate([p[k] for p in parts]) for k in parts[0]})
        return self._last[1]

    def pooled(self, images: np.ndarray) -> np.ndarray:
        """[B, D]."""
        return self.features(images)["pooled"]

    def spatial(self, images: np.ndarray) -> np.ndarray:
        """[B, D'], of sFID."""
        return self.features(images)["spatial"]

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """[B, K], of the Inception score."""
        return self.features(images)["probabilities"]


def open_space(spec: str) -> FeatureSpace:
    """The space that a name on the command line means: one of `SPACES`.

    Raises:
        UserError: an unknown name, or weights that are not there.
    """
    kind, _, place = spec.partition(":")
    if kind not in OPENERS or (kind == "efficientnet") == bool(place):
        raise UserError(f"feature space {spec!r} is unknown; accepted: {SPACES}")
    return OPENERS[kind](place)


def _inception(place: str) -> FeatureSpace:
    file = Path(place).expanduser()
    model = load_inception(file)

    def run(params: Params, images: Array) -> dict[str, Array]:
        out = model.encode_image(params, images)
        return {"pooled": out.pooled, "spatial": out.spatial, "probabilities": jax.nn.softmax(out.logits, axis=-1)}

    described = Described("inception-2015-12-05", _digest([file]), "TF1 bilinear, 299", 2048, is_fid=True)
    return FeatureSpace(described, run, model.params)


def _efficientnet(place: str) -> FeatureSpace:
    del place
    model = load_efficientnet()

    def run(params: Params, images: Array) -> dict[str, Array]:
        out = model.encode_image(params, images)
        return {"pooled": out.pooled, "probabilities": jax.nn.softmax(out.logits, axis=-1)}

    described = Described("efficientnet-lite0", _digest([model.file]), "antialiased cubic, 224", 1280)
    return FeatureSpace(described, run, model.params)


def _clip(place: str) -> FeatureSpace:
    model = load_clip(place)
    encode = jax.jit(model.encode_text)

    def embed_texts(captions: Sequence[str]) -> np.ndarray:
        out = []
        for start in range(0, len(captions), BATCH):
            part = list(captions[start : start + BATCH])
            tokens = model.tokenize(part + [""] * (BATCH - len(part)))
            out.append(np.asarray(encode(model.params, **tokens).pooled)[: len(part)])
        return np.concatenate(out)

    def run(params: Params, images: Array) -> dict[str, Array]:
        return {"pooled": model.encode_image(params, images.astype(jnp.float32) / 127.5 - 1.0).pooled}

    resize = f"antialiased cubic, {model.config.image_size}"
    digest = _digest(_weights(folder_of(place)))
    described = Described(f"clip {_name(place)}", digest, resize, model.config.projection_dim)
    return FeatureSpace(described, run, model.params, embed_texts)


def _dinov2(place: str) -> FeatureSpace:
    folder = folder_of(place)
    model = load_dinov2(folder)
    run = lambda params, images: {"pooled": model.encode_image(params, images)}
    name = f"dinov2 {_name(place)}"
    described = Described(name, _digest(_weights(folder)), "antialiased cubic, 224", model.config.hidden_size)
    return FeatureSpace(described, run, model.params)


def _judge(place: str) -> FeatureSpace:
    """What the first layer of an OpenMoji preset's judge sees, as `fidelity` takes it."""
    judge = load_recogniser(place)
    net, size = judge.config.net(), judge.config.image_size

    def run(params: Params, images: Array) -> dict[str, Array]:
        pixels = resize(images.astype(jnp.float32) / 127.5 - 1.0, size)
        return {"pooled": net.apply({"params": params}, pixels, features=True)}

    digest, width = _digest(_weights(ASSETS / f"recogniser_{judge.config.preset}")), net.channels[0] // 2
    described = Described(f"judge {place}", digest, f"antialiased linear, {size}", width)
    return FeatureSpace(described, run, judge.params)


OPENERS = {
    "inception": _inception,
    "efficientnet": _efficientnet,
    "clip": _clip,
    "dinov2": _dinov2,
    "judge": _judge,
}


def _name(place: str) -> str:
    """Of a model in results; one of the hub is called so, and not like the folder of a commit where it is cached."""
    return folder_of(place).name if place.startswith(BUILTIN) else Path(place).expanduser().resolve().name


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _digest(files: list[Path]) -> str:
    """The first 16 digits of the SHA-256 of safetensors files, without what they say of their origin."""
    digest = hashlib.sha256()
    for file in files:
        with opened(file) as handle:
            size = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(size))
            header.pop("__metadata__", None)
            digest.update(json.dumps(header, sort_keys=True).encode())
            while chunk := handle.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()[:16]
