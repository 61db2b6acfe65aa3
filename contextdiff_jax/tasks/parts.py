"""What surrounds the trained networks of a diffusion task: all that is frozen, chosen by the config."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from contextdiff_jax import data, encoders, trees
from contextdiff_jax.conditions import ClassCondition, Condition, LayoutCondition, TextCondition
from contextdiff_jax.conditions.features import Features
from contextdiff_jax.conditions.layout import in_words, layout_of
from contextdiff_jax.conditions.spaces import Latents, Pixels
from contextdiff_jax.models import backbones
from contextdiff_jax.process import schedule
from contextdiff_jax.process.learned import Process
from contextdiff_jax.runtime import Runtime
from contextdiff_jax.tasks import readers
from contextdiff_jax.tasks.kept_texts import FIELD, TABLE, empty_like, looked_up
from contextdiff_jax.tasks.places import Places, within
from contextdiff_jax.types import Batch, Context, Params


@dataclasses.dataclass(frozen=True)
class Parts:
    """The frozen surroundings.

    Attributes:
        dtype: type of the computation inside networks.
        process: the noise schedule, that at the start of training if it is learned, and the reverse variance.
        prediction: x0, eps or v.
        scheduler: content of the pretrained folder's scheduler_config.json, as the config changes it; {} without one.
        condition: what c is.
        space: where x0 lives.
        levels: values that an element of x0 can take; None where x0 is continuous.
        features: what the adapter sees of x0; None without an adapter.
        clip: the model of `encoder.clip`, where the condition or the features use it; else None.
    """

    dtype: jnp.dtype
    process: Process
    prediction: str
    scheduler: dict[str, Any]
    condition: Condition
    space: Pixels | Latents
    levels: int | None
    features: Features | None
    clip: encoders.Clip | None

    @classmethod
    def of(
        cls,
        config: ConfigDict,
        runtime: Runtime | None = None,
        weights: bool = True,
        places: Places | None = None,
    ) -> "Parts":
        """Reads whatever the config names.

        Args:
            config: the whole config.
            runtime: what the networks will run on; None takes this machine.
            weights: whether to read the frozen networks' parameters; else they are shapes.
            places: where they go as they are read, so that no host ever holds one whole; None: the host.

        Raises:
            UserError: something that is not there, or does not fit.
        """
        dtype = readers.compute_dtype(config.model.dtype, runtime)
        # Encoders are read in the type that they compute in, to which their layers would cast them at every call.
        how = dict(dtype=dtype, param_dtype=dtype, weights=weights)
        # One CLIP may serve as text encoder and as the adapter's eye; it is read once.
        clip = None
        if readers.needs_clip(config):
            with readers.naming("encoder.clip", config.encoder.clip):
                clip = encoders.load_clip(config.encoder.clip, **how, shardings=within(places, "clip"))
        space = readers.space_of(config, runtime, weights, places)
        backbones.check_size(config, space.shape)
        scheduler = readers.scheduler_of(config)
        load = partial(encoders.load_text_encoder, **how, shardings=within(places, "condition"))
        condition = readers.condition_of(config, clip, load, space.shape, dtype)
        process, prediction = readers.read_process(config, scheduler, space)
        levels = data.describe(config.data).levels if config.space.kind == "pixels" else None
        features = readers.features_of(config, clip, space)
        return cls(dtype, process, prediction, scheduler, condition, space, levels, features, clip)

    @property
    def schedule(self) -> schedule.Schedule:
        """The noise schedule, that at the start of training if it is learned."""
        return self.process.start

    @property
    def params(self) -> dict[str, Params]:
        """Parameters of all that is frozen, each once: {"clip", "condition" (unless that is the clip), "space"}."""
        clip = {} if self.clip is None else self.clip.params
        condition = {} if self._reads_clip else self.condition.params
        read = trees.cast({"clip": clip, "condition": condition}, self.dtype)  # shapes are float32 before
        return read | {"space": self.space.params}

    @property
    def _reads_clip(self) -> bool:
        return isinstance(self.condition, TextCondition) and self.condition.encoder is self.clip

    def encode_condition(self, params: Params, frozen: Params, batch: Batch) -> Context:
        """The condition of each example of a batch; of texts that are kept, from their table."""
        if FIELD in batch:
            return looked_up(frozen[TABLE], batch[FIELD])
        return self.condition.encode(self._condition_params(params, frozen), batch)

    def null_condition(self, params: Params, frozen: Params, context: Context) -> Context:
        """What guidance moves away from: the condition without what was asked for."""
        if TABLE in frozen:
            return empty_like(frozen[TABLE], context)
        return self.condition.null(self._condition_params(params, frozen), context)

    def _condition_params(self, params: Params, frozen: Params) -> Params:
        if self.condition.trained:
            return params["condition"]
        return frozen["clip" if self._reads_clip else "condition"]

    def prompts(self, records: Sequence[dict[str, Any]]) -> list[Any]:
        """What to ask for to get pictures like these records'."""
        if isinstance(self.condition, LayoutCondition):
            return [layout_of(record, self.condition.names) for record in records]
        if isinstance(self.condition, ClassCondition) and self.condition.takes_prompts:
            return [self.condition.names[record["label"]] for record in records]
        return [record["caption"] for record in records]

    def captions(self, prompts: Sequence[Any]) -> list[str]:
        """Prompts in words, classes by their names."""
        condition = self.condition
        if isinstance(condition, LayoutCondition):
            return [in_words(layout, condition.names) for layout in prompts]
        if isinstance(condition, ClassCondition) and condition.takes_prompts:
            return [condition.names[label] for label in condition.read(prompts)["label"]]
        return list(prompts)
