"""The order of rooms that the README states is the order that the imports have."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "contextdiff_jax"


def stated_order() -> dict[str, int]:
    """{room: its place from the left}; rooms of one place may import each other."""
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


def test_no_import_points_to_the_right():
    order, wrong = stated_order(), []
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        if room(path) == "__init__":  # the package itself names its stable parts
            continue
        assert room(path) in order, f"{path} is in a room that the README's order does not name"
        to_the_right = [name for name in imports(path) if order[name] > order[room(path)]]
        wrong += [f"{path.relative_to(ROOT)} imports {name}" for name in to_the_right]
    assert not wrong, "\n".join(wrong)


def test_every_room_that_is_stated_exists():
    for name in stated_order():
        assert (ROOT / PACKAGE / name).is_dir() or (ROOT / PACKAGE / f"{name}.py").is_file(), name
