"""Cards with the same question's pictures side by side, their caption and what the judge says of each."""

from collections.abc import Sequence

from contextdiff_jax.evaluate.groups import Seen
from contextdiff_jax.evaluate.pages.html import picture, text

NARROW, WIDE = 150, 440  # pixels of a card


def gallery(heading: str, arms: Sequence[tuple[str, Seen]]) -> str:
    """A heading and a card for each kept picture.

    Args:
        heading: a text.
        arms: (what a card calls it, pictures) of the same prompts.
    """
    side = max(arms[0][1].images.shape[1:3])
    width = min(WIDE, max(NARROW, 105 * len(arms) + 30, side * len(arms) if side > NARROW else 0))
    items = "".join(_card(arms, i) for i in range(len(arms[0][1].captions)))
    return f'<h3>{text(heading)}</h3><ul class="gallery" style="--card-width:{width}px">{items}</ul>'


def _card(arms: Sequence[tuple[str, Seen]], i: int) -> str:
    caption, inner = arms[0][1].captions[i], ""
    for name, kept in arms:
        verdicts, says, mark = kept.verdicts, "", ""
        if verdicts is not None:
            says, kind, sign = ("recognised", "right", "✓") if verdicts[i] else ("not recognised", "wrong", "✗")
            mark = f'<span class="{kind}">{sign} {says}</span>'
        alt = ", ".join(part for part in (caption, name, says) if part)
        label = f"<figcaption>{text(name)}{mark}</figcaption>" if name or mark else ""
        inner += f"<figure>{picture(kept.images[i], alt)}{label}</figure>"
    return f'<li><div class="arms">{inner}</div><p>{text(caption)}</p></li>'
