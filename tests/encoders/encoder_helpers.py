"""Small random CLIP models of transformers, saved in the hub's own layout, as oracles."""

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
}
VOCAB_SIZE, MAX_LENGTH, PROJECTION = 99, 12, 20


def torch_clip(shape: str = "quick_gelu", dtype: torch.dtype = torch.float32) -> transformers.CLIPModel:
    """A random model; its norms and biases are random too, or half of the parameters would not be tested."""
    spec = SHAPES[shape]
    image_size, patch_size = spec["image"]
    common = dict(hidden_act=spec["hidden_act"], projection_dim=PROJECTION, layer_norm_eps=1e-5)
    config = transformers.CLIPConfig(
        text_config=dict(
            **spec["text"],
            **common,
            vocab_size=VOCAB_SIZE,
            max_position_embeddings=MAX_LENGTH,
            eos_token_id=spec["eos_token_id"],
            bos_token_id=97,
        ),
        vision_config=dict(**spec["vision"], **common, image_size=image_size, patch_size=patch_size),
        projection_dim=PROJECTION,
    )
    torch.manual_seed(len(shape))
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype)


def saved_clip(folder: Path, shape: str = "quick_gelu", dtype: torch.dtype = torch.float32, **how):
    """The model, after saving it with transformers' own `save_pretrained(folder, **how)`."""
    model = torch_clip(shape, dtype)
    model.save_pretrained(folder, **how)
    return model


def texts(shape: str, seed: int = 0) -> np.ndarray:
    """Random ids [5, L] with an end token at another place in every row."""
    end = {"quick_gelu": 98, "gelu": 7, "legacy_eos": 98}[shape]
    rng = np.random.default_rng(seed)
    tokens = rng.integers(10, 97, (5, MAX_LENGTH)).astype(np.int32)
    for row, place in enumerate((1, 4, 6, 9, MAX_LENGTH - 1)):
        tokens[row, place:] = end
    return tokens


def torch_outputs(
    model: transformers.CLIPModel, tokens: np.ndarray, pixels: np.ndarray
) -> dict[str, np.ndarray]:
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
