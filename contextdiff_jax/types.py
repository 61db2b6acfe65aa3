"""The few types that travel between the parts of the library."""

from typing import Any

import flax.struct
import jax

Array = jax.Array
Batch = dict[str, Array]
Params = Any


@flax.struct.dataclass
class Context:
    """A batch of encoded conditions `c`.

    Attributes:
        tokens: per-token features, [B, L, D].
        pooled: one feature per example, [B, P].
        mask: True where a token is real, [B, L].
        spatial: maps that a backbone puts beside x_t as more channels, [B, h, w, C], or None.
        level: a number in [0, 1] that a backbone embeds beside t, such as how far a low-resolution image was noised,
            [B], or None.
    """

    tokens: Array
    pooled: Array
    mask: Array
    spatial: Array | None = None
    level: Array | None = None


@flax.struct.dataclass
class TrainState:
    """Everything a training run must remember besides its data iterator.

    Attributes:
        step: number of finished optimizer steps, int32 [].
        params: trained parameters, e.g. {"denoiser": ..., "adapter": ...}, float32.
        ema: exponential moving average of `params`, never the same buffers.
        opt_state: optax state.
    """

    step: Array
    params: Params
    ema: Params
    opt_state: Any
