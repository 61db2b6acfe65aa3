"""The order of rooms that the README states is the order that the imports have, and the picture shows it."""

import re

from docs import layout


def test_no_import_points_to_the_right():
    order, wrong = layout.stated_order(), []
    for path in layout.files():
        own = layout.room(path)
        assert own in order, f"{path} is in a room that the README's order does not name"
        to_the_right = [name for name in layout.imports(path) if order[name] > order[own]]
        wrong += [f"{path.relative_to(layout.ROOT)} imports {name}" for name in to_the_right]
    assert not wrong, "\n".join(wrong)


def test_every_room_that_is_stated_exists():
    for name in layout.stated_order():
        folder = layout.ROOT / layout.PACKAGE
        assert (folder / name).is_dir() or (folder / f"{name}.py").is_file(), name


def test_the_picture_shows_the_rooms_that_there_are():
    """Numbers of files and lines change daily and may be behind."""
    rooms = lambda text: re.findall(r'text-anchor="end">([a-z_]+) ', text)
    shown = rooms(layout.PICTURE.read_text(encoding="utf-8"))
    assert shown == rooms(layout.draw()) == list(layout.stated_order()), "draw it again: python -m docs.layout"
