"""The contrastive loss, and the task that trains the mini CLIP."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from configs import clip_mini
from contextdiff_jax import config as config_lib
from contextdiff_jax import task as task_lib
from contextdiff_jax import training
from contextdiff_jax.encoders import load_clip
from contextdiff_jax.errors import UserError
from contextdiff_jax.formats.tokenizers import train_bpe
from contextdiff_jax.tasks.contrastive_loss import contrastive_loss
from contextdiff_jax.training import checkpoint


def features(seed: int, batch: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(batch, 5)), rng.normal(size=(batch, 5))


def tiny(tmp_path):
    config = clip_mini.get_config("tiny")
    config.clip.tokenizer_dir = str(tmp_path / "tokenizer")
    return config


def test_loss_is_pytorchs_symmetric_cross_entropy(x64):
    image, text = features(0)
    ours = contrastive_loss(jnp.array(image), jnp.array(text), jnp.array(1.7))
    unit = lambda a: torch.nn.functional.normalize(torch.tensor(a), dim=-1)
    logits = np.exp(1.7) * unit(image) @ unit(text).T
    cross_entropy = torch.nn.functional.cross_entropy
    each = lambda l: cross_entropy(l, torch.arange(6), reduction="none")
    np.testing.assert_allclose(ours, (each(logits) + each(logits.T)) / 2, rtol=1e-6)


def test_equal_captions_are_not_negatives():
    """Masking equals computing each row and column by hand without the pairs of equal captions."""
    image, text = features(1)
    captions = np.array([0, 1, 0, 2, 1, 0])
    text = text[captions]
    ours = contrastive_loss(image, text, jnp.array(0.5), jnp.array(captions[:, None] == captions))
    unit = lambda a: a / np.linalg.norm(a, axis=-1, keepdims=True)
    logits = np.exp(0.5) * unit(image) @ unit(text).T
    expected = []
    for i in range(6):
        keep = (captions != captions[i]) | (np.arange(6) == i)
        rows = np.log(np.exp(logits[i, keep]).sum()) + np.log(np.exp(logits[keep, i]).sum())
        expected.append(rows / 2 - logits[i, i])
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_a_batch_of_one_caption_has_no_loss_and_a_finite_gradient():
    image, text = (jnp.array(a, jnp.float32) for a in features(2))
    same = jnp.ones((6, 6), bool)
    loss = lambda image, text, scale: contrastive_loss(image, text, scale, same).sum()
    value, gradients = jax.value_and_grad(loss, argnums=(0, 1, 2))(image, text, jnp.array(2.0))
    assert value == pytest.approx(0, abs=1e-5)
    assert all(np.isfinite(g).all() for g in gradients)


def test_half_precision_features_give_a_float32_loss():
    image, text = (jnp.array(a, jnp.bfloat16) for a in features(3))
    assert contrastive_loss(image, text, jnp.array(4.6)).dtype == jnp.float32


def test_training_through_the_one_loop_and_export(tmp_path):
    """Some real steps, then a file that both we and PyTorch read, with equal results."""
    config = tiny(tmp_path)
    task = task_lib.build(config)
    batch = next(iter(task.train_iterator(0, 1)))
    params = jax.eval_shape(task.init, jax.random.key(0))
    loss, metrics = jax.eval_shape(task.loss, params, task.frozen, batch, jax.random.key(1))
    assert loss.shape == metrics["accuracy"].shape == (8,)
    training.train(task, str(tmp_path / "run"))
    trained, _, step = checkpoint.load_params(str(tmp_path / "run"))
    assert step == config.train.num_steps
    task.export(trained, tmp_path / "export")

    read = load_clip(tmp_path / "export")
    for ours, theirs in zip(jax.tree.leaves(read.params), jax.tree.leaves(trained), strict=True):
        np.testing.assert_array_equal(ours, np.asarray(theirs, np.float16))
    text = read.tokenize(["a red apple on a blue background", ""])
    model = transformers.CLIPModel.from_pretrained(tmp_path / "export").float().eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "export")
    theirs = tokenizer(["a red apple on a blue background", ""], padding="max_length", return_tensors="pt")
    np.testing.assert_array_equal(text["tokens"], theirs["input_ids"])
    with torch.no_grad():
        pooled = model.text_projection(model.text_model(theirs["input_ids"]).pooler_output)
    ours = jax.jit(read.encode_text)(read.params, **text).pooled
    np.testing.assert_allclose(ours, pooled, atol=1e-5)


def test_a_rebuilt_task_has_the_same_tokenizer(tmp_path):
    task_lib.build(tiny(tmp_path / "a"))
    first = (tmp_path / "a" / "tokenizer" / "tokenizer.json").read_bytes()
    task_lib.build(tiny(tmp_path / "b"))
    assert (tmp_path / "b" / "tokenizer" / "tokenizer.json").read_bytes() == first


def test_a_tokenizer_that_is_there_is_kept(tmp_path):
    """Weights belong to their tokenizer, even where training it today would give another."""
    train_bpe(["quite other words"], 560, 32, tmp_path / "tokenizer")
    before = (tmp_path / "tokenizer" / "tokenizer.json").read_bytes()
    task_lib.build(tiny(tmp_path))
    assert (tmp_path / "tokenizer" / "tokenizer.json").read_bytes() == before


def test_a_run_knows_its_tokenizer_and_where_it_lies(tmp_path, monkeypatch):
    """From wherever it is called, and another one in that place is refused."""
    monkeypatch.chdir(tmp_path)
    config = tiny(tmp_path)
    config.clip.tokenizer_dir = "~/tokenizer"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    saved = config_lib.whole_paths(config)
    assert saved.clip.tokenizer_dir == str(tmp_path / "home" / "tokenizer")
    task = task_lib.build(config)
    assert (tmp_path / "home" / "tokenizer" / "tokenizer.json").is_file() and not (tmp_path / "~").exists()
    (tmp_path / "run" / "checkpoints" / "4").mkdir(parents=True)
    task.keep(tmp_path / "run")
    train_bpe(["quite other words"], 560, 32, tmp_path / "home" / "tokenizer")
    with pytest.raises(UserError, match="was made with the clip.tokenizer_dir of .* but .* holds another"):
        task.keep(tmp_path / "run")
    config.clip.tokenizer_dir = "gs://bucket/tokenizer"
    with pytest.raises(UserError, match="remote store"):
        task_lib.build(config)


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path):
    config = tiny(tmp_path)
    config.clip.vocab_size = 620
    task_lib.build(config)
    config.clip.vocab_size = 560
    with pytest.raises(UserError, match="tokens, more than config.clip.vocab_size=560"):
        task_lib.build(config)


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("optim.accum_steps", 2, "accum_steps=2 changes the loss"),
        ("data.source", "folder", "data.source='folder'"),
        ("clip.vision_heads", 3, "vision_heads=3; choose a multiple"),
        ("clip.patch_size", 5, "patch_size=5"),
        ("clip.activation", "relu", "activation='relu' is unknown"),
        ("clip.vocab_size", 100, "vocab_size=100"),
    ],
)
def test_impossible_configs_are_named(tmp_path, key, value, words):
    config = tiny(tmp_path)
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=words):
        task_lib.build(config)


def test_every_shipped_size_builds_and_shapes(tmp_path):
    config = clip_mini.get_config()
    config.clip.tokenizer_dir = str(tmp_path / "tokenizer")
    task = task_lib.build(config)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert 2 * parameters < 6e6, "more than 6 MB in float16"
