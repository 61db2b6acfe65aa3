"""What all models in the layout of diffusers share: the names of their tensors and the checks of their config.json."""

import copy
import dataclasses
import re
from typing import Any, ClassVar, Self

from contextdiff_jax.errors import UserError
from contextdiff_jax.formats.kinds import check, unsupported

STEM = "diffusion_pytorch_model"
# Our name of a layer or parameter -> the one in the file, where they differ.
RENAMED = {
    "norm_1": "norm1",
    "norm_2": "norm2",
    "conv_1": "conv1",
    "conv_2": "conv2",
    "shift": "time_emb_proj",
    "skip": "conv_shortcut",
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "out": "to_out.0",
    "kernel": "weight",
    "scale": "weight",
}


def tensor_name(path: str) -> str:
    """Our parameter path -> the name in a diffusers checkpoint.

    Numbers stand between dots there: up_blocks_0/upsamplers_0_conv/bias is up_blocks.0.upsamplers.0.conv.bias.
    """
    numbered = lambda part: re.sub(r"\.(\d+)_", r".\1.", re.sub(r"(s|net)_(\d+)", r"\1.\2", part))
    return ".".join(RENAMED.get(part, numbered(part)) for part in path.split("/"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusersConfig:
    """A config.json of diffusers. Subclasses add the keys that they use, by diffusers' names and with its defaults.

    Attributes:
        raw: the file's whole content, so that it can be written again.
    """

    CLASS_NAME: ClassVar[str]
    ONLY: ClassVar[dict[str, tuple]]  # keys of which few values are supported, and these
    UNUSED: ClassVar[tuple[str, ...]]  # keys without effect here
    UNIFORM: ClassVar[tuple[str, ...]] = ()  # keys that may have one value for each level, here the same for all

    raw: dict[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> Self:
        """From config.json's content; absent keys take diffusers' defaults, keys that begin with "_" are carried along.

        Raises:
            UserError: another class of model, an unknown key, or a value that is not supported.
        """
        name = config.get("_class_name", cls.CLASS_NAME)
        if name != cls.CLASS_NAME:
            raise UserError(f"config.json describes a {name}; give the folder of a model of class {cls.CLASS_NAME}")
        kinds = {f.name: f.type for f in dataclasses.fields(cls) if f.name != "raw"}
        values = {}
        for key, value in config.items():
            if key.startswith("_") or key in cls.UNUSED:
                continue
            if key in cls.UNIFORM and isinstance(value, list) and value and all(v == value[0] for v in value):
                value = value[0]
            if key in kinds:
                values[key] = tuple(value) if isinstance(value, list) else value
            elif key not in cls.ONLY:
                known = ", ".join(sorted({*kinds, *cls.ONLY, *cls.UNUSED}))
                raise UserError(f"{cls.CLASS_NAME} key {key}={value!r} is unknown; known are {known}")
            elif value not in cls.ONLY[key]:
                raise cls.unsupported(key, value, " or ".join(repr(v) for v in cls.ONLY[key]))
        check(cls.CLASS_NAME, values, kinds)
        return cls(**values, raw=copy.deepcopy(config))

    def to_dict(self) -> dict[str, Any]:
        """The content of config.json, as diffusers reads it."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "raw"}
        lists = {key: list(value) if isinstance(value, tuple) else value for key, value in own.items()}
        return {"_class_name": self.CLASS_NAME} | copy.deepcopy(self.raw) | lists

    @classmethod
    def unsupported(cls, key: str, value: Any, accepted: str) -> UserError:
        """The error for a value that cannot work."""
        return unsupported(cls.CLASS_NAME, key, value, accepted)
