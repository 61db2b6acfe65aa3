"""What a diffusion model is trained on: records of the data, with their conditions, in batches."""

import dataclasses
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from contextdiff_jax import data
from contextdiff_jax.tasks.edge_control import EdgeControl
from contextdiff_jax.tasks.kept_texts import FIELD, KeptTexts
from contextdiff_jax.tasks.parts import Parts
from contextdiff_jax.tasks.records import held_out, source
from contextdiff_jax.types import Batch


@dataclasses.dataclass(frozen=True)
class Batches:
    """Batches of the training data and of the held-out records.

    Attributes:
        config: the whole config.
        parts: the condition, which reads records, and the space.
        edges: the ControlNet that guides a clip's tuning; None without one.
    """

    config: ConfigDict
    parts: Parts
    edges: EdgeControl | None

    def train(self, process_index: int, process_count: int) -> Any:
        """Checkpointable Grain iterator over this process's rows of the global batches."""
        return data.build(
            self.config.data,
            "train",
            batch_size=self.config.data.batch_size,
            seed=self.config.seed,
            process_index=process_index,
            process_count=process_count,
            augment=True,
            from_records=self._fields if self.kept_texts is None else self._kept_fields,
            records=source(self.config, self.parts, "train"),
        )

    def held_out(self, process_index: int, process_count: int) -> tuple[str, Any]:
        """(split, this process's rows of batches of held-out records, in an order that is always the same)."""
        split, records = held_out(self.config, self.parts)
        return split, data.build(
            self.config.data,
            split,
            batch_size=self.config.data.batch_size,
            seed=self.config.data.seed,
            process_index=process_index,
            process_count=process_count,
            from_records=self._fields,
            records=records,
        )

    def _fields(self, records: Any) -> dict[str, np.ndarray]:
        """What a batch holds beside its pictures."""
        fields = self.parts.condition.from_records(records)
        return fields if self.edges is None else fields | self.edges.fields(records)

    def _kept_fields(self, records: Any) -> dict[str, np.ndarray]:
        """The same, with rows of the table of texts for texts."""
        return self.kept_texts.fields(records) | ({} if self.edges is None else self.edges.fields(records))

    @cached_property
    def kept_texts(self) -> KeptTexts | None:
        """The captions of the training records, where they are encoded once."""
        if not self.config.condition.kept_texts:
            return None
        captions = source(self.config, self.parts, "train").captions()
        return KeptTexts(captions, self.config.condition.kept_texts, self.parts.condition.read)

    def spec(self) -> Batch:
        """Shapes of what the step reads of a global batch; no data are read."""
        size, side, count = self.config.data.batch_size, self.config.data.image_size, self.config.data.num_frames
        height, width, channels = self.parts.space.shape
        lead = (size,) if count == 1 else (size, count)
        if self.config.space.kind == "latents" and self.config.space.precomputed:
            fields = {"latent": jax.ShapeDtypeStruct((*lead, height, width, 2 * channels), jnp.float32)}
        else:
            channels = 3 if self.config.space.kind == "latents" else channels
            fields = {"image": jax.ShapeDtypeStruct((*lead, side, side, channels), jnp.float32)}
        if self.edges is not None:
            fields["edges"] = jax.ShapeDtypeStruct((*lead, side, side, 3), jnp.float32)
        condition = self.parts.condition.empty(size)
        if self.config.condition.kept_texts:
            condition = {FIELD: np.zeros(size, np.int32)}
        return fields | {name: jax.ShapeDtypeStruct(v.shape, v.dtype) for name, v in condition.items()}
