"""Figures of merit: bits per dimension from the full bound, alignment by an independent judge, the report; and the
metrics of sets of pictures, `evaluate.metrics`."""

from contextdiff_jax.evaluate import metrics
from contextdiff_jax.evaluate.alignment import alignment, alignment_by_group, ceiling, chance, hits, summarise
from contextdiff_jax.evaluate.bpd import BitsPerDim, bits_per_dim, difference, join
from contextdiff_jax.evaluate.report import write_report
from contextdiff_jax.files import write_json
from contextdiff_jax.models.recogniser import Recogniser, load_recogniser, save_recogniser
from contextdiff_jax.pictures import caption_grid

__all__ = [
    "BitsPerDim",
    "Recogniser",
    "alignment",
    "alignment_by_group",
    "bits_per_dim",
    "caption_grid",
    "ceiling",
    "chance",
    "difference",
    "hits",
    "join",
    "load_recogniser",
    "metrics",
    "save_recogniser",
    "summarise",
    "write_json",
    "write_report",
]
