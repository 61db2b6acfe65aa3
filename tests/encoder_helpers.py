"""Small random CLIP and T5 models of transformers, saved in the hub's own layout, as oracles."""

from pathlib import Path

import numpy as np
import torch
import transformers

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

# Widths, depths and head counts differ between the towers, so that nothing fits by accident.
SHAPES = {
    "quick_gelu": dict(
        text=dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4),
        vision=dict(hidden_size=40, intermediate_size=64, num_hidden_layers=3, num_attention_heads=5),
        hidden_act="quick_gelu",
        image=(16, 4),
        eos_token_id=98,
    ),
    "gelu": dict(
        text=dict(hidden_size=48, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2),
        vision=dict(hidden_size=24, intermediate_size=72, num_hidden_layers=2, num_attention_heads=3),
        hidden_act="gelu",
        image=(24, 8),
        eos_token_id=7,
    ),
    # Configs from before the end token was corrected: 2 is in them, the end is the largest id in the text.
    "legacy_eos": dict(
        text=dict(hidden_size=16, intermediate_size=64, num_hidden_layers=3, num_attention_heads=1),
        vision=dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2),
        hidden_act="quick_gelu",
        image=(12, 6),
        eos_token_id=2,
    ),
    # OpenAI's three, all widths divided by 16 and the pictures smaller at the same number of patches.
    "vit_b32": dict(
        text=dict(hidden_size=32, intermediate_size=128, num_hidden_layers=1, num_attention_heads=8),
        vision=dict(hidden_size=48, intermediate_size=192, num_hidden_layers=1, num_attention_heads=12),
        hidden_act="gelu",  # as LAION has it
        image=(28, 4),
        eos_token_id=98,
        projection=32,
    ),
    "vit_b16": dict(
        text=dict(hidden_size=32, intermediate_size=128, num_hidden_layers=1, num_attention_heads=8),
        vision=dict(hidden_size=48, intermediate_size=192, num_hidden_layers=1, num_attention_heads=12),
        hidden_act="quick_gelu",
        image=(28, 2),
        eos_token_id=98,
        projection=32,
    ),
    "vit_l14": dict(
        text=dict(hidden_size=48, intermediate_size=192, num_hidden_layers=1, num_attention_heads=12),
        vision=dict(hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=16),
        hidden_act="quick_gelu",
        image=(32, 2),
        eos_token_id=2,
        projection=48,
    ),
}
VOCAB_SIZE, MAX_LENGTH, PROJECTION = 99, 12, 20


def torch_clip(shape: str = "quick_gelu", dtype: torch.dtype = torch.float32) -> transformers.CLIPModel:
    """A random model; its norms and biases are random too, or half of the parameters would not be tested."""
    spec = SHAPES[shape]
    image_size, patch_size = spec["image"]
    projection = spec.get("projection", PROJECTION)
    config = transformers.CLIPConfig(
        text_config=text_config(shape),
        vision_config=dict(
            **spec["vision"],
            hidden_act=spec["hidden_act"],
            projection_dim=projection,
            image_size=image_size,
            patch_size=patch_size,
        ),
        projection_dim=projection,
    )
    return randomised(transformers.CLIPModel, config, dtype)


def text_config(shape: str) -> dict:
    """Of the text tower of a shape."""
    spec = SHAPES[shape]
    return dict(
        **spec["text"],
        hidden_act=spec["hidden_act"],
        projection_dim=spec.get("projection", PROJECTION),
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=MAX_LENGTH,
        eos_token_id=spec["eos_token_id"],
        bos_token_id=97,
    )


def randomised(kind: type, config: transformers.PretrainedConfig, dtype: torch.dtype = torch.float32):
    """A model of transformers whose norms, biases and tables are random too."""
    torch.manual_seed(config.to_dict().get("vocab_size", 0))
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype)


# Version 1.0 and 1.1; heads that do not fill the width, and distances that reach the last bucket.
T5_SHAPES = {
    "v1.0": dict(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=3, feed_forward_proj="relu"),
    "v1.1": dict(d_model=40, d_kv=16, d_ff=56, num_layers=3, num_heads=4, feed_forward_proj="gated-gelu"),
}


def torch_t5(shape: str = "v1.0", kind: type = transformers.T5EncoderModel, dtype: torch.dtype = torch.float32):
    """A random T5 of another kind, or its encoder."""
    config = transformers.T5Config(
        **T5_SHAPES[shape],
        vocab_size=VOCAB_SIZE,
        relative_attention_num_buckets=12,
        relative_attention_max_distance=20,
        decoder_start_token_id=0,
    )
    return randomised(kind, config, dtype)


def t5_tokens(length: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Random ids [4, L] and masks of several lengths."""
    tokens = np.random.default_rng(0).integers(3, VOCAB_SIZE, (4, length)).astype(np.int32)
    mask = np.arange(length) < np.array([[1], [7], [31], [length]])
    return np.where(mask, tokens, 0), mask


def torch_t5_tokens(model, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """PyTorch's last hidden state."""
    with torch.no_grad():
        ids = torch.tensor(tokens, dtype=torch.long)
        return model(input_ids=ids, attention_mask=torch.tensor(mask)).last_hidden_state.float().numpy()


def saved_clip(folder: Path, shape: str = "quick_gelu", dtype: torch.dtype = torch.float32, **how):
    """The model, after saving it with transformers' own `save_pretrained(folder, **how)`."""
    model = torch_clip(shape, dtype)
    model.save_pretrained(folder, **how)
    return model


def texts(shape: str, seed: int = 0) -> np.ndarray:
    """Random ids [5, L] with an end token at another place in every row."""
    end = 7 if shape == "gelu" else 98  # the largest id, which is what counts where the config has 2
    rng = np.random.default_rng(seed)
    tokens = rng.integers(10, 97, (5, MAX_LENGTH)).astype(np.int32)
    for row, place in enumerate((1, 4, 6, 9, MAX_LENGTH - 1)):
        tokens[row, place:] = end
    return tokens


def torch_outputs(model: transformers.CLIPModel, tokens: np.ndarray, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """What PyTorch says of tokens [B, L] and normalised pixels [B, S, S, 3]."""
    with torch.no_grad():
        text = model.text_model(torch.tensor(tokens, dtype=torch.long))
        image = model.vision_model(torch.tensor(pixels.transpose(0, 3, 1, 2)).to(model.dtype))
        out = dict(
            text_tokens=text.last_hidden_state,
            text_pooled=model.text_projection(text.pooler_output),
            image_tokens=image.last_hidden_state,
            image_pooled=model.visual_projection(image.pooler_output),
        )
    return {name: value.float().numpy() for name, value in out.items()}


def relative_error(ours, theirs: np.ndarray) -> float:
    """Largest difference relative to the largest value."""
    return float(np.abs(np.asarray(ours, np.float32) - theirs).max() / np.abs(theirs).max())
