"""Pieces of HTML. Every text from outside goes through `text`; what these functions return is markup."""

import base64
import html
import io
import string
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from contextdiff_jax.pictures import to_uint8

CSS = Path(__file__).parents[2] / "assets" / "pages" / "page.css"
LARGEST = 320  # pixels of a picture's longer side
SMALL = 128  # pictures up to this side are kept as they are, pixel by pixel
_PAGE = string.Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>$title</title>
<style>$css</style>
</head>
<body>
<a class="skip" href="#main">To the content</a>
<header>
<h1>$title</h1>
$head
</header>
<nav aria-label="Sections"><ul>$links</ul></nav>
<main id="main">$body</main>
<footer>$foot</footer>
</body>
</html>
""")


def text(value: object) -> str:
    """Any value as text that is no markup."""
    return html.escape(str(value), quote=True)


def page(title: str, head: str, sections: Sequence[tuple[str, str, str]], foot: str) -> str:
    """A whole page.

    Args:
        title: of the page, a text.
        head: markup under the title.
        sections: (id, heading, markup), each with its link on top; those without markup are left out.
        foot: markup at the end.
    """
    shown = [(name, heading, body) for name, heading, body in sections if body]
    links = "".join(f'<li><a href="#{name}">{text(heading)}</a></li>' for name, heading, _ in shown)
    body = "".join(
        f'<section id="{name}" aria-labelledby="{name}-h"><h2 id="{name}-h">{text(heading)}</h2>{inner}</section>'
        for name, heading, inner in shown
    )
    parts = dict(title=text(title), css=CSS.read_text(encoding="utf-8"), head=head, links=links, body=body, foot=foot)
    return _PAGE.substitute(parts)


def table(caption: str, header: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """A table that scrolls in a box of its own.

    Args:
        caption: a text.
        header: of the columns, texts; the first is that of the rows' names.
        rows: (markup of the row's attributes, cells as markup: the first is the row's header).
    """
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in header)
    body = "".join(
        f'<tr{attributes}><th scope="row">{cells[0]}</th>{"".join(cells[1:])}</tr>' for attributes, cells in rows
    )
    box = f'<div class="scroll" role="region" tabindex="0" aria-label="{text(caption)}">'
    inner = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<figure class="box"><figcaption>{text(caption)}</figcaption>{box}{inner}</div></figure>'


def cell(inner: str = "", kind: str = "number") -> str:
    """A cell of a table; `inner` is markup."""
    return f'<td class="{kind}">{inner}</td>'


def facts(caption: str, values: Mapping[str, object]) -> str:
    """A table of names and values, both texts."""
    rows = [("", [f"<code>{text(k)}</code>", cell(text(v), "text")]) for k, v in values.items()]
    return table(caption, ("name", "value"), rows)


def tiles(values: Mapping[str, tuple[str, str]]) -> str:
    """Large figures: {name: (figure, what is said under it)}, texts."""
    inner = "".join(
        f"<div><dt>{text(name)}</dt><dd>{text(value)}<small>{text(under)}</small></dd></div>"
        for name, (value, under) in values.items()
    )
    return f'<dl class="tiles">{inner}</dl>' if inner else ""


def details(summary: str, inner: str) -> str:
    """What opens on demand."""
    return f"<details><summary>{text(summary)}</summary>{inner}</details>"


def number(value: float | int | str | None, error: float | None = None, percent: bool = False) -> str:
    """ "62.5 ± 4.3 %", "7.123", "3,800,000", "-" for nothing; or the text itself."""
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return "-"
    if isinstance(value, str | bool):
        return str(value)
    if percent:
        return f"{100 * value:.1f} %" if error is None else f"{100 * value:.1f} ± {100 * error:.1f} %"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if error is None or not np.isfinite(error) else f"{value:.4g} ± {error:.2g}"


def picture(image: np.ndarray, alt: str, largest: int = LARGEST) -> str:
    """A picture [H, W, 3], uint8 or float in [-1, 1], inside the page; sides above `largest` are made smaller."""
    pixels = Image.fromarray(to_uint8(image[None])[0])
    small = max(pixels.size) <= SMALL
    if max(pixels.size) > largest:
        pixels.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    how = dict(format="PNG", optimize=True) if small else dict(format="JPEG", quality=88)
    pixels.save(file, **how)
    uri = data_uri(file.getvalue(), "image/png" if small else "image/jpeg")
    shape = f'width="{pixels.width}" height="{pixels.height}"'
    return f'<img src="{uri}" alt="{text(alt)}" {shape}{" class=crisp" if small else ""} loading="lazy">'


def data_uri(content: bytes, kind: str) -> str:
    """Bytes as an address that needs no file."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def video(path: Path, label: str) -> str:
    """A clip inside the page."""
    uri = data_uri(path.read_bytes(), "video/mp4")
    how = 'class="media" controls loop muted playsinline preload="metadata"'
    return f'<video {how} aria-label="{text(label)}" src="{uri}"></video>'
