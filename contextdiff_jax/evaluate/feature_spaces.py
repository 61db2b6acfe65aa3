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

from contextdiff_jax.encoders import ASSETS, BUILTIN, Clip, clip, folder_of, load_clip
from contextdiff_jax.encoders.dinov2 import load_dinov2
from contextdiff_jax.encoders.efficientnet import load_efficientnet
from contextdiff_jax.encoders.inception import load_inception, not_the_original
from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate.metrics.clip_score import PREFIX
from contextdiff_jax.files import user_path
from contextdiff_jax.formats.pretrained import stored_tensors
from contextdiff_jax.formats.tensor_files import opened
from contextdiff_jax.formats.tokenizers import token_counter
from contextdiff_jax.models.recogniser import load_recogniser, resize
from contextdiff_jax.pictures import to_uint8
from contextdiff_jax.runtime import here
from contextdiff_jax.types import Array, Params

BATCH = 32  # pictures of a forward pass; smaller batches are padded, so that there is one program per size of picture
FORWARD_BYTES = 1 << 26  # of their pixels, one picture on each device apart: large ones go a few at a time
Run = Callable[[Params, Array], dict[str, Array]]
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


@dataclasses.dataclass(frozen=True)
class Captioned:
    """How a space compares pictures with captions: CLIPScore crops pictures where the space itself squashes them.

    Attributes:
        embed: captions -> [B, D].
        see: as a space's `run`, of pictures that are cropped.
        side: of square pictures, which both see alike.
        resize: in words.
        prefix: put before every caption.
        too_long: captions -> whether each is cut, bool [B].
        max_length: tokens from which on they are.
    """

    embed: Callable[[Sequence[str]], np.ndarray]
    see: Run
    side: int
    resize: str
    prefix: str
    too_long: Callable[[Sequence[str]], np.ndarray]
    max_length: int


class FeatureSpace:
    """A network with what is to be said of it. The features of the last batch are kept: metrics share a forward pass.

    Args:
        described: name, digest, resize and width.
        run: (params, images uint8 [B, H, W, 3]) -> {"pooled": [B, D], and where there are any "spatial" [B, D'],
            "probabilities" [B, K]}.
        params: of the network.
        captioned: None where there is no text encoder.
        not_fid: of a network with FID's layout, why its distance is not called FID.
    """

    def __init__(
        self,
        described: Described,
        run: Run,
        params: Params,
        captioned: Captioned | None = None,
        not_fid: str = "",
    ):
        self.described, self.captioned, self.not_fid = described, captioned, not_fid
        devices = _devices()
        self._runs = {"space": jax.jit(run)} | ({"cropped": jax.jit(captioned.see)} if captioned else {})
        self._params, self._rows = _placed(params), NamedSharding(devices, P("data"))
        self._last: dict[str, tuple[Any, dict[str, np.ndarray]]] = {}

    def about(self) -> dict[str, Any]:
        """What a result says of the space, beside its name."""
        return {key: value for key, value in dataclasses.asdict(self.described).items() if key != "name"}

    def features(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """All that the network says of pictures [B, H, W, 3], uint8 or float in [-1, 1] (rounded to 8 bits first)."""
        return self._forward("space", images)

    def _forward(self, run: str, images: np.ndarray) -> dict[str, np.ndarray]:
        """What one of the functions says of pictures, a few at a time."""
        if run not in self._last or self._last[run][0] is not images:
            pixels, parts = to_uint8(images), []
            devices = self._rows.mesh.size
            size = -(-min(BATCH, FORWARD_BYTES // pixels[0].nbytes) // devices) * devices or devices
            for start in range(0, len(pixels), size):
                part = pixels[start : start + size]
                padded = np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]), np.uint8)])
                found = self._runs[run](self._params, jax.device_put(padded, self._rows))
                parts.append({k: np.asarray(v)[: len(part)] for k, v in found.items()})
            self._last[run] = (images, {k: np.concatenate([p[k] for p in parts]) for k in parts[0]})
        return self._last[run][1]

    def cropped(self, images: np.ndarray) -> np.ndarray:
        """[B, D], of CLIPScore, which crops pictures; for a space with captions alone."""
        alike = images.shape[1:3] == (self.captioned.side, self.captioned.side)
        return self._forward("space" if alike else "cropped", images)["pooled"]

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
    file = user_path(place)
    model = load_inception(file)

    def run(params: Params, images: Array) -> dict[str, Array]:
        out = model.encode_image(params, images)
        return {"pooled": out.pooled, "spatial": out.spatial, "probabilities": jax.nn.softmax(out.logits, axis=-1)}

    why = not_the_original(file)
    described = Described("inception-2015-12-05", _digest([file]), "TF1 bilinear, 299", 2048, is_fid=not why)
    return FeatureSpace(described, run, model.params, not_fid=why)


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
    params, side = _placed(model.params), model.config.image_size

    def run(params: Params, images: Array) -> dict[str, Array]:
        return {"pooled": model.encode_image(params, images.astype(jnp.float32) / 127.5 - 1.0).pooled}

    captioned = Captioned(
        embed=_text_embedding(model, params),
        see=lambda params, images: run(params, clip.cropped(images, side)),
        side=side,
        resize=f"cubic in 8 bits of the shorter side, centre crop, {side}",
        prefix="" if place.startswith(BUILTIN) else PREFIX,  # the embedded ones have read bare captions alone
        too_long=_too_long(model),
        max_length=model.max_length,
    )
    digest = _digest(_weights(folder_of(place)))
    name, width = f"clip {_name(place)}", model.config.projection_dim
    return FeatureSpace(Described(name, digest, f"antialiased cubic, {side}", width), run, params, captioned)


def _text_embedding(model: Clip, params: Params) -> Callable[[Sequence[str]], np.ndarray]:
    """Captions -> [B, D], by the text tower alone of parameters that are on the devices."""
    encode = jax.jit(model.encode_text)
    tower = {name: params[name] for name in ("text_model", "text_projection", "logit_scale")}

    def embed(captions: Sequence[str]) -> np.ndarray:
        out = []
        for start in range(0, len(captions), BATCH):
            part = list(captions[start : start + BATCH])
            tokens = model.tokenize(part + [""] * (BATCH - len(part)))
            out.append(np.asarray(encode(tower, **tokens).pooled)[: len(part)])
        return np.concatenate(out)

    return embed


def _too_long(model: Clip) -> Callable[[Sequence[str]], np.ndarray]:
    """Captions -> whether each has more tokens than the model takes, bool [B]."""
    count = token_counter(model.tokenizer_dir)
    return lambda captions: count(captions) > model.max_length


def _dinov2(place: str) -> FeatureSpace:
    folder = folder_of(place)
    model = load_dinov2(folder)
    run = lambda params, images: {"pooled": model.encode_image(params, images)}
    name = f"dinov2 {_name(place)}"
    described = Described(name, _digest(_weights(folder)), "cubic in 8 bits, 224", model.config.hidden_size)
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


def _devices() -> Mesh:
    """All of this process: each has the parameters and sees its share of the pictures."""
    return Mesh(np.array(here().local), ("data",))


def _placed(params: Params) -> Params:
    """Parameters on the devices; those that are there stay where they are."""
    return jax.device_put(params, NamedSharding(_devices(), P()))


def _name(place: str) -> str:
    """Of a model in results; one of the hub is called so, and not like the folder of a commit where it is cached."""
    return folder_of(place).name if place.startswith(BUILTIN) else user_path(place).resolve().name


def _weights(folder: Path) -> list[Path]:
    """The files that a model is read from; others beside them are not its."""
    return sorted({tensor.file for tensor in stored_tensors(folder).values()})


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
