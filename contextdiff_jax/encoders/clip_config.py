"""What config.json says of a CLIP model (Radford et al. 2021), of both towers or of the text tower alone."""

import dataclasses
from typing import Any

import flax.linen as nn

from contextdiff_jax.errors import UserError
from contextdiff_jax.formats.kinds import TOKEN, check, unsupported

ACTIVATIONS = {
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "gelu": lambda x: nn.gelu(x, approximate=False),
}
WITH_PROJECTION = "CLIPTextModelWithProjection"


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """One transformer tower; the names are those of config.json."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def check(self, name: str) -> None:
        """UserError where the sizes or the activation cannot work."""
        if self.hidden_act not in ACTIVATIONS:
            accepted = ", ".join(ACTIVATIONS)
            raise UserError(f"CLIP {name} hidden_act={self.hidden_act!r} is unknown; use {accepted}")
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"CLIP {name} width {self.hidden_size} is not divisible by its "
                f"{self.num_attention_heads} heads; choose a multiple"
            )


@dataclasses.dataclass(frozen=True)
class CLIPTextConfig:
    """A text tower as config.json describes it.

    Attributes:
        tower: its transformer.
        projection_dim: width of the projection; only carried from file to file where there is none.
        has_projection: whether the end token's feature is projected.
    """

    tower: TowerConfig
    vocab_size: int
    max_position_embeddings: int
    eos_token_id: int
    bos_token_id: int
    pad_token_id: int
    projection_dim: int
    has_projection: bool

    def __post_init__(self):
        self.tower.check("text")

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> "CLIPTextConfig":
        """From config.json's content, or the text section of it; absent keys take transformers' defaults."""
        sizes = dict.fromkeys(("vocab_size", "max_position_embeddings", "projection_dim"), int)
        check("CLIP text", config, sizes | {"eos_token_id": TOKEN})
        architectures = config.get("architectures") or ()
        check("CLIP text", {"architectures": architectures or ("",)}, {"architectures": tuple[str, ...]})
        return cls(
            tower=_tower(config, TowerConfig(512, 2048, num_hidden_layers=12, num_attention_heads=8)),
            vocab_size=config.get("vocab_size", 49408),
            max_position_embeddings=config.get("max_position_embeddings", 77),
            eos_token_id=config.get("eos_token_id", 49407),
            bos_token_id=config.get("bos_token_id", 49406),
            pad_token_id=config.get("pad_token_id", 1),
            projection_dim=config.get("projection_dim", 512),
            has_projection=WITH_PROJECTION in architectures,
        )

    def to_dict(self) -> dict[str, Any]:
        """The content of config.json, as transformers reads it."""
        own = dataclasses.asdict(self)
        tower, has_projection = own.pop("tower"), own.pop("has_projection")
        architecture = WITH_PROJECTION if has_projection else "CLIPTextModel"
        return tower | own | dict(architectures=[architecture], model_type="clip_text_model")


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """A CLIP model of both towers as config.json describes it."""

    text: TowerConfig
    vision: TowerConfig
    projection_dim: int
    vocab_size: int
    max_position_embeddings: int
    eos_token_id: int
    image_size: int
    patch_size: int
    bos_token_id: int = 0  # this and the next are only carried from file to file; as `train_bpe` numbers them
    pad_token_id: int = 1

    def __post_init__(self):
        self.text.check("text")
        self.vision.check("vision")
        if self.image_size % self.patch_size:
            raise UserError(
                f"CLIP image_size={self.image_size} is not divisible by patch_size={self.patch_size}; choose a multiple"
            )

    @property
    def text_part(self) -> CLIPTextConfig:
        """The text tower by itself, with its projection."""
        return CLIPTextConfig(
            tower=self.text,
            vocab_size=self.vocab_size,
            max_position_embeddings=self.max_position_embeddings,
            eos_token_id=self.eos_token_id,
            bos_token_id=self.bos_token_id,
            pad_token_id=self.pad_token_id,
            projection_dim=self.projection_dim,
            has_projection=True,
        )

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> "CLIPConfig":
        """From config.json's content; absent keys take transformers' defaults.

        Raises:
            UserError: not a CLIP model, or sizes or an activation that cannot work.
        """
        if config.get("model_type") != "clip":
            found = config.get("model_type")
            raise UserError(f"config.json has model_type={found!r}; give the folder of a CLIP model ('clip')")
        # Old files hold the sections a second time as *_config_dict, which wins.
        names = [name + end for name in ("text_config", "vision_config") for end in ("", "_dict")]
        check("CLIP", {name: config.get(name) or {} for name in names}, dict.fromkeys(names, dict))
        section = lambda name: (config.get(name) or {}) | (config.get(f"{name}_dict") or {})
        text, vision = CLIPTextConfig.from_dict(section("text_config")), section("vision_config")
        check("CLIP", config, dict(projection_dim=int))
        check("CLIP vision", vision, dict(image_size=int, patch_size=int))
        if vision.get("num_channels", 3) != 3:
            raise unsupported("CLIP vision", "num_channels", vision["num_channels"], "3")
        return cls(
            text=text.tower,
            vision=_tower(vision, TowerConfig(768, 3072, num_hidden_layers=12, num_attention_heads=12)),
            projection_dim=config.get("projection_dim", 512),
            vocab_size=text.vocab_size,
            max_position_embeddings=text.max_position_embeddings,
            eos_token_id=text.eos_token_id,
            image_size=vision.get("image_size", 224),
            patch_size=vision.get("patch_size", 32),
            bos_token_id=text.bos_token_id,
            pad_token_id=text.pad_token_id,
        )

    def to_dict(self) -> dict[str, Any]:
        """The content of config.json, as transformers reads it."""
        text, vision = self.text_part.to_dict(), dataclasses.asdict(self.vision)
        del text["architectures"]
        vision |= dict(
            image_size=self.image_size,
            patch_size=self.patch_size,
            projection_dim=self.projection_dim,
            model_type="clip_vision_model",
        )
        return dict(
            architectures=["CLIPModel"],
            model_type="clip",
            projection_dim=self.projection_dim,
            text_config=text,
            vision_config=vision,
        )


def _tower(section: dict[str, Any], defaults: TowerConfig) -> TowerConfig:
    """The keys of one section of config.json that matter to a tower, over transformers' defaults."""
    check("CLIP", section, {field.name: field.type for field in dataclasses.fields(TowerConfig)})
    names = {field.name for field in dataclasses.fields(TowerConfig)}
    return dataclasses.replace(defaults, **{k: v for k, v in section.items() if k in names})
