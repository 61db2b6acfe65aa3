"""The readers' earlier place: they are of other libraries' files, and have moved to `contextdiff_jax.formats`."""

import warnings

from contextdiff_jax.formats.pretrained import (
    flax_axes,
    read_config,
    read_params,
    stored_tensors,
    write_model_card,
    write_params,
)

__all__ = ["flax_axes", "read_config", "read_params", "stored_tensors", "write_model_card", "write_params"]
warnings.warn(f"{__name__} has moved; import contextdiff_jax.formats.pretrained", DeprecationWarning, stacklevel=2)
