"""The records that a diffusion task trains on and is measured on; and those of a config's data, the same on all
processes that read them."""

from typing import Any

from ml_collections import ConfigDict

from contextdiff_jax import data
from contextdiff_jax.data import latents
from contextdiff_jax.data.base import ImageSource
from contextdiff_jax.data.latents import LatentSource
from contextdiff_jax.errors import UserError
from contextdiff_jax.tasks.parts import Parts
from contextdiff_jax.training import distributed


def held_out(config: ConfigDict, parts: Parts) -> tuple[str, ImageSource]:
    """(split, records) for evaluation, as `data.held_out`; of stored latents where they are to be used."""
    if config.space.kind == "latents" and config.space.precomputed:
        split = latents.held_out(config.space.latents)
        return split, source(config, parts, split)
    return data.held_out(config.data)


def source(config: ConfigDict, parts: Parts, split: str) -> ImageSource:
    """The records of a split: stored latents where they are to be used, or images."""
    if config.space.kind == "latents" and config.space.precomputed:
        description = data.describe(config.data)
        expected = latents.contents_of(config, parts.space, {})
        images = lambda split: data.source(config.data, split).identity
        records = LatentSource(config.space.latents, split, parts.space.shape, description, expected, images)
        if config.condition.kind == "layout" and "boxes" not in records[0]:
            raise UserError(
                f"config.space.latents={config.space.latents!r} was encoded without the boxes of the objects; run "
                "--mode=encode into another folder"
            )
        return records
    return data.source(config.data, split)


def same_source(cfg_data: Any, split: str) -> ImageSource:
    """`data.source`, by every process.

    Raises:
        UserError: as that, or processes that see other records; all of them raise it.
    """
    return distributed.the_same(lambda: data.source(cfg_data, split), lambda records: records.identity)


def same_held_out(cfg_data: Any) -> tuple[str, ImageSource]:
    """`data.held_out`, by every process; errors as `same_source`."""
    return distributed.the_same(lambda: data.held_out(cfg_data), lambda found: found[1].identity)
