"""A ControlNet beside the network that is tuned on a clip: it is shown each frame's edges (ControlVideo)."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from contextdiff_jax.data.edges import edges_of
from contextdiff_jax.models.controlnet import control_of, load_controlnet
from contextdiff_jax.tasks.places import Places, within
from contextdiff_jax.types import Array, Context, Params


class EdgeControl:
    """The ControlNet of `edit.control`, frozen.

    Attributes:
        folder: where it lies.
        net: the module.
        params: its parameters; shapes where no weights were asked for.
    """

    def __init__(self, folder: str, dtype: jnp.dtype, weights: bool = True, places: Places | None = None):
        self.folder = folder
        self.net, self.params = load_controlnet(folder, dtype, weights=weights, shardings=within(places, "control"))
        self._seen: dict[int, np.ndarray] = {}

    @classmethod
    def of(
        cls, config: ConfigDict, dtype: jnp.dtype, weights: bool, places: Places | None = None
    ) -> "EdgeControl | None":
        """That of a config; None where it names none. Arguments are those of `Parts.of`.

        Raises:
            UserError: a folder that holds none.
        """
        return cls(config.edit.control, dtype, weights, places) if "edit" in config and config.edit.control else None

    def fields(self, records: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
        """{"edges": float32 [B, F, H, W, 3]} of windows of one clip, drawn once for each."""
        for record in records:
            if record["index"] not in self._seen:
                self._seen[record["index"]] = edges_of(record["image"])
        return {"edges": np.stack([self._seen[record["index"]] for record in records])}

    def added(self, frozen: Params, xt: Array, t: Array, context: Context, drawn: Array) -> dict[str, Any]:
        """{"control": what it adds to the network} for rows of frames; `drawn` are their edges."""
        return {"control": control_of(self.net, frozen["control"], xt, t, context.tokens, drawn)}
