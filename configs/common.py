"""What every config shares: presets by `:name`, and the sections that the one training loop reads."""

from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from contextdiff_jax.errors import UserError

Preset = Callable[[ConfigDict], None]


def apply_preset(config: ConfigDict, name: str | None, presets: Mapping[str, Preset]) -> ConfigDict:
    """Applies the preset that follows the colon in `--config=FILE.py:NAME`; no name leaves the default."""
    if name:
        if name not in presets:
            raise UserError(f"preset ':{name}' is unknown; accepted: {', '.join(':' + n for n in sorted(presets))}")
        presets[name](config)
        config.preset = name
    return config


def base(task: str) -> ConfigDict:
    """The sections of a training run: seed, data, optimizer, EMA, cadence, mesh and sharding."""
    config = ConfigDict()
    config.task = task
    config.preset = ""
    config.seed = 0
    config.data = ConfigDict(
        dict(
            source="openmoji",  # openmoji | folder
            preset="demo",  # openmoji: demo | single | pairs, several joined by "+"
            path="",  # folder: images with metadata.jsonl or name.txt captions
            labels="none",  # folder: none | subfolders (its first folders are classes)
            class_words="",  # of labels: file of lines "n02391049 zebra" for folders called by numbers; empty: none
            class_names=(),  # of labels: filled in when a run starts, so that it can do without the folder
            image_size=32,
            num_frames=1,  # of a clip; 1 for pictures
            batch_size=64,  # global
            seed=0,
            horizontal_flip=False,
            random_crop=0.0,  # smallest share of the shorter side that a random square keeps; 0: the middle square
            max_bad_fraction=0.01,
            num_threads=2,  # each reads a whole batch
            prefetch=4,  # batches read ahead: no fewer than the threads
        )
    )
    config.optim = ConfigDict(
        dict(
            lr=1e-3,
            b1=0.9,
            b2=0.99,
            eps=1e-8,
            weight_decay=0.01,
            warmup_steps=100,
            schedule="cosine",  # constant | cosine, after the warm-up
            clip_norm=1.0,
            accum_steps=1,
            lr_multipliers=(),  # ((regex, factor), ...), the first match counts
            muon=(),  # regular expressions of matrices that Muon steps with, not Adam; not a network's first and last
            momentum=0.95,  # of Muon
        )
    )
    config.ema = ConfigDict(dict(decay=0.999, warmup=True))
    config.train = ConfigDict(
        dict(
            num_steps=1000,
            log_every=20,
            checkpoint_every=200,
            keep=3,
            keep_every=0,
            preview_every=0,
            validate_every=0,  # steps between looks at the loss on held-out records; 0: never
            validate_batches=4,  # how many batches of them
            trainable=(".*",),  # regular expressions of parameter names; what none is found in stays as it is
            lora=dict(
                rank=0,  # of the changes of a trained denoiser (model.init_from, or model.pretrained); 0: none
                scale=1.0,  # of the changes; PEFT's alpha / rank
                targets=(r"(attn\d|self|cross)/(query|key|value|out)/kernel$",),  # regular expressions of kernels
            ),
        )
    )
    config.mesh = ConfigDict(dict(data=-1, fsdp=1, tensor=1))
    # A table split over its words would be looked up by all devices for all rows, and the answers summed over them.
    config.sharding = ConfigDict(dict(rules=(("embedding$", "replicate"), (".*", "fsdp"))))
    return config


def short_training(config: ConfigDict) -> None:
    """The best drawings of a dozen CPU minutes that were found (docs/RESULTS.md): a narrow U-Net, many steps, Muon."""
    config.model.channels = 32
    config.optim.lr = 3e-3
    config.optim.lr_multipliers = (("^adapter/", 1 / 3),)
    config.optim.muon = ("^denoiser/(down|middle|up)_.*kernel$",)
    config.train.num_steps = 850
    config.train.preview_every = 425


def latent_diffusion(config: ConfigDict) -> None:
    """The U-Net, process and training of latent diffusion on ImageNet (Rombach et al. 2022, LDM-4), at 256 x 256.

    The autoencoder is the user's, in `model.pretrained`: f = 4 with three channels, or another.
    """
    config.encoder.clip = "openai/clip-vit-base-patch32"  # what the adapter sees, through a linear map to colours
    config.space.kind = "latents"
    config.data.image_size = 256
    config.data.batch_size = 1200
    config.data.num_threads = config.data.prefetch = 64
    config.condition.width = 512
    config.model.backbone = "ldm"
    config.model.channels = 192
    config.model.multipliers = (1, 2, 3, 5)
    config.model.num_blocks = 2
    config.model.cross_attention_levels = (1, 2, 3)  # where the sides are 1/2, 1/4 and 1/8 of the latents'
    config.model.head_dim = 32
    config.model.remat = True
    config.model.prediction = "eps"
    config.process.schedule = "scaled_linear"
    config.process.beta_start, config.process.beta_end = 0.0015, 0.0195
    config.loss.weighting = "prediction"
    config.adapter.width = 512
    config.optim.lr = 1e-4
    config.optim.b2 = 0.999
    config.optim.warmup_steps = 10_000
    config.optim.schedule = "constant"
    config.ema.decay = 0.9999
    config.train.num_steps = 178_000
    config.train.log_every = 100
    config.train.checkpoint_every = 5000
    config.train.preview_every = 10_000
    config.sample.num_steps = 250
    config.sample.eta = 1.0
    config.sample.guidance = 1.5
    config.sample.threshold = "none"
    config.sample.batch_size = 32
    config.eval.bpd_images = 0  # a bound on the latents' likelihood says nothing about the images'
