"""Class to image (paper, section 4.3, Table 3): the text encoder replaced by residual blocks that embed the class.

    python -m contextdiff_jax.main --config=configs/class2img.py            # 12 drawn objects, 32 x 32, CPU, minutes
    python -m contextdiff_jax.main --config=configs/class2img.py:tiny       # seconds: for tests
    python -m contextdiff_jax.main --config=configs/class2img.py:folder --config.data.path=DIR   # a subfolder a class
    python -m contextdiff_jax.main --config=configs/class2img.py --mode=sample --prompt=frog --prompt=3

Fashion-MNIST, from its four idx files (Debian's package dataset-fashion-mnist puts them into the folder named here);
the samples are judged by a classifier that is trained on the training set, minutes on two CPU cores by estimate:

    python -m contextdiff_jax.main --config=configs/class2img.py:fashion \\
        --config.data.path=/usr/share/datasets/fashion-mnist

ImageNet in the latents of an autoencoder in the diffusers layout (AUTOENCODER/vqvae, f = 4: latents of 64 x 64 x 3; or
AUTOENCODER/vae, f = 8: 32 x 32 x 4), from a folder with a subfolder for each class, such as ILSVRC's train:

    IMAGENET="--config=configs/class2img.py:imagenet --config.data.path=TRAIN --config.model.pretrained=AUTOENCODER"
    python -m contextdiff_jax.main $IMAGENET --config.space.latents=LATENTS --mode=encode   # once
    python -m contextdiff_jax.main $IMAGENET --config.space.latents=LATENTS

With --config.data.source=imagenet2012 in the place of a path it comes through tensorflow_datasets (pip install
tensorflow-datasets importlib_resources tensorflow-cpu). Either way its classes have numbers of WordNet for names; in
the file of lines "n02391049 zebra" that --config.data.class_words=LOC_synset_mapping.txt names they have words, so that
--prompt=zebra draws one.

Cost of a step with the adapter, counted from the program before compilation (`model.remat` adds about a third), and of
the whole run, estimated at 200 TFLOP/s (what one current GPU may sustain in bfloat16; not measured):

    preset    parameters                              batch   TFLOP per step     steps   device hours
    imagenet  U-Net 401 M, adapter 18 M, classes 11 M  1,200              731   178,000            180
"""

from ml_collections import ConfigDict

from configs import t2i
from configs.common import apply_preset, latent_diffusion, short_training


def get_config(preset: str | None = None) -> ConfigDict:
    """The drawn objects, or the preset named after the colon."""
    config = t2i.sections()
    config.condition.kind = "class"
    config.condition.embedding = "resnet"
    config.data.preset = "demo_objects"
    config.eval.after_training = True
    if not preset:
        short_training(config)
        config.train.num_steps, config.train.preview_every = 1000, 500  # any colours behind an object take longer
    presets = {"tiny": tiny, "folder": folder, "fashion": fashion, "imagenet": imagenet}
    return apply_preset(config, preset, presets)


def tiny(config: ConfigDict) -> None:
    """The smallest run that uses every part."""
    t2i.tiny(config)
    config.condition.width = 16
    config.condition.depth = 1


def folder(config: ConfigDict) -> None:
    """Pictures in one subfolder for each class."""
    t2i.folder(config)
    config.condition.kind = "class"
    config.data.labels = "subfolders"


def fashion(config: ConfigDict) -> None:
    """Fashion-MNIST, 28 x 28 in grey: a short training for a CPU. For a GPU: batch 256, 64 channels, 50,000 steps."""
    config.data.source = "fashion"
    config.data.preset = ""
    config.data.image_size = 28
    config.data.batch_size = 64
    config.model.channels = 32
    config.model.multipliers = (1, 2)
    config.model.self_attention_levels = config.model.cross_attention_levels = (1,)
    config.adapter.features = "patches"  # no CLIP of ours has seen clothes
    config.adapter.depth = 2
    config.train.num_steps = 600
    config.train.preview_every = 300
    config.eval.num_samples = 500
    config.eval.judge_steps = 1200
    config.sample.batch_size = 100


def imagenet(config: ConfigDict) -> None:
    """ImageNet at 256 x 256 in an autoencoder's latents (Table 3): a pod."""
    latent_diffusion(config)
    config.data.source = "folder"
    config.data.labels = "subfolders"
    config.data.preset = ""
