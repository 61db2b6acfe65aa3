"""Likelihood: bits per dimension from the full bound of Eq. 4, with or without the adapter.

    python -m contextdiff_jax.main --config=configs/cifar10_nll.py           # or :digits, 8 x 8: two CPU cores, minutes
    python -m contextdiff_jax.main --config=configs/cifar10_nll.py:fast      # the digits in 8 steps, learned process
    python -m contextdiff_jax.main --config=configs/cifar10_nll.py:emoji16   # drawn scenes, 16 x 16: one GPU, minutes
    python -m contextdiff_jax.main --config=configs/cifar10_nll.py:fashion \\
        --config.data.path=/usr/share/datasets/fashion-mnist                 # Fashion-MNIST, 28 x 28: one GPU
    python -m contextdiff_jax.main --config=configs/cifar10_nll.py:ddpm      # CIFAR-10, Ho et al. 2020: one GPU
    python -m contextdiff_jax.main --config=configs/cifar10_nll.py:vdm       # CIFAR-10, full resolution: one GPU
    python -m contextdiff_jax.main --config=configs/cifar10_nll.py:cifar10   # as deep as Kingma et al. 2021: a pod
    python -m contextdiff_jax.main --config=configs/cifar10_nll.py:tiny      # seconds: for tests

CIFAR-10 comes through tensorflow_datasets (pip install tensorflow-datasets importlib_resources tensorflow-cpu) or, with
--config.data.path=FOLDER, from the files of its binary version. The same three presets train on the embedded scenes
with --config.data.source=openmoji. Fashion-MNIST comes from its four idx files (Debian's package
dataset-fashion-mnist); `:fashion_short` is a training for two CPU cores, minutes: 16 steps of a learned process.

Cost of a training step with the adapter (which `:fast` and `:fashion_short` leave out), counted from the program before
compilation, and of the whole run, estimated at 200 TFLOP/s (what one current GPU may sustain in bfloat16; not
measured):

    preset    parameters   TFLOP per step   steps        device hours
    digits        0.36 M           0.011        2,000    two CPU cores, minutes
    fashion_short 0.74 M           0.018          400    two CPU cores, minutes
    fashion       2.9 M            2.3        100,000    0.3
    emoji16       2.4 M            0.56        20,000    below 0.1
    ddpm         39 M              9.3        200,000    2.6
    vdm          11 M             12          200,000    3.3
    cifar10      36 M             40       10,000,000    560

Eq. 4 looks at two noise levels of each image; the simple and posterior objectives cost half of this.

To compare: --config.adapter.enabled=False, --config.loss.objective=simple, posterior or nelbo,
--config.condition.kind=none.

A bound under a class says how well the model codes an image whose class is known already: compare it with others of the
same kind. Without one (kind=none), `:fashion` (256 levels, the standard split, all 10,000 test images) can be held
against Glow's 2.96 bits per dimension (Nalisnick et al. 2019); figures on binarised images, or of images padded to
32 x 32, are of other data.
"""

from ml_collections import ConfigDict

from configs import common, t2i


def get_config(preset: str | None = None) -> ConfigDict:
    """The digits, or the preset named after the colon."""
    config = t2i.sections()
    config.condition.kind = "class"
    config.model.backbone = "vdm"
    config.model.patch_size = 1
    config.model.prediction = "v"  # with little noise x0_hat is x_t and a small correction: exact to the last bit
    config.adapter.features = "patches"
    config.loss.objective = "nelbo"  # by the evidence of docs/study.md
    config.loss.cond_drop_prob = 0.0  # the bound is that of the model with its condition
    config.sample.guidance = 1.0
    config.sample.num_steps = 100
    config.eval.after_training = True
    config.eval.bpd_always = True  # the recipe is about it, whatever the objective
    config.eval.bpd_timesteps = 64
    presets = (digits, fast, fashion, fashion_short, emoji16, ddpm, vdm, cifar10, tiny)
    return common.apply_preset(config, preset or "digits", {f.__name__: f for f in presets})


def digits(config: ConfigDict) -> None:
    """Scikit-learn's digits, 8 x 8 with 17 levels."""
    config.data.source = "digits"
    config.data.image_size = 8
    config.data.batch_size = 64
    config.model.channels = 32
    config.model.num_blocks = 3
    config.model.head_dim = 16
    config.model.fourier_bands = (2, 3)
    config.adapter.depth = 2
    config.adapter.num_heads = 4
    config.adapter.width = 32
    config.adapter.patch_size = 2
    config.optim.lr = 2e-3
    config.train.num_steps = 2000
    config.train.checkpoint_every = 1000
    config.train.preview_every = 1000
    config.sample.batch_size = 60
    config.eval.bpd_images = 180  # all of the test split


def fast(config: ConfigDict) -> None:
    """The digits in 8 steps, as many of which are trained: schedule and reverse variance are learned with the model.

    Without an adapter: on a smaller network the shift alone gains nothing that the errors show, with a forward scale it
    gains 0.4 % (docs/study.md). --config.adapter.enabled=True adds the shift, and with it --config.adapter.bound=0
    --config.adapter.scale=0.9 the scale.
    """
    digits(config)
    few_steps(config, 8)
    config.adapter.enabled = False
    config.train.num_steps = 600
    config.train.checkpoint_every = 200
    config.train.preview_every = 200


def few_steps(config: ConfigDict, T: int, rate: float = 20.0) -> None:
    """A process of T steps that is learned, from a straight line in log SNR with both ends free.

    It learns `rate` times faster than the networks, so that it is finished when they are; see docs/study.md. Sampling
    takes x0_hat as it is, as the bound does: trained on Eq. 4 with a shift it need not be E[x0 | x_t], nor a picture.
    """
    config.process.num_timesteps = T
    config.process.schedule = "learned"
    config.process.init = "log_snr"
    config.process.variance = "learned"
    config.loss.num_times = min(max(T - 1, 1), 3)
    config.optim.lr_multipliers = (("process/", rate),)
    config.sample.sampler = "ddpm"
    config.sample.spacing = "trailing"
    config.sample.num_steps = T
    config.sample.threshold = "none"
    config.eval.bpd_timesteps = 0  # all of them


def tiny(config: ConfigDict) -> None:
    """The smallest run that uses every part."""
    digits(config)
    config.data.batch_size = 8
    config.process.num_timesteps = 50
    config.model.channels = 16
    config.model.num_blocks = 1
    config.adapter.depth = 1
    config.adapter.width = 16
    config.adapter.num_heads = 2
    config.optim.warmup_steps = 1
    config.train.num_steps = 4
    config.train.log_every = 1
    config.train.checkpoint_every = 2
    config.train.preview_every = 0
    config.sample.num_steps = 4
    config.sample.batch_size = 8
    config.eval.num_samples = 8
    config.eval.bpd_images = 16
    config.eval.bpd_timesteps = 4


def fashion(config: ConfigDict) -> None:
    """Fashion-MNIST, 28 x 28 with 256 levels. No flips, as for CIFAR-10."""
    config.data.source = "fashion"
    config.data.image_size = 28
    config.data.batch_size = 128
    config.data.num_threads = config.data.prefetch = 16
    config.model.num_blocks = 8
    config.model.head_dim = 64
    config.model.dropout = 0.1
    config.optim.lr = 2e-4
    config.optim.warmup_steps = 1000
    config.ema.decay = 0.9999
    config.train.num_steps = 100_000
    config.train.log_every = 100
    config.train.checkpoint_every = 5000
    config.train.preview_every = 10_000
    config.eval.bpd_images = 10_000  # all of the test split
    config.eval.judge_steps = 1200


def fashion_short(config: ConfigDict) -> None:
    """The same for minutes on two CPU cores: a small U-Net of patches, and 16 steps of a learned process.

    Without an adapter, which makes no difference to the bits here, and costs 0.03 with a forward scale
    (docs/RESULTS.md); --config.adapter.enabled=True adds it.
    """
    fashion(config)
    few_steps(config, 16)
    config.adapter.enabled = False
    config.loss.num_times = 1
    config.data.batch_size = 32
    config.data.num_threads = config.data.prefetch = 2
    config.model.backbone = "unet"
    config.model.patch_size = 2
    config.model.channels = 32
    config.model.multipliers = (1, 2)
    config.model.num_blocks = 1
    config.model.self_attention_levels = config.model.cross_attention_levels = (1,)
    config.model.head_dim = 32
    config.model.dropout = 0.0
    config.adapter.depth = 1
    config.adapter.num_heads = 4
    config.adapter.width = 32
    config.optim.lr = 2e-3
    config.optim.warmup_steps = 50
    config.ema.decay = 0.99
    config.train.num_steps = 400
    config.train.log_every = 20
    config.train.checkpoint_every = config.train.preview_every = 200
    config.eval.bpd_images = 500
    config.eval.num_samples = 100


def emoji16(config: ConfigDict) -> None:
    """The drawn scenes at 16 x 16; a class is an object on a background."""
    config.data.image_size = 16
    config.data.batch_size = 128
    config.data.num_threads = config.data.prefetch = 16
    config.model.channels = 64
    config.model.num_blocks = 6
    config.model.head_dim = 64
    config.adapter.patch_size = 4
    config.optim.lr = 5e-4
    config.optim.warmup_steps = 500
    config.ema.decay = 0.999
    config.train.num_steps = 20_000
    config.train.log_every = 100
    config.train.checkpoint_every = 5000
    config.train.preview_every = 5000
    config.eval.bpd_images = 1024


def _cifar10(config: ConfigDict) -> None:
    """What the presets for CIFAR-10 share. No flips: they make the train set larger than the one that is coded."""
    config.data.source = "cifar10"
    config.data.image_size = 32
    config.data.batch_size = 128
    config.data.num_threads = config.data.prefetch = 16
    config.adapter.width = 128
    config.adapter.patch_size = 4
    config.model.channels = 128
    config.model.dropout = 0.1
    config.optim.lr = 2e-4
    config.optim.warmup_steps = 1000
    config.optim.schedule = "constant"
    config.ema.decay = 0.9999
    config.train.num_steps = 200_000
    config.train.log_every = 100
    config.train.checkpoint_every = 5000
    config.train.preview_every = 10_000
    config.sample.num_steps = 1000
    config.sample.sampler = "ddpm"
    config.eval.bpd_images = 10_000  # all of the test split


def ddpm(config: ConfigDict) -> None:
    """The U-Net, schedule and noise prediction of Ho et al. 2020."""
    _cifar10(config)
    config.model.backbone = "unet"
    config.model.multipliers = (1, 2, 2, 2)
    config.model.num_blocks = 2
    config.model.self_attention_levels = (1,)
    config.model.cross_attention_levels = (1,)
    config.model.head_dim = 128
    config.model.prediction = "eps"
    config.process.schedule = "linear"


def vdm(config: ConfigDict) -> None:
    """The full-resolution network at a quarter of the paper's depth."""
    _cifar10(config)
    config.model.num_blocks = 8
    config.model.head_dim = 128


def cifar10(config: ConfigDict) -> None:
    """Depth, width, dropout and batch of Kingma et al. 2021, who trained for 10 million steps.

    Their noise schedule is learned and their time continuous; here T = 1000 steps of the cosine schedule.
    """
    vdm(config)
    config.model.num_blocks = 32
    config.train.num_steps = 10_000_000
    config.train.checkpoint_every = 20_000
    config.train.preview_every = 100_000
