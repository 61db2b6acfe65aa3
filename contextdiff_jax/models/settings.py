"""What the config's section `model` accepts."""

from ml_collections import ConfigDict

from contextdiff_jax.errors import UserError
from contextdiff_jax.keys import Values, are, leaves, require

VALUES = Values(
    choices={
        "model.backbone": ("unet", "vdm", "ldm", "sd"),
        "model.dtype": ("auto", "float32", "bfloat16"),
        "model.prediction": ("x0", "eps", "v", "pretrained"),
    },
    positive="model.channels model.num_blocks model.head_dim model.patch_size",
    fractions="model.dropout",
    whole="model.channels model.num_blocks model.head_dim model.patch_size",
    listed="""
        model.multipliers model.self_attention_levels model.cross_attention_levels model.fourier_bands
        model.video.key_frames
    """,
    needed="model.prediction model.dtype model.remat model.dropout encoder.clip",
)
_SIZES = {
    "unet": """
        model.channels model.multipliers model.num_blocks model.self_attention_levels model.cross_attention_levels
        model.head_dim model.patch_size
    """,
    "vdm": "model.channels model.num_blocks model.head_dim",
    "ldm": "model.channels model.multipliers model.num_blocks model.cross_attention_levels model.head_dim",
    "sd": "",
}


def check(config: ConfigDict) -> None:
    """Weights that nothing looks at or that are missing, and sizes that must divide one another.

    Raises:
        UserError: names the keys, their values and the remedy.
    """
    if "model" not in config:
        return
    model = config.model
    require(leaves(config), _SIZES[model.backbone])
    _check_acting(config)
    if (config.space.kind == "latents" or model.backbone == "sd") and not model.pretrained:
        raise UserError(
            "config.model.pretrained is empty; give a folder in the diffusers layout: of Stable Diffusion, or one "
            "with vae/ or vqvae/ for the latents of another network"
        )
    for key in ("process.schedule", "model.prediction", "sample.spacing"):
        section, name = key.split(".")
        if config[section][name] == "pretrained" and not model.pretrained:
            raise UserError(
                f"config.{key}='pretrained' needs config.model.pretrained, a folder in the diffusers layout"
            )
    if model.backbone == "sd" and (config.space.kind != "latents" or config.condition.kind == "none"):
        raise UserError(
            f"config.model.backbone='sd' works on latents under a condition, not on config.space.kind="
            f"{config.space.kind!r} with config.condition.kind={config.condition.kind!r}"
        )
    if model.backbone == "unet":
        _check_unet(config)
    if model.backbone == "ldm":
        _check_ldm(config)
    if model.dropout and model.backbone in ("ldm", "sd"):
        raise UserError(
            f"config.model.dropout={model.dropout} cannot act on config.model.backbone={model.backbone!r}; set it to 0"
        )
    if model.backbone == "vdm" and not are(model.fourier_bands, int):
        raise UserError(f"config.model.fourier_bands={tuple(model.fourier_bands)!r} must be whole numbers, e.g. (6, 7)")
    if model.backbone == "vdm" and (model.channels % 16 or model.channels % model.head_dim):
        raise UserError(
            f"config.model.channels={model.channels} must be a multiple of 16 (group normalisation) and of "
            f"config.model.head_dim={model.head_dim}"
        )


def _check_acting(config: ConfigDict) -> None:
    """Refuses weights that are named and would not be looked at."""
    uses_folder = config.space.kind == "latents" or any(
        config[section][name] == "pretrained"
        for section, name in (("process", "schedule"), ("model", "prediction"), ("sample", "spacing"))
    )
    if config.model.init_from and config.adapter.enabled and config.adapter.start:
        raise UserError(
            f"config.adapter.start={config.adapter.start!r} cannot act: the adapter starts from config.model.init_from="
            f"{config.model.init_from!r}; leave one of them empty"
        )
    if config.model.pretrained and not uses_folder:
        raise UserError(
            f"config.model.pretrained={config.model.pretrained!r} cannot act: nothing is taken from it: "
            "space.kind='pixels'; leave it empty"
        )


def _check_ldm(config: ConfigDict) -> None:
    """Sizes of latent diffusion's U-Net."""
    model = config.model
    if not model.multipliers or any(not isinstance(m, int) or m < 1 for m in model.multipliers):
        raise UserError(f"config.model.multipliers={tuple(model.multipliers)} must be whole numbers from 1")
    if model.channels % 32:
        raise UserError(f"config.model.channels={model.channels} must be a multiple of 32 (group normalisation)")
    last = len(model.multipliers) - 1
    for level in {*model.cross_attention_levels, last}:
        if not 0 <= level <= last:
            raise UserError(
                f"config.model.cross_attention_levels={tuple(model.cross_attention_levels)} names level {level}; "
                f"accepted: 0 to {last}"
            )
        if (width := model.channels * model.multipliers[level]) % model.head_dim:
            raise UserError(
                f"config.model.head_dim={model.head_dim} does not divide the {width} channels of level {level}, which "
                "attends; choose a divisor"
            )


def _check_unet(config: ConfigDict) -> None:
    """Sizes of the pixel U-Net."""
    size, model = config.data.image_size, config.model
    for key in ("multipliers", "self_attention_levels", "cross_attention_levels"):
        if not are(model[key], int):
            raise UserError(f"config.model.{key}={tuple(model[key])!r} must be whole numbers, e.g. (1, 2)")
    if not model.multipliers:
        raise UserError("config.model.multipliers=() leaves no level; give e.g. (1, 2, 3)")
    factor = model.patch_size * (halved := 2 ** (len(model.multipliers) - 1))
    if config.space.kind == "pixels" and size % factor:
        patches = (model.patch_size >> i for i in range(1, model.patch_size.bit_length()))
        smaller = next((patch for patch in patches if size % (patch * halved) == 0), None)
        raise UserError(
            f"config.data.image_size={size} is not divisible by the U-Net's factor {factor} "
            f"(model.patch_size={model.patch_size} x 2^{len(model.multipliers) - 1} levels); "
            f"try {max(1, size // factor) * factor}" + (f", or model.patch_size={smaller}" if smaller else "")
        )
    if model.channels % 16:
        raise UserError(f"config.model.channels={model.channels} must be a multiple of 16 (group normalisation)")
    if any(m < 1 for m in model.multipliers):
        raise UserError(f"config.model.multipliers={tuple(model.multipliers)} must be whole numbers from 1")
    for key in ("self_attention_levels", "cross_attention_levels"):
        for level in model[key]:
            if not 0 <= level < len(model.multipliers):
                raise UserError(
                    f"config.model.{key}={tuple(model[key])} names level {level}; "
                    f"accepted: 0 to {len(model.multipliers) - 1}"
                )
            if (width := model.channels * model.multipliers[level]) % model.head_dim:
                raise UserError(
                    f"config.model.head_dim={model.head_dim} does not divide the {width} channels of level {level}, "
                    f"which attends ({key}); choose a divisor"
                )
