"""A trained model in Python: found, asked for pictures, given clips to edit, written as a folder that stands alone."""

from contextdiff_jax.pipeline.pipeline import Pipeline

__all__ = ["Pipeline"]
