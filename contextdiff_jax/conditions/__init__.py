"""What the condition c of a sample may be: a text, a class, a layout, or nothing. Each makes a Context of a batch.

Beside it what else surrounds a denoiser: where x0 lives (`spaces`), and what the adapter sees of it (`features`).
"""

from contextdiff_jax.conditions.base import Condition
from contextdiff_jax.conditions.classes import ClassCondition
from contextdiff_jax.conditions.classes_embedded import EmbeddedClassCondition
from contextdiff_jax.conditions.layout import LayoutCondition
from contextdiff_jax.conditions.text import TextCondition

__all__ = ["ClassCondition", "Condition", "EmbeddedClassCondition", "LayoutCondition", "TextCondition"]
