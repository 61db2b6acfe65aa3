"""The CLIP model inside the package: there, small, and trained."""

import jax
import numpy as np

from contextdiff_jax.data import OpenMojiSource, vocabulary
from contextdiff_jax.encoders import ASSETS, load_clip

FOLDER = ASSETS / "clip_mini"


def test_it_is_small_and_every_token_has_an_embedding():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 6e6
    model = load_clip("builtin:clip_mini")
    tokens = model.tokenize(["a red apple on a blue background", "", "😀 一只猫 " * 50])["tokens"]
    assert tokens.shape == (3, model.config.max_position_embeddings)
    assert tokens.max() < model.config.vocab_size


def test_it_finds_the_caption_of_a_scene_among_all():
    """An untrained model stays at chance, 1/72; 250 of the 1000 training steps already reach 100 %."""
    model, words = load_clip("builtin:clip_mini"), vocabulary("demo")
    captions = [words.caption(o, b) for o in range(len(words.objects)) for b in range(len(words.backgrounds))]
    source = OpenMojiSource("demo", "val", model.config.image_size)
    records = [source[i] for i in range(64)]
    images = np.stack([record["image"] for record in records]) / np.float32(127.5) - 1
    text = jax.jit(model.encode_text)(model.params, **model.tokenize(captions)).pooled
    image = jax.jit(model.encode_image)(model.params, images).pooled
    nearest = np.argmax(image @ (text / np.linalg.norm(text, axis=-1, keepdims=True)).T, axis=1)
    right = [captions[i] == record["caption"] for i, record in zip(nearest, records, strict=True)]
    assert np.mean(right) > 0.8
