"""Draws docs/layout.svg, which room of the package imports from which, from the imports themselves.

    python -m docs.layout
"""

import ast
import collections
import html
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "contextdiff_jax"
PICTURE = Path(__file__).with_name("layout.svg")
CELL, LEFT, TOP, FOOT = 22, 190, 130, 34


def stated_order() -> dict[str, int]:
    """{room: its place from the left}, as the README says; rooms of one place may import each other."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"no import points to the right.*?\n\n((?: {4}.*\n)+)", text).group(1)
    return {room: place for place, rooms in enumerate(block.split("<")) for room in rooms.split()}


def imports(path: Path) -> set[str]:
    """Rooms that a file imports from, inside functions and for type checkers as well."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith(f"{PACKAGE}.")}
    return found - {"__version__"}


def room(path: Path) -> str:
    """The folder or module of the package that a file belongs to."""
    return path.relative_to(ROOT / PACKAGE).parts[0].removesuffix(".py")


def files() -> list[Path]:
    """The package's files but for the one that names its stable parts."""
    return [path for path in sorted((ROOT / PACKAGE).rglob("*.py")) if room(path) != "__init__"]


def draw() -> str:
    """The picture as SVG: a row for each room that imports, a column for each that is imported from."""
    order = stated_order()
    rooms, edges, lines = list(order), collections.Counter(), collections.Counter()
    for path in files():
        lines[room(path)] += len(path.read_text(encoding="utf-8").splitlines())
        edges.update((room(path), name) for name in imports(path) if name != room(path))
    side = CELL * len(rooms)
    parts = [*_frames(order, rooms), *_names(rooms, lines), *_dots(rooms, edges)]
    caption = "a row imports from its columns; area: number of files that do; shaded: rooms of one place"
    parts.append(f'<text x="{LEFT}" y="{TOP + side + 22}" fill="#555">{caption}</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + side + 20}" height="{TOP + side + FOOT}"'
    style = 'font-family="DejaVu Sans, Verdana, sans-serif" font-size="12"'
    return "\n".join([f"{head} {style}>", '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>\n"])


def _frames(order: dict[str, int], rooms: list[str]) -> list[str]:
    """Lines of the grid, and a shaded square for each place."""
    side = CELL * len(rooms)
    parts = []
    for place in sorted(set(order.values())):
        own = [i for i, name in enumerate(rooms) if order[name] == place]
        at, size = CELL * own[0], CELL * len(own)
        parts.append(f'<rect x="{LEFT + at}" y="{TOP + at}" width="{size}" height="{size}" fill="#dbe4f0"/>')
    for i in range(len(rooms) + 1):
        at = CELL * i
        parts.append(f'<path d="M{LEFT} {TOP + at}h{side}M{LEFT + at} {TOP}v{side}" stroke="#e3e3e3" fill="none"/>')
    return parts


def _names(rooms: list[str], lines: collections.Counter) -> list[str]:
    """The rooms' names beside the rows, with their lines of code, and above the columns."""
    parts = []
    for i, name in enumerate(rooms):
        middle, text = CELL * i + CELL / 2, html.escape(name)
        beside = f'{text} <tspan fill="#999">{lines[name]}</tspan>'
        parts.append(f'<text x="{LEFT - 8}" y="{TOP + middle + 4}" text-anchor="end">{beside}</text>')
        x, y = LEFT + middle + 4, TOP - 8
        parts.append(f'<text x="{x}" y="{y}" transform="rotate(-60 {x} {y})">{text}</text>')
    return parts


def _dots(rooms: list[str], edges: collections.Counter) -> list[str]:
    """A dot for each pair of rooms of which the first imports from the second."""
    place, parts = {name: i for i, name in enumerate(rooms)}, []
    for (user, used), count in sorted(edges.items()):
        x, y = LEFT + CELL * place[used] + CELL / 2, TOP + CELL * place[user] + CELL / 2
        radius = min(CELL / 2 - 1, 2.2 * count**0.5)
        title = f"<title>{user}: {count} files import from {used}</title>"
        parts.append(f'<circle cx="{x}" cy="{y}" r="{radius:.1f}" fill="#2f5f9e">{title}</circle>')
    return parts


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
