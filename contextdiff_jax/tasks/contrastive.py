"""Training a small CLIP on the embedded data, through the library's one loop."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from contextdiff_jax import data
from contextdiff_jax.conditions import TextCondition
from contextdiff_jax.encoders import Clip, clip
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import local_path
from contextdiff_jax.formats.tokenizers import read_tokenizer, train_bpe
from contextdiff_jax.tasks import identity
from contextdiff_jax.tasks.contrastive_loss import contrastive_loss
from contextdiff_jax.training.workdir import has_trained
from contextdiff_jax.types import Array, Batch, Params

MAX_LOGIT_SCALE = float(np.log(100.0))


class ContrastiveTask:
    """Image and text towers that agree on captions.

    The tokenizer is trained on the captions when the task is first built, and kept in `clip.tokenizer_dir`.
    Weights belong to their tokenizer, so a folder that already holds one is used as it is.

    Attributes:
        config: the whole config; section `clip` holds the sizes.
        frozen: nothing.
        clip: the model without parameters.

    Raises:
        UserError: sizes or a data source that cannot work, or a tokenizer with more tokens than the model.
    """

    frozen: Params = {}

    def __init__(self, config: ConfigDict):
        if config.data.source != "openmoji":
            raise UserError(f"config.data.source={config.data.source!r} has no tokenizer texts; use openmoji")
        if config.optim.accum_steps != 1:
            # Every other pair of the batch is a negative, so microbatches would be another objective.
            raise UserError(f"config.optim.accum_steps={config.optim.accum_steps} changes the loss; use 1")
        self.config = config
        sizes = config.clip
        tower = lambda width, layers, heads: clip.TowerConfig(width, 4 * width, layers, heads, sizes.activation)
        model = clip.CLIPConfig(
            text=tower(sizes.text_width, sizes.text_layers, sizes.text_heads),
            vision=tower(sizes.vision_width, sizes.vision_layers, sizes.vision_heads),
            projection_dim=sizes.projection_dim,
            vocab_size=sizes.vocab_size,
            max_position_embeddings=sizes.max_length,
            bos_token_id=0,
            eos_token_id=1,
            image_size=sizes.image_size,
            patch_size=sizes.patch_size,
        )
        self.clip = Clip(model, None, local_path(sizes.tokenizer_dir).absolute())
        self._prepare_tokenizer()

    def _prepare_tokenizer(self) -> None:
        """Trains the tokenizer unless its folder has one."""
        sizes, folder = self.config.clip, self.clip.tokenizer_dir
        if not (folder / "tokenizer.json").is_file():
            train_bpe(data.captions(self.config.data.preset), sizes.vocab_size, sizes.max_length, folder)
        found = read_tokenizer(folder).get_vocab_size()
        if found > sizes.vocab_size:
            raise UserError(
                f"the tokenizer in config.clip.tokenizer_dir={str(folder)!r} has {found} tokens, more than "
                f"config.clip.vocab_size={sizes.vocab_size}; give another folder"
            )

    def train_iterator(self, process_index: int, process_count: int) -> Any:
        """This process's rows of the training batches."""
        return data.build(
            self.config.data,
            "train",
            batch_size=self.config.data.batch_size,
            seed=self.config.seed,
            process_index=process_index,
            process_count=process_count,
            augment=True,
            from_records=TextCondition(self.clip).from_records,
        )

    def init(self, key: Array) -> Params:
        """Fresh float32 parameters in the layout of `Clip`."""
        return self.clip.init(key)

    def keep(self, workdir: Path) -> None:
        """Records which tokenizer the run has; all processes call it.

        Raises:
            UserError: it was started with another.
        """
        identity.check(workdir, self.config, has_trained(workdir))

    def draw(self, batch: Batch, key: Array) -> Batch:
        """Nothing is random but the data."""
        del key
        return batch

    def loss(self, params: Params, frozen: Params, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        """Contrastive loss [B] and how often the nearest caption of an image is its own."""
        del frozen, key
        text = self.clip.encode_text(params, batch["tokens"], batch["token_mask"]).pooled
        image = self.clip.encode_image(params, batch["image"]).pooled
        same = jnp.all(batch["tokens"][:, None] == batch["tokens"][None], axis=-1)
        scale = jnp.minimum(params["logit_scale"], MAX_LOGIT_SCALE)
        nearest = jnp.argmax(image @ (text / jnp.linalg.norm(text, axis=-1, keepdims=True)).T, axis=1)
        accuracy = same[jnp.arange(same.shape[0]), nearest].astype(jnp.float32)
        return contrastive_loss(image, text, scale, same), {"accuracy": accuracy}

    def preview(self, params: Params, frozen: Params, key: Array) -> None:
        """An encoder has no pictures to show."""

    def export(self, params: Params, out_dir: str | Path) -> None:
        """The model in the Hugging Face layout, float16."""
        self.clip.save(out_dir, jax.device_get(params), dtype=np.float16)
