"""Text-guided video editing: tune a model on one clip, invert the clip, sample it again under another text.

    python -m contextdiff_jax.main --config=configs/video_edit.py          # embedded clip and model: minutes on a CPU
    python -m contextdiff_jax.main --config=configs/video_edit.py:tiny     # seconds: for tests
    python -m contextdiff_jax.main --config=configs/video_edit.py:contextdiff --config.model.pretrained=SD_FOLDER \\
        --config.encoder.clip=CLIP_FOLDER --config.data.path=jeep.mp4 --config.data.caption='a silver jeep on a road' \\
        --config.edit.prompts="('a red car on a road',)"                   # your clip: one GPU
    ... --mode=edit --prompt='a tractor on a road'                         # again, without tuning
    ... --mode=edit --workdir=SD_FOLDER --prompt='a tractor on a road'     # without any tuning at all

Methods: `:contextdiff` (Table 8 of the paper), `:fatezero`, `:tune_a_video`, `:controlvideo`, `:inversion`
(reconstructs only), `:ddim` (no control). Behind a plus, the kind of edit, `style`, `attribute`, `shape` or
`background` (without a mask), as in `:fatezero+shape`, and the sizes of the embedded model, `demo` or `tiny`. With no
preset it is `contextdiff+demo`. Each with --config.adapter.enabled=True or False.

To change all but an object: --config.edit.mask=outside --config.edit.blend_words="('jeep',)".

A batch is one clip, which is not split: of several GPUs take one by CUDA_VISIBLE_DEVICES=0, or let all of them do the
same by --config.mesh.data=1 --config.mesh.tensor=-1.
"""

from ml_collections import ConfigDict

from configs import t2i
from contextdiff_jax.editing.methods import DEMO, DEMO_GUIDANCE, METHODS, NOTHING, RECIPES, in_order, values_of
from contextdiff_jax.errors import UserError


def get_config(preset: str | None = None) -> ConfigDict:
    """The presets named after the colon, in any order: the method, then the kinds of edit, then the sizes."""
    config = base()
    scales = {"demo": demo, "tiny": tiny}
    names = (preset or "contextdiff+demo").split("+")
    if not set(names) & set(METHODS):
        names = ["contextdiff", *names]
    for name in names:
        if name not in METHODS | RECIPES | scales:
            accepted = ", ".join((*METHODS, *RECIPES, *scales))
            raise UserError(f"preset ':{name}' is unknown; accepted: {accepted}, joined by '+'")
    for name in in_order([name for name in names if name not in scales]):
        config.update_from_flattened_dict(values_of(name))
    for name, use in scales.items():
        if name in names:
            use(config)
    config.preset = preset or ""
    return config


def base() -> ConfigDict:
    """What all methods share: Stable Diffusion 1.x, 8 frames of 512 x 512, AdamW, batches of one clip."""
    config = t2i.get_config("sd")
    config.data.source = "clip"
    config.data.preset = "demo"  # without a path: embedded clip number `index` of demo | single | pairs
    config.data.index = 0
    config.data.path = ""  # a folder of frames, or an mp4, gif or webp
    config.data.caption = ""  # the source prompt
    config.data.num_frames = 8  # that the network takes at once
    config.data.length = 0  # frames of the clip; 0: num_frames. A longer one is edited in windows
    config.data.overlap = 4  # frames, of neighbouring windows
    config.data.start = 0
    config.data.sampling_rate = 1  # every frame, so that a short clip suffices; ContextDiff and Tune-A-Video take 2
    config.data.crop = (0, 0, 0, 0)  # pixels cut off: left, top, right, bottom
    config.data.mask_path = ""  # frames or a video, white on the object: for figures and edit.mask
    config.data.flow_path = ""  # .npy of (dx, dy) into the frame before, [F - 1, H, W, 2]: for the warp error
    config.data.batch_size = 1
    config.data.num_threads = 1
    config.data.prefetch = 1
    config.space.precomputed = False
    config.space.rgb = "decode"
    config.adapter.depth = 4
    config.adapter.num_heads = 8
    config.adapter.self_attention = True
    config.adapter.frames_back = 3
    config.loss.cond_drop_prob = 0.0
    config.optim.b1, config.optim.b2 = 0.9, 0.999
    config.optim.weight_decay = 1e-2
    config.optim.warmup_steps = 0
    config.train.checkpoint_every = 100
    config.train.keep = 1
    config.train.preview_every = 0
    config.ema.decay = 0.0  # one clip: the last parameters are the best
    config.edit = ConfigDict(
        dict(
            # Edited prompts. (): of an embedded clip with the mask attention or clip another object, with outside or
            # around another background, without a mask both.
            prompts=(),
            after_training=True,
            reconstruct=False,  # True: without an edited prompt the clip is inverted and sampled again, no more
            inversion_prompt="",  # source | empty
            alignment="",  # refine | replace | none
            cross_replace_steps=0.0,  # share of the steps in which aligned words take the source's attention
            cross_replace_words=(),  # (word, share) of words that have another
            self_replace_steps=0.0,  # share of the steps in which self-attention is the source's
            equalizer=(),  # (word, factor): attention to that word is multiplied
            equalize_added=1.0,  # factor of the words that the edit adds
            self_blend=False,  # inside the mask self-attention stays the edited clip's
            latent_blend=(),  # (from, to), shares of the steps: outside the mask latents become the source's
            blend_words=(),  # of the source prompt, whose attention is the mask; (): those that the edit takes away
            mask="",  # attention | outside (all but that) | clip (the clip's own masks) | around (all but those)
            mask_threshold=0.0,
            mask_scale="",  # maximum | range: what the threshold is a share of
            mask_resolution=0,  # side of the attention maps that make the mask
            max_tokens=0,  # attention of more positions is left alone
            rate=0.0,  # frames per second of what is written; 0: the clip's own, of frames without one 8
            control="",  # folder of a ControlNet, which is then shown the clip's edges
        )
    )
    config.update_from_flattened_dict(NOTHING)
    return config


def demo(config: ConfigDict) -> None:
    """The model that ships, 64 x 64, on an embedded clip: minutes on two CPU cores."""
    config.model.pretrained = "builtin:demo"
    config.condition.encoder = "builtin:clip_mini"
    config.adapter.start = "builtin:demo"
    config.adapter.width = 64
    config.adapter.self_attention = False  # as it has been trained
    config.loss.weighting = "snr_plus_1"
    config.space.rgb = "linear"
    config.space.rgb_map = "builtin:demo"
    config.model.remat = False
    config.data.image_size = 64
    config.data.index = 9  # a red apple on a green background
    config.data.num_frames = 8
    config.data.sampling_rate = 1
    config.optim.lr = 1e-4
    config.train.num_steps = 60
    config.train.checkpoint_every = 30
    config.train.log_every = 10
    config.sample.num_steps = 20
    config.sample.guidance = min(config.sample.guidance, DEMO_GUIDANCE)
    config.update_from_flattened_dict(DEMO)


def tiny(config: ConfigDict) -> None:
    """The smallest run that uses every part."""
    demo(config)
    config.data.num_frames = 3
    config.data.overlap = 1
    config.train.num_steps = 2
    config.train.checkpoint_every = 1
    config.train.log_every = 1
    config.sample.num_steps = 4
