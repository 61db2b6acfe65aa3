"""What is compared: one network, one number of steps, different objectives."""

from dataclasses import dataclass

from ml_collections import ConfigDict


@dataclass(frozen=True)
class Variant:
    """A training objective.

    Attributes:
        label: as in tables and plots.
        overrides: what it changes in a config.
        colour: in plots.
        extra: run on the mixture only.
    """

    label: str
    overrides: dict[str, object]
    colour: str
    extra: bool = False

    def apply(self, config: ConfigDict) -> ConfigDict:
        """The config with this objective."""
        config = config.copy_and_resolve_references()
        with config.unlocked():
            config.update_from_flattened_dict(self.overrides)
        return config


def _variant(label: str, colour: str, bound: float | None, objective: str, weighting: str = "constant", extra=False):
    adapter = {"adapter.enabled": False} if bound is None else {"adapter.enabled": True, "adapter.bound": bound}
    return Variant(label, adapter | {"loss.objective": objective, "loss.weighting": weighting}, colour, extra)


VARIANTS = {
    "plain_simple": _variant("plain, Eq. 6", "#9aa5b1", None, "simple"),
    "plain_posterior": _variant("plain, Eq. 5", "#52606d", None, "posterior"),
    "plain_nelbo": _variant("plain, Eq. 4", "#1f2933", None, "nelbo"),
    "simple_free": _variant("Eq. 6, r free", "#d1495b", 0.0, "simple"),
    "simple_bounded": _variant("Eq. 6, r bounded", "#ee964b", 1.0, "simple"),
    "lemma4": _variant("Eq. 6, Lemma 4, r bounded", "#8e5ea2", 1.0, "simple", "lemma4"),
    "posterior": _variant("Eq. 5, r bounded", "#2e86ab", 1.0, "posterior"),
    "nelbo": _variant("Eq. 4, r bounded", "#2e9e5b", 1.0, "nelbo"),
    "vlb_free": _variant("Eq. 6, vlb weight, r free", "#a4243b", 0.0, "simple", "vlb", extra=True),
    "vlb_bounded": _variant("Eq. 6, vlb weight, r bounded", "#c77b30", 1.0, "simple", "vlb", extra=True),
    "lemma4_free": _variant("Eq. 6, Lemma 4, r free", "#6a4480", 0.0, "simple", "lemma4", extra=True),
    "posterior_free": _variant("Eq. 5, r free", "#1b5e80", 0.0, "posterior", extra=True),
    "nelbo_free": _variant("Eq. 4, r free", "#1d6b3d", 0.0, "nelbo", extra=True),
}
REFERENCE = "plain_posterior"  # what differences are taken from: plain diffusion trained on the bound's own weights


def names(extra: bool) -> list[str]:
    """Of all variants, or without the extra ones."""
    return [name for name, variant in VARIANTS.items() if extra or not variant.extra]
