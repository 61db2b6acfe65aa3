"""The records of a config's data, where several processes read them: the same ones on all."""

from typing import Any

from contextdiff_jax import data
from contextdiff_jax.data.base import ImageSource
from contextdiff_jax.training import distributed


def source(cfg_data: Any, split: str) -> ImageSource:
    """`data.source`, by every process.

    Raises:
        UserError: as that, or processes that see other records; all of them raise it.
    """
    return distributed.the_same(lambda: data.source(cfg_data, split), lambda records: records.identity)


def held_out(cfg_data: Any) -> tuple[str, ImageSource]:
    """`data.held_out`, by every process; errors as `source`."""
    return distributed.the_same(lambda: data.held_out(cfg_data), lambda found: found[1].identity)
