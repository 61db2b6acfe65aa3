"""Text-to-image with the contextual adapter.

    python -m contextdiff_jax.main --config=configs/t2i.py            # the demo: 12 objects x 6 colours, 32 x 32, CPU
    python -m contextdiff_jax.main --config=configs/t2i.py:tiny       # seconds: for tests
    python -m contextdiff_jax.main --config=configs/t2i.py:small      # every emoji, 64 x 64; a GPU, an hour (estimate)
    python -m contextdiff_jax.main --config=configs/t2i.py:paper      # Table 7 of the paper, a pod
    python -m contextdiff_jax.main --config=configs/t2i.py:folder --config.data.path=DIR   # your captioned images
    python -m contextdiff_jax.main --config=configs/t2i.py:sd --config.model.pretrained=SD_FOLDER \\
        --config.data.path=DIR --config.space.latents=LATENTS --mode=encode   # once; then the same without --mode
    bash launch/builtin_demo.sh                                       # :builtin, the model that ships as builtin:demo
"""

from ml_collections import ConfigDict

from configs.common import apply_preset, base, short_training


def get_config(preset: str | None = None) -> ConfigDict:
    """The demo, or the preset named after the colon."""
    config = sections()
    if not preset:
        short_training(config)
        # Less Frechet distance than 15 steps of ddim at guidance 3 (docs/RESULTS.md).
        config.sample.sampler, config.sample.num_steps = "dpmpp_2m", 24
        config.sample.guidance, config.sample.rescale = 2.0, 0.5
    presets = {f.__name__: f for f in (tiny, small, paper, folder, sd, builtin)}
    return apply_preset(config, preset, presets)


def sections() -> ConfigDict:
    """Every section of a diffusion model, with values that presets start from."""
    config = base("diffusion")
    config.encoder = ConfigDict(dict(clip="builtin:clip_mini"))
    config.condition = ConfigDict(
        dict(
            kind="text",  # text | class | layout | none
            embedding="one_hot",  # class: one_hot | resnet (trained: four tokens from residual blocks)
            width=64,  # of the tokens of a trained condition (resnet classes, layouts)
            depth=2,  # residual blocks, of layouts a stage
            token_grid=8,  # layout: side of the square of tokens beside those of the objects
            map_channels=16,  # layout: of the map that the denoiser is given beside x_t
            encoder="",  # folder of a CLIP or T5; empty: Stable Diffusion's own, else the text tower of encoder.clip
            kept_texts=0,  # text: up to so many different captions are encoded once; 0: those of every batch
        )
    )
    config.space = ConfigDict(
        dict(
            kind="pixels",  # pixels | latents (of the autoencoder in model.pretrained)
            latents="",  # folder that --mode=encode fills
            max_latents=0,  # images of each split that --mode=encode takes, spread over it; 0: all
            precomputed=True,  # train on its latents; False encodes the images in every step
            rgb_map="",  # folder of the map from latents to colours; empty: `latents`
            rgb="linear",  # what the adapter's CLIP sees of latents: linear (map fitted by --mode=encode) | decode
        )
    )
    config.process = ConfigDict(
        dict(
            schedule="cosine",  # cosine | linear | scaled_linear | log_snr | learned | pretrained (its scheduler's)
            num_timesteps=1000,
            init="log_snr",  # learned: the schedule it starts as
            ends="free",  # learned: free | fixed
            log_snr=(6.0, -8.0),  # log_snr only: at t = 1 and t = T; a learned one starts at 13 or below
            # Of the reverse steps in the bound (loss.objective=nelbo, bits per dimension): beta | posterior | learned
            # (which ddpm takes too; for the others see sample.variance). Eq. 5, objective=posterior, has Eq. 3's always
            variance="beta",
            variance_per_channel=False,  # learned only
            beta_start=1e-4,  # linear and scaled_linear only
            beta_end=2e-2,
            zero_terminal_snr=False,
        )
    )
    config.model = ConfigDict(
        dict(
            backbone="unet",  # unet | vdm | ldm (latent diffusion's: of Stable Diffusion's shape, from scratch) | sd
            pretrained="",  # sd: a Stable Diffusion folder in the diffusers layout
            init_from="",  # a run or an export (or its name on the hub) of the same sizes: its parameters are the start
            random_start=False,  # sd: train a new U-Net of the folder's unet/config.json, not its weights
            channels=64,
            multipliers=(1, 2, 3),
            num_blocks=1,
            self_attention_levels=(1, 2),
            cross_attention_levels=(1, 2),
            head_dim=32,
            patch_size=2,
            fourier_bands=(6, 7),  # vdm: n of the features sin and cos of 2^n pi x_t, for 8-bit data; () for none
            dropout=0.0,
            remat=False,
            dtype="auto",  # auto (bfloat16 on accelerators) | float32 | bfloat16
            prediction="x0",  # x0 | eps | v | pretrained (as its scheduler says)
            video=dict(  # sd, for clips: what joins their frames (models/video.py)
                temporal_conv_rank=0,
                temporal_attention="none",  # none | after | parallel
                key_frames=(),  # frames relative to each, such as -1, or first, mid, last; () for itself
                key_frames_min_channels=0,
            ),
        )
    )
    config.adapter = ConfigDict(
        dict(
            enabled=True,
            features="clip",  # clip (image tokens of encoder.clip) | patches (the sample's own)
            depth=4,
            num_heads=8,
            width=64,
            patch_size=4,
            bound=1.0,  # 0: free
            reverse="estimate",  # shift of a reverse step: estimate (Eq. 7: that of x0_hat) | head (of the denoiser)
            scale=0.0,  # of the forward noise, beside the shift: largest distance from 1; 0: none
            spectral_norm=0.0,  # cap on the largest singular value of every kernel; 0: off
            self_attention=False,  # among the sample's patches, before the condition is looked at
            start="",  # an export, or "builtin:demo", whose adapter is the start of this one
            frames_back=0,  # for clips: how many frames each attends to, itself the last
            track_lipschitz=False,  # log the largest |r(x0) - r(x0_hat)| / |x0 - x0_hat| of each batch
        )
    )
    config.loss = ConfigDict(
        dict(
            objective="simple",  # simple (Eq. 6) | posterior (Eq. 5) | nelbo (Eq. 4)
            # simple only: constant | prediction (the error of the network's own output) | snr (of eps) | snr_plus_1 (of
            # v) | min_snr | p2 | vlb | lemma4; snr, min_snr and p2 not with zero terminal SNR, where they are 0 at T
            weighting="constant",
            gamma=5.0,  # min_snr only
            num_times=0,  # nelbo only: times in 2..T drawn for each example, T - 1 takes all; 0: one in 1..T
            cond_drop_prob=0.1,  # 0 is better where the process is learned, on the bound under the condition
        )
    )
    config.sample = ConfigDict(
        dict(
            sampler="ddim",  # ddpm | ddim | heun | dpmpp_2m
            num_steps=15,
            spacing="trailing",  # uniform | trailing | leading | pretrained (as its scheduler says)
            eta=0.0,  # ddim only
            # ddpm only, of its steps: posterior (Eq. 3's, unless process.variance is learned) | process (that of the
            # bound, for all T steps)
            variance="posterior",
            last_noise=False,  # ddpm with the bound's variance: draw from the last step too, not take its mean
            guidance=3.0,
            rescale=0.0,  # 0..1: how far the guided prediction's spread is drawn back to the conditional one's
            interval=(0.0, 1.0),  # fractions of T in which guidance acts
            threshold="static",  # none | static | dynamic
            adapter=True,  # False switches the trained shift off
            batch_size=64,
        )
    )
    config.eval = ConfigDict(
        dict(
            after_training=False,  # evaluate as soon as training has ended
            num_samples=128,  # per set (seen, unseen) and per setting of the adapter
            recogniser="",  # folder of a trained judge; empty: the shipped one, where there is one
            judge_steps=0,  # class: of a classifier of the data's own training set that judges the samples; 0: none
            features=(),  # spaces to measure distances to held-out pictures in, e.g. ("efficientnet",); --features
            reference=1000,  # held-out pictures of them; a Frechet distance needs more than the space has features
            bpd_images=64,  # 0 leaves bits per dimension out
            bpd_always=False,  # True: also where the objective is simple, which trains for pictures
            bpd_timesteps=16,  # timesteps drawn per image; 0 sums over all T
            bpd_dequantize=False,  # True: density of uniformly dequantised images; False: decoder with bins
        )
    )
    config.data.batch_size = 32
    config.ema.decay = 0.99
    config.train.num_steps = 750
    config.train.preview_every = 375
    return config


def tiny(config: ConfigDict) -> None:
    """The smallest run that uses every part."""
    config.data.image_size = 16
    config.data.batch_size = 8
    config.process.num_timesteps = 50
    config.model.channels = 16
    config.model.multipliers = (1, 2)
    config.model.self_attention_levels = config.model.cross_attention_levels = (1,)
    config.model.head_dim = 16
    config.adapter.depth = 1
    config.adapter.width = 16
    config.adapter.num_heads = 2
    config.optim.warmup_steps = 2
    config.train.num_steps = 20
    config.train.log_every = 1
    config.train.checkpoint_every = 5
    config.train.preview_every = 0
    config.sample.num_steps = 4
    config.sample.batch_size = 8
    config.eval.num_samples = 8
    config.eval.bpd_images = 8
    config.eval.bpd_timesteps = 4


def small(config: ConfigDict) -> None:
    """Every named emoji on coloured backgrounds at 64 x 64: about an hour on one GPU."""
    config.data.preset = "single"
    config.data.image_size = 64
    config.data.batch_size = 256
    config.data.num_threads = config.data.prefetch = 16
    config.model.channels = 128
    config.model.multipliers = (1, 2, 3, 4)
    config.model.num_blocks = 2
    config.model.self_attention_levels = (1, 2, 3)
    config.model.cross_attention_levels = (1, 2, 3)
    config.model.head_dim = 64
    config.adapter.width = 256
    config.adapter.patch_size = 4
    config.model.prediction = "v"
    config.loss.weighting = "min_snr"
    config.optim.lr = 3e-4
    config.optim.warmup_steps = 1000
    config.ema.decay = 0.9995
    config.train.num_steps = 30_000
    config.train.log_every = 100
    config.train.checkpoint_every = 2000
    config.train.preview_every = 2000
    config.sample.num_steps = 50


def paper(config: ConfigDict) -> None:
    """Table 7: 64 x 64 base model on captioned images, CLIP ViT-B/32 adapter, fully sharded over a pod."""
    config.encoder.clip = "openai/clip-vit-base-patch32"
    config.data.source = "folder"
    config.data.path = "data/laion"
    config.data.image_size = 64
    config.data.batch_size = 1024
    config.data.horizontal_flip = True
    config.data.num_threads = config.data.prefetch = 64
    config.model.channels = 512
    config.model.multipliers = (1, 2, 3, 4)
    config.model.num_blocks = 3
    config.model.self_attention_levels = (1, 2, 3)
    config.model.cross_attention_levels = (1, 2, 3)
    config.model.head_dim = 64
    config.model.patch_size = 1
    config.model.remat = True
    config.model.prediction = "v"
    config.loss.weighting = "min_snr"
    config.adapter.width = 1760  # 189 M parameters, the U-Net 2,035 M; in the paper 188 M and 2.0 B
    config.adapter.patch_size = 8
    config.optim.lr = 1e-4
    config.optim.b2 = 0.999
    config.optim.weight_decay = 0.0
    config.optim.warmup_steps = 10_000
    config.optim.schedule = "constant"
    config.ema.decay = 0.9999
    config.train.num_steps = 2_500_000
    config.train.log_every = 100
    config.train.checkpoint_every = 5000
    config.train.preview_every = 10_000
    config.mesh.fsdp = 16
    config.sample.num_steps = 250
    config.sample.guidance = 7.5
    config.sample.threshold = "dynamic"


def folder(config: ConfigDict) -> None:
    """The user's own captioned images (metadata.jsonl, or name.txt beside name.jpg) at 64 x 64."""
    small(config)
    config.data.source = "folder"
    config.data.preset = ""
    config.data.batch_size = 64
    config.data.horizontal_flip = True


def sd(config: ConfigDict) -> None:
    """The adapter on top of Stable Diffusion 1.x or 2.x (a folder in the diffusers layout), on captioned images.

    Trained: `train.trainable`; ("^adapter/",) the adapter alone, (".*",) everything. For photographs give the adapter a
    CLIP that knows them: --config.encoder.clip=FOLDER (ViT-B/32 in the paper).
    """
    config.model.backbone = "sd"
    config.model.prediction = "pretrained"
    config.model.remat = True
    config.process.schedule = "pretrained"
    config.space.kind = "latents"
    config.data.source = "folder"
    config.data.preset = ""
    config.data.image_size = 512
    config.data.batch_size = 4
    config.adapter.width = 512
    config.adapter.patch_size = 2
    config.loss.weighting = "prediction"  # that of the effective noise, or of v, as the checkpoint was trained
    config.train.trainable = ("^adapter/", "/attn2/")
    config.train.num_steps = 2000
    config.train.preview_every = 500
    config.optim.lr = 1e-5
    config.optim.b2 = 0.999
    config.optim.schedule = "constant"
    config.ema.decay = 0.999
    config.sample.num_steps = 50
    config.sample.spacing = "pretrained"
    config.sample.guidance = 7.5
    config.sample.threshold = "none"
    config.sample.batch_size = 4
    config.eval.bpd_images = 0  # a bound on the latents' likelihood says nothing about the images'


def builtin(config: ConfigDict) -> None:
    """The model that ships as `builtin:demo`: Stable Diffusion's architecture from random weights, in the latents of
    configs/autoencoder.py, 64 x 64. `bash launch/builtin_demo.sh` makes what it starts from, and trains it."""
    sd(config)
    config.model.pretrained = "runs/builtin_demo/start"
    config.model.random_start = True
    config.model.remat = False
    config.condition.encoder = "builtin:clip_mini"
    config.space.latents = "runs/builtin_demo/latents"
    config.space.max_latents = 6144
    config.data.source = "openmoji"
    config.data.preset = "demo"
    config.data.image_size = 64
    config.data.batch_size = 16
    config.adapter.width = 64
    config.loss.weighting = "snr_plus_1"
    config.optim.lr = 1e-3
    config.optim.b2 = 0.99
    config.optim.schedule = "cosine"
    config.ema.decay = 0.998
    config.train.trainable = (".*",)
    config.train.num_steps = 1900
    config.train.preview_every = 200
    config.sample.num_steps = 20
    config.sample.guidance = 3.0
    config.sample.batch_size = 16
